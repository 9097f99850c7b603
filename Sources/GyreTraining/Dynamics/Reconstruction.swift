import GyreLayers
import GyreRecurrence
import GyreTensors

/// Learns the map behind observed sequences with a piecewise-linear network and generalised teacher
/// forcing (Hess et al., 2023, https://arxiv.org/abs/2306.04406; almost-linear networks: Brenner et
/// al., 2024, https://arxiv.org/abs/2410.14240).
public final class Reconstruction {
  public struct Configuration: Codable, Sendable, Hashable {
    public var form = PiecewiseLinear.Form.shallow
    /// Units z; those beyond the observed ones are free.
    public var units = 3
    /// Hidden units of the shallow form, bent units of the almost linear one.
    public var width = 50
    public var nonlinearUnits = 5
    public var steps = 3000
    public var batch = 16
    public var length = 200
    public var learningRate = 2e-3
    /// Deviation of the noise on observations.
    public var noise = 0.05
    public var seed: UInt64 = 1
    public init() {}

    /// - Throws: the first field that cannot be.
    public func validate(observed: Int) throws(ConfigurationError) {
      try require(
        (observed...4096).contains(units), "units", "must be in \(observed)...4096, is \(units)")
      if let problem = map.problem(hidden: units) {
        throw ConfigurationError(problem.field, problem.reason)
      }
      for (name, value) in [("steps", steps), ("batch", batch), ("length", length)] {
        try require((1...1 << 24).contains(value), name, "must be positive, is \(value)")
      }
      try require(
        learningRate > 0 && learningRate.isFinite, "learningRate", "must be positive")
      try require(noise >= 0 && noise.isFinite, "noise", "must not be negative")
    }
    var map: PiecewiseLinear {
      var map = PiecewiseLinear(form)
      map.width = width
      map.nonlinearUnits = nonlinearUnits
      return map
    }
  }

  /// One line of progress.
  public struct Progress: Sendable, Codable {
    public var step: Int
    /// Mean squared error of the next observation, with forcing.
    public var loss: Double
    /// α.
    public var forcing: Double
  }

  public let configuration: Configuration
  private let observed: Int
  private let orbit: [[Double]]
  private let engine: RecurrentCell
  private let parameters: [Parameter]
  private let constants: [String: Tensor]
  private let optimizer: Optimizer
  private let device: any Device
  public private(set) var forcing = 1.0
  private var step = 0

  /// - Parameter orbit: what was observed, one point a step; noise is added to it.
  /// - Throws: the first field that cannot be.
  public init(
    _ configuration: Configuration, orbit: [[Double]], device: any Device
  ) throws(ConfigurationError) {
    let observed = orbit.first?.count ?? 0
    try configuration.validate(observed: max(observed, 1))
    try require(
      orbit.count > configuration.length, "orbit",
      "must have more than \(configuration.length) points, has \(orbit.count)")
    self.configuration = configuration
    self.observed = observed
    self.device = device
    let noise = CounterGenerator(seed: configuration.seed, name: "noise")
      .normals(orbit.count * observed)
    self.orbit = orbit.enumerated().map { t, point in
      point.enumerated().map { $1 + configuration.noise * Double(noise[t * observed + $0]) }
    }
    let description = TeacherForcing(configuration.map).description(hidden: configuration.units)
    engine = RecurrentCell(description, execution: .sequential)
    let parts = description.parts
    var p = ParameterBuilder(
      source: RandomParameters(seed: configuration.seed, device: device), device: device)
    var constants: [String: Tensor] = [:]
    for m in parts.matrices { _ = try p.parameter(m.name, parts.shape(m), m.initializer) }
    for v in parts.parameters {
      if let values = v.constant {
        constants[v.name] = Tensor(values, shape: [values.count], on: device)
      } else if v.name != "force" {
        _ = try p.parameter(v.name, [parts.spaces[v.space]], v.initializer)
      }
    }
    parameters = p.parameters
    self.constants = constants
    var training = TrainingConfiguration()
    training.learningRate = configuration.learningRate
    training.weightDecay = 0
    training.beta2 = 0.999
    optimizer = Optimizer(parameters, training)
  }

  private func value(_ name: String) -> Tensor? {
    parameters.first { $0.name == name }?.value ?? constants[name]
  }

  /// One update.
  ///
  /// - Throws: what the device throws.
  public func advance() throws -> Progress {
    let c = configuration
    if step % 5 == 0 { adaptForcing(try learned()) }
    let generator = CounterGenerator(seed: c.seed, name: "batch \(step)")
    let starts = (0..<c.batch).map {
      generator.integer(UInt64($0), below: orbit.count - c.length)
    }
    func points(_ shift: Int, _ width: Int) -> Tensor {
      let values = starts.flatMap { start in
        (0..<c.length).flatMap { t in
          (0..<width).map { $0 < observed ? Float(orbit[start + t + shift][$0]) : 0 }
        }
      }
      return Tensor(values, shape: [c.batch, c.length, width], on: device)
    }
    let (inputs, targets) = (points(0, c.units), points(1, observed))
    let force = Tensor(
      (0..<c.units).map { $0 < observed ? Float(forcing) : 0 }, shape: [c.units], on: device)
    let tape = Tape()
    let variables = parameters.map(\.value)
    tape.watch(variables)
    let loss = tape.record {
      var state = State(engine.stateSpec, batch: c.batch)
      state["z"] = inputs.sliced(0..<1, axis: 1).reshaped([c.batch, c.units])
      let parts = engine.plan.parts
      let y = engine(
        .init(
          gates: inputs, matrices: parts.matrices.compactMap { value($0.name) },
          parameters: parts.parameters.compactMap { $0.name == "force" ? force : value($0.name) }),
        state: &state, form: .recurrent, reset: nil)
      let error = y.sliced(0..<observed, axis: 2) - targets
      return (error * error).mean()
    }
    let gradients = tape.gradients(of: loss, for: variables)
    let norm = try apply(SumOfSquares(), gradients.compactMap(\.self))[0].item().squareRoot()
    if norm.isFinite {
      let factor = Tensor([Float(min(1, 10 / max(norm, 1e-12)))], shape: [1], on: device)
      // Down to a hundredth, by a cosine.
      let part = Double(step) / Double(max(c.steps, 1))
      optimizer.step(
        gradients, factor: factor, schedule: 0.01 + 0.495 * (1 + Functions.cos(.pi * part)))
    }
    step += 1
    return Progress(step: step, loss: try loss.item(), forcing: forcing)
  }

  /// α towards max(0, 1 − 1/s), s the largest geometric mean of ‖J‖ along stretches of the data.
  private func adaptForcing(_ map: LearnedMap) {
    let c = configuration
    let generator = CounterGenerator(seed: c.seed, name: "forcing \(step)")
    var largest = 0.0
    for row in 0..<min(c.batch, 4) {
      let start = generator.integer(UInt64(row), below: orbit.count - c.length)
      let stretch = stride(from: start, to: start + c.length, by: 8)
      let logs = stretch.map { t in
        let free = [Double](repeating: 0, count: c.units - observed)
        return Functions.log(max(map.jacobianNorm(orbit[t] + free), 1e-6))
      }
      largest = max(largest, Functions.exp(logs.reduce(0, +) / Double(logs.count)))
    }
    let estimate = max(0, 1 - 1 / max(largest, 1e-6))
    forcing = estimate > forcing ? estimate : 0.999 * forcing + 0.001 * estimate
    if step == 0 { forcing = max(estimate, 0.2) }
  }

  /// The network as it is now.
  ///
  /// - Throws: what the device throws.
  public func learned() throws -> LearnedMap {
    func read(_ name: String) throws -> [Double] { try value(name)?.doubles() ?? [] }
    let c = configuration
    let isShallow = c.form == .shallow
    return LearnedMap(
      dimensions: c.units, form: c.form, width: isShallow ? c.width : c.units,
      nonlinearUnits: c.nonlinearUnits, A: try read("A"), h: try read("h"), h2: try read("h2"),
      U: try read(isShallow ? "W1" : "W"), V: try read("W2"))
  }
}
