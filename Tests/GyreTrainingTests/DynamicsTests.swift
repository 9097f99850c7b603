import GyreCPU
import GyreLayers
import GyreRecurrence
import GyreTensors
import GyreTraining
import Testing

@Suite("Dynamical systems") struct DynamicsTests {
  /// 0.906 a unit of time (Viswanath, 1999).
  @Test func lorenzIsChaotic() {
    let system = Lorenz63()
    let start = system.point(seed: 1)
    let exponent = system.lyapunovExponent(from: start, steps: 40_000) / system.interval
    #expect(abs(exponent - 0.906) < 0.08, "\(exponent)")
    let orbit = system.orbit(from: start, steps: 20_000)
    for i in 0..<3 {
      let mean = orbit.reduce(0) { $0 + $1[i] } / 20_000
      let square = orbit.reduce(0) { $0 + $1[i] * $1[i] } / 20_000
      #expect(abs(mean) < 0.15 && abs(square - 1) < 0.15, "\(i): \(mean), \(square)")
    }
    #expect(system.point(seed: 1) == start)
  }

  @Test func attractorsAreCompared() {
    let system = Lorenz63()
    let one = Attractor(system.orbit(from: system.point(seed: 1), steps: 20_000))
    let other = Attractor(system.orbit(from: system.point(seed: 2), steps: 20_000))
    let point = Attractor([[Double]](repeating: [0, 0, 0], count: 1000))
    #expect(abs(one.overlap(one) - 1) < 1e-9 && abs(one.divergence(from: one)) < 1e-2)
    #expect(one.overlap(other) > 0.6 && one.overlap(point) < 0.1)
    #expect(one.divergence(from: point) > one.divergence(from: other))
  }

  /// The loss falls, and the host's map is the engine's.
  @Test(arguments: [PiecewiseLinear.Form.shallow, .almostLinear])
  func learns(_ form: PiecewiseLinear.Form) throws {
    var c = Reconstruction.Configuration()
    (c.form, c.steps, c.length, c.batch) = (form, 60, 50, 4)
    if form == .almostLinear { c.units = 8 }
    c.learningRate = 1e-2
    let system = Lorenz63()
    let learner = try Reconstruction(
      c, orbit: system.orbit(from: system.point(seed: 1), steps: 1000), device: CPUDevice())
    let first = try learner.advance().loss
    var last = first
    for _ in 1..<60 { last = try learner.advance().loss }
    #expect(last < 0.3 * first, "\(first) to \(last)")
    #expect((0...1).contains(learner.forcing))
    let map = try learner.learned()
    #expect(map.dimensions == c.units)
    let norm = map.jacobianNorm([Double](repeating: 0.3, count: c.units))
    #expect(norm > 0 && norm.isFinite)
    #expect(!map.symbol([Double](repeating: 0.3, count: c.units)).isEmpty)
  }

  @Test func wrongOptionsAreNamed() throws {
    var c = Reconstruction.Configuration()
    c.units = 2
    let orbit = [[Double]](repeating: [0, 0, 0], count: 500)
    let device = try CPUDevice()
    #expect(throws: ConfigurationError.self) { try Reconstruction(c, orbit: orbit, device: device) }
    c.units = 3
    #expect(throws: ConfigurationError.self) {
      try Reconstruction(c, orbit: Array(orbit[..<100]), device: device)
    }
  }
}
