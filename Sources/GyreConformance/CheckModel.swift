import FoundationEssentials
import GyreLayers
import GyreMixers
import GyreModels
import GyreRecurrence
import GyreTensors

/// The laws of whole models: the loss's gradient is its derivative, recomputing activations changes
/// nothing, all forms and one token at a time give the same logits.
enum CheckModel {
  static func cases() -> [ConformanceCase] {
    let stacks = MixerCatalog.mixers.map { ([$0.kind], "gated_mlp", NormLayer.Kind.rms) }
    let hybrids = [
      (["gated_delta_net", "softmax_attention", "rg_lru"], "gated_mlp", NormLayer.Kind.rms),
      (["rwkv7", "min_gru"], "rwkv7_channel_mix", .layer),
    ]
    // The same blocks run over more than once, with a state of each time's own.
    let looped = [(["rwkv7", "softmax_attention"], "rwkv7_channel_mix", NormLayer.Kind.layer)]
    let all = (stacks + hybrids).map { ($0, 1) } + looped.map { ($0, 3) }
    return all.enumerated().flatMap { index, entry in
      let ((pattern, feedForward, norm), loops) = entry
      var tags: Set<ConformanceCase.Tag> = [.model]
      if index >= stacks.count { tags.insert(.small) }
      let name = pattern.joined(separator: "+") + (loops > 1 ? " looped \(loops)" : "")
      return laws.map { law in
        ConformanceCase("model \(name) \(law.name)", tags) { check in
          let subject = try ModelSubject(
            configuration(
              pattern, feedForward, norm, loops: loops,
              vocabulary: index.isMultiple(of: 2) ? 11 : 29),
            seed: check.seed, on: check.device)
          try law.body(subject, &check)
        }
      }
    }
  }

  private struct Law: Sendable {
    let name: String
    let body: @Sendable (ModelSubject, inout Check) throws -> Void
  }
  private static let laws = [
    Law(name: "derivative") { try derivative($0, &$1) },
    Law(name: "recomputation") { try recomputation($0, &$1) },
    Law(name: "decoding") { try decoding($0, &$1) },
  ]

  /// One layer more than the pattern is long, with the first options that its checks use. A vocabulary
  /// of less than half the tokens makes the first layer work on the embedding's rows.
  private static func configuration(
    _ pattern: [String], _ feedForward: String, _ norm: NormLayer.Kind, loops: Int,
    vocabulary: Int
  ) throws -> ModelConfiguration {
    var c = ModelConfiguration()
    c.vocabulary = vocabulary
    c.width = 32
    c.layers = pattern.count + 1
    c.pattern = pattern
    c.loops = loops
    c.norm = norm
    c.normalizesEmbedding = norm == .layer
    c.feedForward = feedForward
    for kind in Set(pattern) {
      guard let type = MixerCatalog.type(of: kind) else { continue }
      c.mixers[kind] = try options(type)
    }
    return c
  }

  private static func options<M: SequenceMixer>(_: M.Type) throws -> JSONValue {
    guard let first = M.testConfigurations.first else { return .object([:]) }
    return try JSONDecoder().decode(JSONValue.self, from: JSONEncoder().encode(first))
  }

  /// d loss(θ + ε d)/dε at 0 for d the gradient's direction, against ‖gradient‖.
  private static func derivative(_ subject: ModelSubject, _ check: inout Check) throws {
    let (loss, gradients) = try subject.gradients()
    check.finite("loss", [loss])
    let norm = gradients.joined().reduce(0) { $0 + $1 * $1 }.squareRoot()
    check.require("some parameter matters", norm > 1e-3)
    check.finite("gradient", [norm])
    func slope(_ step: Double) throws -> Double {
      let up = try subject.loss(moved: gradients, by: step / norm)
      return (up - (try subject.loss(moved: gradients, by: -step / norm))) / (2 * step)
    }
    // Changes of the loss that float32 resolves to a few thousandths; the cubic term drops out.
    let step = 1e-3 / norm
    let extrapolated = (4 * (try slope(step / 2)) - (try slope(step))) / 3
    check.compare(
      "derivative along the gradient", [extrapolated], [norm], Tolerance.lossDifferences)
  }

  private static func recomputation(_ subject: ModelSubject, _ check: inout Check) throws {
    var again = subject
    again.model.rematerializes = true
    let (kept, recomputed) = (try subject.gradients(), try again.gradients())
    check.identical("loss", [recomputed.loss], [kept.loss])
    check.compare(
      "gradients", Array(recomputed.gradients.joined()), Array(kept.gradients.joined()),
      Tolerance.gradients)
  }

  private static func decoding(_ subject: ModelSubject, _ check: inout Check) throws {
    let whole = try subject.logits([0..<subject.tokenCount], .parallel)
    check.finite("logits", whole)
    for (what, cuts, form) in [
      ("chunkwise", [0..<subject.tokenCount], SequenceForm.chunkwise(size: 4)),
      ("prompt and tokens", [0..<7, 7..<8, 8..<9, 9..<subject.tokenCount], .chunkwise),
      ("token by token", (0..<subject.tokenCount).map { $0..<$0 + 1 }, .recurrent),
    ] {
      check.compare(what, try subject.logits(cuts, form), whole, 2 * Tolerance.outputs)
    }
    for rows in [[0], [0, 1]] {
      guard let found = try subject.programLogits(prompt: 7, rows: rows) else { continue }
      let size = whole.count / 2
      check.compare(
        "token program, \(rows.count) rows", found, Array(whole.prefix(rows.count * size)),
        2 * Tolerance.outputs)
    }
    if let found = try subject.recordedLogits(prompt: 7) {
      check.compare("recorded step", found, whole, 2 * Tolerance.outputs)
    }
  }
}

/// A model with noise on its parameters, and tokens for it.
struct ModelSubject {
  var model: LanguageModel
  let tokenCount = 13
  private let batch = 2
  private let device: any Device
  private let tokens, targets: [Int32]

  init(_ configuration: ModelConfiguration, seed: UInt64, on device: any Device) throws {
    self.device = device
    model = try LanguageModel(
      configuration, source: PerturbedParameters(seed: seed, device: device), device: device)
    let generator = CounterGenerator(seed: seed, name: "tokens")
    let drawn = (0..<batch * tokenCount * 2).map {
      Int32(generator.integer(UInt64($0), below: configuration.vocabulary))
    }
    tokens = Array(drawn.prefix(batch * tokenCount))
    targets = Array(drawn.suffix(batch * tokenCount))
  }

  private func tensor(_ values: [Int32], _ range: Range<Int>) -> Tensor {
    let part = (0..<batch).flatMap { row in range.map { values[row * tokenCount + $0] } }
    return Tensor(part, shape: [batch, range.count], on: device)
  }

  private func loss() -> Tensor {
    var state = model.makeState(batch: batch)
    let all = 0..<tokenCount
    return model.loss(
      tensor(tokens, all), targets: tensor(targets, all), state: &state,
      form: .chunkwise(size: 8)
    ).mean
  }

  func gradients() throws -> (loss: Double, gradients: [[Double]]) {
    let values = model.parameters.map(\.value)
    let tape = Tape()
    tape.watch(values)
    let mean = tape.record { loss() }
    let found = tape.gradients(of: mean, for: values)
    return (
      try mean.item(),
      try zip(found, values).map { gradient, value in
        try gradient?.doubles() ?? [Double](repeating: 0, count: value.elementCount)
      }
    )
  }

  /// The loss with all parameters moved along a direction, which is undone.
  func loss(moved direction: [[Double]], by step: Double) throws -> Double {
    let before = model.parameters.map(\.value)
    defer { for (p, value) in zip(model.parameters, before) { p.value = value } }
    for (p, d) in zip(model.parameters, direction) {
      let moved = zip(try p.value.doubles(), d).map { Float($0 + step * $1) }
      p.value = Tensor(moved, shape: p.shape, on: device)
    }
    return try loss().item()
  }

  /// The logits of some rows after a prompt of the first tokens, by the device's token program; nil
  /// without one.
  func programLogits(prompt: Int, rows: [Int]) throws -> [Double]? {
    guard let device = device as? any TokenProgramDevice else { return nil }
    return try continuedLogits(prompt: prompt, rows: rows) { state in
      guard let (program, logits) = model.tokenProgram(from: state),
        let runner = device.makeRunner(
          program, logits: logits, vocabulary: model.configuration.vocabulary, position: prompt,
          precision: .float32, draw: TokenDraw())
      else { return nil }
      return { try runner.logits(after: $0) }
    }
  }

  /// The same of all rows by a recorded step; nil where the device does not record it.
  func recordedLogits(prompt: Int) throws -> [Double]? {
    try continuedLogits(prompt: prompt, rows: Array(0..<batch)) { state in
      RecordedStep(model, from: state, room: 3).map { step in { try step.next($0) } }
    }
  }

  private func continuedLogits(
    prompt: Int, rows: [Int], _ start: (ModelState) -> (([Int32]) throws -> [Float])?
  ) throws -> [Double]? {
    var state = model.makeState(batch: batch)
    let vocabulary = model.configuration.vocabulary
    let hidden = model.hidden(tensor(tokens, 0..<prompt), state: &state, form: .chunkwise)
    let first = try model.logits(hidden).doubles()
    guard let next = start(state.rows(rows)) else { return nil }
    var values = [Double](repeating: 0, count: rows.count * tokenCount * vocabulary)
    for row in rows {
      let to = row * tokenCount * vocabulary
      let count = prompt * vocabulary
      values.replaceSubrange(to..<to + count, with: first[row * count..<(row + 1) * count])
    }
    for t in prompt..<tokenCount {
      let part = try next(rows.map { tokens[$0 * tokenCount + t] })
      for row in rows {
        let to = (row * tokenCount + t) * vocabulary
        for i in 0..<vocabulary { values[to + i] = Double(part[row * vocabulary + i]) }
      }
    }
    return values
  }

  /// Logits `[B, T, V]` of the sequence in pieces.
  func logits(_ pieces: [Range<Int>], _ form: SequenceForm) throws -> [Double] {
    var state = model.makeState(batch: batch)
    let vocabulary = model.configuration.vocabulary
    var values = [Double](repeating: 0, count: batch * tokenCount * vocabulary)
    for piece in pieces {
      let hidden = model.hidden(tensor(tokens, piece), state: &state, form: form)
      let part = try model.logits(hidden).doubles()
      for row in 0..<batch {
        let count = piece.count * vocabulary
        let to = (row * tokenCount + piece.lowerBound) * vocabulary
        values.replaceSubrange(to..<to + count, with: part[row * count..<(row + 1) * count])
      }
    }
    return values
  }
}
