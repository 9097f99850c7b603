import GyreCheckpoints
import GyreInference
import GyreTensors
import GyreTraining

/// `gyre train --task lorenz63`: learns the system from one noisy orbit, lets the network run by itself
/// and puts its attractor and its Lyapunov exponent beside the true ones.
struct DynamicsRun {
  static let name = "lorenz63"

  struct Result: Encodable {
    var loss: Double
    /// Exponents a unit of time.
    var lyapunov, trueLyapunov: Double
    /// Shared part of the attractors' boxes: network and system, and two orbits of the system.
    var overlap, trueOverlap: Double
    var divergence: Double
    /// ReLU patterns that the network's orbit visits.
    var symbols: Int
    var svg: String
  }

  static let orbitLength = 20_000

  static func run(
    _ configuration: Reconstruction.Configuration, device: any Device, out: String, json: Bool
  ) throws {
    let system = Lorenz63()
    let orbit = system.orbit(
      from: system.point(seed: configuration.seed), steps: orbitLength)
    let learner = try Reconstruction(configuration, orbit: orbit, device: device)
    Interrupts.install()
    var progress = Progress(total: configuration.steps, first: 0, quiet: json)
    var loss = Double.nan
    for _ in 0..<configuration.steps where !Interrupts.isRequested {
      let last = try learner.advance()
      loss = last.loss
      if json { try JSONOutput.line(last) }
      progress.update(
        last.step, "loss \(Format.fixed(last.loss, 5))  forcing \(Format.fixed(last.forcing, 3))")
    }
    progress.end()

    let start = system.point(seed: configuration.seed + 1)
    let map = try learner.learned()
    let hidden = [Double](repeating: 0, count: map.dimensions - system.dimensions)
    let free = map.orbit(from: start + hidden, steps: orbitLength)
    let points = free.map { Array($0.prefix(system.dimensions)) }
    let (truth, other) = (
      system.orbit(from: start, steps: orbitLength),
      system.orbit(from: system.point(seed: configuration.seed + 2), steps: orbitLength)
    )
    let (attractor, real) = (Attractor(points), Attractor(truth))
    let path = out + "/attractors.svg"
    let symbols = Set(free.map(map.symbol)).count
    let result = Result(
      loss: loss,
      lyapunov: map.lyapunovExponent(from: start + hidden, steps: orbitLength) / system.interval,
      trueLyapunov: system.lyapunovExponent(from: start, steps: orbitLength) / system.interval,
      overlap: attractor.overlap(real), trueOverlap: Attractor(other).overlap(real),
      divergence: real.divergence(from: attractor), symbols: symbols, svg: path)
    try Files.makeFolder(out)
    try AtomicFile.write(
      Attractor.svg(truth, points, titles: ("Lorenz-63", "network, by itself")), to: path)
    if json { return try JSONOutput.document(result) }
    var table = Table([("", .left), ("network", .right), ("system", .right)])
    table.add([
      "Lyapunov exponent", Format.fixed(result.lyapunov, 3), Format.fixed(result.trueLyapunov, 3),
    ])
    table.add([
      "overlap with an orbit of the system", Format.fixed(result.overlap, 3),
      Format.fixed(result.trueOverlap, 3),
    ])
    table.add(["divergence", Format.fixed(result.divergence, 3), ""])
    table.add(["linear pieces visited", "\(symbols)", ""])
    table.print()
    Terminal.line(path)
  }
}
