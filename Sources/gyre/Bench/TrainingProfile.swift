import GyreLayers
import GyreModels
import GyrePlatform
import GyreTensors
import GyreTraining

/// Whole training steps of a preset: speed beside the device's matrix rate, memory, and where the time
/// of one step goes, kernel by kernel.
struct TrainingProfile: Encodable {
  struct Kernel: Encodable {
    var name: String
    var launches: Int
    var milliseconds: Double
  }
  var model: String
  var batch, length, parameters: Int
  /// Median of steps that follow each other without waiting for their losses.
  var stepSeconds: Double
  /// The same with every op queued by the host.
  var opByOpSeconds: Double
  /// How the steps of `stepSeconds` went to the device.
  var way: String
  var tokensPerSecond: Double
  /// 6 a parameter and token.
  var flopsPerSecond: Double
  /// Of a product of 8,192 × 8,192 × 8,192 random numbers in the same precision.
  var productFlopsPerSecond: Double
  var peakBytes: Int
  var launches: Int?
  /// Mean losses of the first steps in nats.
  var losses: [Double]
  var kernels: [Kernel] = []

  /// - Parameters:
  ///   - steps: measured, after three that are not.
  init(
    _ name: String, _ trained: LanguageModel, batch: Int, length: Int, steps: Int, product: Double
  ) throws {
    (model, self.batch, self.length, productFlopsPerSecond) = (name, batch, length, product)
    let device = trained.device
    var c = TrainingConfiguration()
    (c.batch, c.length, c.precision) = (batch, length, ComputePrecision.current)
    (c.learningRate, c.spikeFactor) = (1e-3, nil)
    let training = DeviceStep(
      trained, c, Optimizer(trained.parameters, c), carries: false)
    parameters = trained.parameterCount
    let count = batch * length
    let ids = (0...UInt64(count)).map {
      Int32(CounterGenerator(seed: 1).integer($0, below: trained.configuration.vocabulary))
    }
    let data = Batch(
      tokens: Array(ids[..<count]), targets: Array(ids[1...count]), startsAfresh: true)
    var taken = 0
    /// Steps that follow each other; waits for the last one's loss.
    func run(_ steps: Int, records: Bool = true) throws -> [Double] {
      let queued = (0..<steps).map { i in
        training.queue([data], step: taken + i, schedule: 1, updates: taken, records: records)
      }
      taken += steps
      return try queued.map { try training.outcome(of: $0).loss }
    }
    let clock = ContinuousClock()
    /// Sorted seconds of steps in pairs: the first one's loss is read while the second one runs.
    func times(records: Bool) throws -> [Double] {
      try (0..<max(steps / 2, 1)).map { _ in
        let start = clock.now
        _ = try run(2, records: records)
        return (clock.now - start).seconds / 2
      }.sorted()
    }
    losses = try (0..<3).flatMap { _ in try run(1) }
    try device.synchronize()
    device.resetPeakMemory()
    let before = Devices.launchCount(of: device)
    opByOpSeconds = try times(records: false)[max(steps / 2, 1) / 2]
    let after = Devices.launchCount(of: device)
    launches = after.flatMap { a in before.map { (a - $0) / (2 * max(steps / 2, 1)) } }
    let found = try times(records: true)
    way = training.way.description
    peakBytes = device.memory.peak
    stepSeconds = found[found.count / 2]
    tokensPerSecond = Double(count) / stepSeconds
    flopsPerSecond = 6 * Double(parameters) * tokensPerSecond
    let profile = try Devices.profile(device) { _ = try run(1, records: false) } ?? [:]
    kernels = profile.map {
      Kernel(name: $0.key, launches: $0.value.launches, milliseconds: $0.value.milliseconds)
    }.sorted { ($0.milliseconds, $1.name) > ($1.milliseconds, $0.name) }
  }

  /// A model of that name whose large matrices repeat a million random numbers: made in no time, and
  /// as much work as any other.
  static func model(_ name: String, on device: any Device) throws -> LanguageModel {
    try LanguageModel(
      try Presets.configuration(name), source: RepeatedParameters(on: device), device: device)
  }

  private final class RepeatedParameters: ParameterSource {
    private let device: any Device
    private let rest: RandomParameters
    private let block = CounterGenerator(seed: 1).uniforms(1_048_573, -1, 1)

    init(on device: any Device) {
      self.device = device
      rest = RandomParameters(seed: 1, device: device)
    }

    func value(name: String, shape: Shape, initializer: Initializer) -> Tensor? {
      guard shape.rank == 2, shape.elementCount >= 1 << 16 else {
        return rest.value(name: name, shape: shape, initializer: initializer)
      }
      let scale = 1 / Float(shape[1]).squareRoot()
      var values: [Float] = []
      values.reserveCapacity(shape.elementCount + block.count)
      let scaled = block.map { $0 * scale }
      while values.count < shape.elementCount { values += scaled }
      values.removeLast(values.count - shape.elementCount)
      return Tensor(values, shape: shape, on: device)
    }
  }

  /// Operations a second of a large product of random numbers.
  static func productRate(on device: any Device) throws -> Double {
    let size = device.id.name.hasPrefix("cuda") ? 8192 : 1024
    let precision = ComputePrecision.current
    let type = ComputePrecision.activations(on: device)
    func random(_ name: String) -> Tensor {
      let values = CounterGenerator(seed: 1, name: name).uniforms(size * size, -1, 1)
      let t = Tensor(values, shape: [size, size], on: device)
      return type == .float32 ? t : t.cast(to: type)
    }
    let (a, b) = (random("a"), random("b"))
    let times = try Measurement.times(on: device, 0.2) {
      _ = a.matmul(b, precision: precision, output: type)
    }
    return 2 * Double(size * size * size) / times[times.count / 2]
  }

  func print(limit: Int) {
    Terminal.line(
      "\(model), batch \(batch) × \(length): \(Format.time(stepSeconds)) a step, "
        + "\(Format.grouped(Int(tokensPerSecond))) tokens/s, "
        + "\(Format.count(flopsPerSecond, "FLOP/s")), "
        + "\(Format.fixed(flopsPerSecond / productFlopsPerSecond * 100, 1)) % of "
        + "\(Format.count(productFlopsPerSecond, "FLOP/s")); peak \(Format.bytes(peakBytes))"
        + (launches.map { "; \($0) launches, \(way), \(Format.time(opByOpSeconds)) op by op" } ?? "")
    )
    Terminal.line(
      "losses " + losses.map { Format.fixed($0, 6) }.joined(separator: " ")
        + ", \(Format.grouped(parameters)) parameters")
    guard !kernels.isEmpty else { return }
    let total = kernels.reduce(0) { $0 + $1.milliseconds }
    var table = Table([
      ("kernel", .left), ("launches", .right), ("ms a step", .right), ("", .right),
    ])
    for kernel in kernels.prefix(limit) {
      table.add([
        kernel.name, "\(kernel.launches)", Format.fixed(kernel.milliseconds, 3),
        "\(Format.fixed(kernel.milliseconds / total * 100, 1)) %",
      ])
    }
    table.add(["all", "\(kernels.reduce(0) { $0 + $1.launches })", Format.fixed(total, 3), ""])
    table.print()
  }
}
