import GyreInference
import GyreLayers
import GyreModels
import GyreRecurrence
import GyreTensors

/// Decoding of the presets: seconds a step beside the floor, the larger of the bytes of weights and
/// states over the measured bandwidth and the operations over the measured peak.
struct DecodeRows: Encodable {
  struct Row: Encodable {
    var model: String
    var batch, context: Int
    var way: Decoder.Way
    var parameters: Int
    var secondsPerStep, floorSeconds, tokensPerS: Double
    /// ‖program − op by op‖/‖op by op‖ of the logits of the first steps; of many sequences ‖together −
    /// in two halves‖/‖in two halves‖.
    var deviation: Double?
  }
  /// Bytes in use before and after many tokens.
  struct LongRun: Encodable {
    var model: String
    var tokens: Int
    var seconds: Double
    var bytesBefore, bytesAfter: Int
  }
  var rows: [Row] = []
  var longRun: LongRun?

  static let vocabulary = 32_768
  static let batches = [1, 256]
  static var names: [String] { Presets.names.filter { !$0.hasSuffix("-10m") && $0 != "tiny" } }

  /// - Parameter longTokens: also decodes so many tokens with the demonstration's model.
  init(
    on device: any Device, _ machine: MachinePeaks, only: String?, batches: [Int],
    longTokens: Int, progress: (String) -> Void
  ) throws {
    for name in Presets.names
    where only.map({ name.contains($0) }) ?? DecodeRows.names.contains(name) {
      progress(name)
      let model = try DecodeRows.model(name, vocabulary: DecodeRows.vocabulary, on: device)
      for batch in batches {
        progress("\(name), batch \(batch)")
        rows.append(try DecodeRows.row(name, model, batch, machine))
      }
    }
    if longTokens > 0 {
      progress("\(longTokens) tokens")
      longRun = try DecodeRows.long(longTokens, on: device)
    }
  }

  private static func model(
    _ name: String, vocabulary: Int, on device: any Device
  ) throws -> LanguageModel {
    try LanguageModel(
      try Presets.configuration(name, vocabulary: vocabulary),
      source: RepeatedParameters(on: device),
      device: device)
  }

  /// A state after some tokens. Attention decodes against a context of some length.
  private static func start(_ model: LanguageModel, batch: Int, context: Int) -> ModelState {
    var state = model.makeState(batch: batch)
    let vocabulary = model.configuration.vocabulary
    let prompt = (0..<batch * context).map {
      Int32(CounterGenerator(seed: 2).integer(UInt64($0), below: vocabulary))
    }
    _ = model.hidden(Tensor(prompt, shape: [batch, context], on: model.device), state: &state)
    return state
  }

  private static func row(
    _ name: String, _ model: LanguageModel, _ batch: Int, _ machine: MachinePeaks
  ) throws -> Row {
    let hasCache = model.stateSpecs.contains { spec in
      spec.entries.contains { if case .cache = $0.kind { true } else { false } }
    }
    let context = hasCache ? 512 : 64
    let state = start(model, batch: batch, context: context)
    let tokens = (0..<batch).map { Int32($0 % model.configuration.vocabulary) }
    let deviation =
      batch == 1
      ? try deviation(model, state)
      // Caches of attention would have to be there twice.
      : hasCache ? nil : try deviationOfHalves(model, state, tokens)
    var decoder = Decoder(model, from: state, reading: tokens)
    for _ in 0..<4 { try decoder.step() }
    try model.device.synchronize()
    let clock = ContinuousClock()
    func seconds(_ steps: Int) throws -> Double {
      let start = clock.now
      for _ in 0..<steps { try decoder.step() }
      try model.device.synchronize()
      return (clock.now - start).seconds / Double(steps)
    }
    let steps = max(4, min(400, Int(0.1 / (try seconds(4)))))
    let times = try (0..<5).map { _ in try seconds(steps) }.sorted()
    var (weights, products) = (0, 0)
    for parameter in model.parameters {
      let bytes = parameter.value.byteCount
      if parameter.name == "embedding.weight", !model.configuration.tiesEmbedding {
        weights += bytes / parameter.shape[0] * batch
      } else {
        weights += bytes
        if CheckpointParameters.isMatrix(parameter.shape) {
          products += parameter.shape.elementCount
        }
      }
    }
    let moved = model.stateSpecs.reduce(0) { sum, spec in
      sum + spec.entries.reduce(0) { $0 + $1.decodeBytes(tokenCount: context) }
    }
    let floor = max(
      Double(weights + batch * moved) / machine.bandwidth,
      2 * Double(products) * Double(batch) / machine.flops)
    return Row(
      model: name, batch: batch, context: context, way: decoder.way,
      parameters: model.parameterCount, secondsPerStep: times[2], floorSeconds: floor,
      tokensPerS: Double(batch) / times[2], deviation: deviation)
  }

  private static func deviation(_ model: LanguageModel, _ state: ModelState) throws -> Double? {
    guard let runner = model.makeRunner(from: state, TokenDraw()) else { return nil }
    var (difference, size) = (0.0, 0.0)
    var ops = state
    for step in 0..<6 {
      let token = Int32(step * 7 % model.configuration.vocabulary)
      let found = try runner.logits(after: [token])
      let hidden = model.hidden(
        Tensor([token], shape: [1, 1], on: model.device), state: &ops, form: .recurrent)
      for (a, b) in zip(found, try model.logits(hidden).floats()) {
        difference += Double(a - b) * Double(a - b)
        size += Double(b) * Double(b)
      }
    }
    return (difference / size).squareRoot()
  }

  /// Few rows take other products and other cuts of kernels than many.
  private static func deviationOfHalves(
    _ model: LanguageModel, _ state: ModelState, _ tokens: [Int32]
  ) throws -> Double? {
    let half = state.batch / 2
    func logits(_ rows: Range<Int>, _ state: inout ModelState) throws -> [Float] {
      let tokens = Tensor(Array(tokens[rows]), shape: [rows.count, 1], on: model.device)
      return try model.logits(model.hidden(tokens, state: &state, form: .recurrent)).floats()
    }
    var all = state
    var parts = [0..<half, half..<state.batch].map { ($0, state.rows(Array($0))) }
    var (difference, size) = (0.0, 0.0)
    for _ in 0..<2 {
      let found = try logits(0..<state.batch, &all)
      var expected: [Float] = []
      for i in parts.indices { expected += try logits(parts[i].0, &parts[i].1) }
      for (a, b) in zip(found, expected) {
        difference += Double(a - b) * Double(a - b)
        size += Double(b) * Double(b)
      }
    }
    return (difference / size).squareRoot()
  }

  private static func long(_ tokens: Int, on device: any Device) throws -> LongRun {
    let model = try model("tiny", vocabulary: 256, on: device)
    var decoder = Decoder(model, from: start(model, batch: 1, context: 64), reading: [1])
    for _ in 0..<100 { try decoder.step() }
    try device.synchronize()
    let before = device.memory
    let clock = ContinuousClock()
    let start = clock.now
    for _ in 0..<tokens { try decoder.step() }
    try device.synchronize()
    let after = device.memory
    return LongRun(
      model: "tiny", tokens: tokens, seconds: (clock.now - start).seconds,
      bytesBefore: before.inUse + before.cached, bytesAfter: after.inUse + after.cached)
  }

  func print() {
    var table = Table([
      ("model", .left), ("batch", .right), ("way", .left), ("a step", .right), ("floor", .right),
      ("of floor", .right), ("tokens/s", .right), ("deviation", .right),
    ])
    for row in rows {
      table.add([
        row.model, "\(row.batch)", row.way.rawValue, Format.time(row.secondsPerStep),
        Format.time(row.floorSeconds),
        "\(Format.fixed(row.floorSeconds / row.secondsPerStep * 100, 1)) %",
        Format.grouped(Int(row.tokensPerS)), row.deviation.map(Format.error) ?? "",
      ])
    }
    if !rows.isEmpty { table.print() }
    if let longRun {
      Terminal.line(
        "\(longRun.model): \(Format.grouped(longRun.tokens)) tokens in "
          + "\(Format.fixed(longRun.seconds, 1)) s, memory \(longRun.bytesBefore) B before, "
          + "\(longRun.bytesAfter) B after")
    }
  }
}

/// Parameters for timing: matrices repeat one block of normal numbers over √inputs, which is made once.
private final class RepeatedParameters: ParameterSource {
  private let device: any Device
  private let block: [Float]
  private var offset = 0

  init(on device: any Device) {
    self.device = device
    block = CounterGenerator(seed: 3).normals((1 << 20) + 77)
  }

  func value(name: String, shape: Shape, initializer: Initializer) -> Tensor? {
    guard CheckpointParameters.isMatrix(shape) else {
      return Tensor(
        initializer.elements(shape, CounterGenerator(seed: 3, name: name)), shape: shape, on: device
      )
    }
    let scale = 1 / Float(shape.last).squareRoot()
    let isHalf = ComputePrecision.current == .bfloat16 && device.storesBFloat16
    func tiled<Element>(_ values: [Element]) -> [Element] {
      var result: [Element] = []
      result.reserveCapacity(shape.elementCount)
      var at = offset
      while result.count < shape.elementCount {
        let n = min(values.count - at, shape.elementCount - result.count)
        result += values[at..<at + n]
        at = 0
      }
      offset = (offset + 7919) % values.count
      return result
    }
    let scaled = block.map { $0 * scale }
    guard isHalf else { return Tensor(tiled(scaled), shape: shape, on: device) }
    return tiled(scaled.map(BFloat16.bits)).withUnsafeBytes {
      Tensor(bytes: $0, spec: TensorSpec(shape, .bfloat16), on: device)
    }
  }
}
