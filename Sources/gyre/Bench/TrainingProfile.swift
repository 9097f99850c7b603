import GyreLayers
import GyreModels
import GyrePlatform
import GyreTensors

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
    var step = TrainingStep(trained)
    parameters = trained.parameterCount
    let count = batch * length
    let ids = (0...UInt64(count)).map {
      Int32(CounterGenerator(seed: 1).integer($0, below: trained.configuration.vocabulary))
    }
    let tokens = Tensor(Array(ids[..<count]), shape: [batch, length], on: device)
    let targets = Tensor(Array(ids[1...count]), shape: [batch, length], on: device)
    losses = try (0..<3).map { _ in try step.run(tokens, targets: targets).item() }
    try device.synchronize()
    device.resetPeakMemory()
    let clock = ContinuousClock()
    var times: [Double] = []
    let launchesBefore = Devices.launchCount(of: device)
    // Pairs of steps: the first one's loss is read while the second one runs.
    for _ in 0..<max(steps / 2, 1) {
      let start = clock.now
      for _ in 0..<2 { step.run(tokens, targets: targets) }
      try device.synchronize()
      times.append((clock.now - start).seconds / 2)
    }
    let launched = Devices.launchCount(of: device)
    launches = launched.flatMap { l in
      launchesBefore.map { (l - $0) / (2 * max(steps / 2, 1)) }
    }
    peakBytes = device.memory.peak
    stepSeconds = times.sorted()[times.count / 2]
    tokensPerSecond = Double(count) / stepSeconds
    flopsPerSecond = 6 * Double(parameters) * tokensPerSecond
    let profile = try Devices.profile(device) { step.run(tokens, targets: targets) } ?? [:]
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
        + (launches.map { "; \($0) launches" } ?? ""))
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
