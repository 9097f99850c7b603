import GyreLayers
import GyreMixers
import GyreRecurrence
import GyreTensors

/// The state of every layer for a batch of sequences: a value, constant in size for recurrent
/// layers.
public struct ModelState: Sendable {
  /// One a sublayer, in the model's order.
  public var layers: [State]
  public let batch: Int

  /// Tokens consumed so far.
  public var tokenCount: Int { layers.first?.tokenCount ?? 0 }

  /// The state of some rows.
  public func rows(_ indices: [Int]) -> ModelState {
    ModelState(layers: layers.map { $0.rows(indices) }, batch: indices.count)
  }

  /// The same values cut off from the tape.
  public func detached() -> ModelState {
    ModelState(layers: layers.map { $0.detached() }, batch: batch)
  }
}

/// A stack of residual layers over tokens:
///
///     x ← E[tokens];   x ← x + mixer(norm(x));   x ← x + feedForward(norm(x));   logits = norm(x) Wᵀ
public struct LanguageModel: Sendable {
  public let configuration: ModelConfiguration
  /// All parameters in a fixed order.
  public let parameters: [Parameter]
  private let embedding: Parameter
  private let embeddingNorm: NormLayer?
  private let blocks: [Block]
  private let finalNorm: NormLayer
  private let headWeight: Parameter
  /// Whether the backward pass computes each block again instead of keeping its activations.
  public var rematerializes = false

  /// - Throws: the field of the configuration that cannot be built.
  public init(
    _ configuration: ModelConfiguration, source: any ParameterSource, device: any Device
  ) throws(ConfigurationError) {
    try configuration.validate()
    self.configuration = configuration
    let c = configuration
    var p = ParameterBuilder(source: source, device: device)
    embedding = try p.parameter(
      "embedding.weight", [c.vocabulary, c.width], .normal(standardDeviation: c.initialDeviation),
      decay: WeightDecay.none)
    embeddingNorm =
      c.normalizesEmbedding
      ? try NormLayer(
        "embedding_norm", c.width, kind: c.norm, epsilon: c.normEpsilon, bias: c.norm == .layer, &p)
      : nil
    var blocks: [Block] = []
    for index in 0..<c.layers {
      blocks.append(
        try p.scoped("layers.\(index)") { p throws(ConfigurationError) in
          try Block(c, LayerPosition(index: index, count: c.layers), &p)
        })
    }
    self.blocks = blocks
    finalNorm = try NormLayer(
      "norm", c.width, kind: c.norm, epsilon: c.normEpsilon, bias: c.norm == .layer, &p)
    headWeight =
      c.tiesEmbedding
      ? embedding
      : try p.parameter(
        "head.weight", [c.vocabulary, c.width], .normal(standardDeviation: c.initialDeviation))
    parameters = p.parameters
  }

  public var parameterCount: Int { parameters.reduce(0) { $0 + $1.shape.elementCount } }
  public var device: any Device { embedding.value.device }

  /// What each sublayer remembers of a sequence.
  public var stateSpecs: [StateSpec] { blocks.flatMap { $0.sublayers.map(\.map.stateSpec) } }

  public func makeState(batch: Int) -> ModelState {
    ModelState(layers: stateSpecs.map { State($0, batch: batch) }, batch: batch)
  }

  /// Bytes of state per sequence.
  public func stateByteCount(tokenCount: Int) -> Int {
    stateSpecs.reduce(0) { $0 + $1.byteCount(tokenCount: tokenCount) }
  }

  /// Hidden states after the final norm.
  ///
  /// - Parameters:
  ///   - tokens: int32 `[B, T]`, in [0, vocabulary).
  ///   - state: read before the first token and replaced.
  ///   - reset: int32 `[B, T]`, nonzero at the first token of a document.
  /// - Returns: `[B, T, D]`.
  public func hidden(
    _ tokens: Tensor, state: inout ModelState, form: SequenceForm = .chunkwise,
    reset: Tensor? = nil
  ) -> Tensor {
    var x = embedding.value.embedded(tokens)
    if configuration.embeddingScale != 1 { x = x * configuration.embeddingScale }
    if let embeddingNorm { x = embeddingNorm(x) }
    var context = SequenceContext(form: form, reset: reset)
    var next = 0
    for block in blocks {
      let range = next..<next + block.sublayers.count
      next = range.upperBound
      var states = Array(state.layers[range])
      x =
        rematerializes && Tape.current != nil
        ? block.rematerialized(x, &states, &context) : block(x, &states, &context)
      for i in states.indices { states[i].tokenCount += tokens.shape[1] }
      state.layers.replaceSubrange(range, with: states)
    }
    return finalNorm(x)
  }

  /// Logits of hidden states, `[…, D]` to `[…, vocabulary]`.
  public func logits(_ hidden: Tensor) -> Tensor {
    let logits = hidden.linear(headWeight.value)
    guard let cap = configuration.logitCap else { return logits }
    return (logits / cap).tanh() * cap
  }

  /// Mean cross-entropy in nats of predicting `targets` `[B, T]` (negative: ignored), and that of
  /// each token.
  public func loss(
    _ tokens: Tensor, targets: Tensor, state: inout ModelState, form: SequenceForm = .chunkwise,
    reset: Tensor? = nil
  ) -> (mean: Tensor, rows: Tensor) {
    let h = hidden(tokens, state: &state, form: form, reset: reset)
    if configuration.logitCap != nil { return logits(h).crossEntropy(targets) }
    return h.crossEntropy(head: headWeight.value, targets)
  }
}

/// One residual layer: sublayers with a norm before each.
struct Block: Sendable {
  struct Sublayer: Sendable {
    var norm: NormLayer
    var map: any SequenceMixer
  }
  let sublayers: [Sublayer]

  init(
    _ c: ModelConfiguration, _ layer: LayerPosition, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    var kinds = [("mixer", c.pattern[layer.index % c.pattern.count])]
    if let feedForward = c.feedForward { kinds.append(("feed_forward", feedForward)) }
    var sublayers: [Sublayer] = []
    for (name, kind) in kinds {
      let norm = try NormLayer(
        name + "_norm", c.width, kind: c.norm, epsilon: c.normEpsilon, bias: c.norm == .layer, &p)
      let options = name == "mixer" ? c.options(of: kind) : c.feedForwardOptions
      let map = try p.scoped(name) { p throws(ConfigurationError) in
        try Layers.make(kind, options, width: c.width, layer: layer, &p)
      }
      sublayers.append(Sublayer(norm: norm, map: map))
    }
    self.sublayers = sublayers
  }

  func callAsFunction(
    _ x: Tensor, _ states: inout [State], _ context: inout SequenceContext
  ) -> Tensor {
    var x = x
    for (i, sublayer) in sublayers.enumerated() {
      x = x + sublayer.map(sublayer.norm(x), state: &states[i], context: &context)
    }
    return x
  }

  /// The same, computed again in the backward pass instead of keeping what happens inside.
  func rematerialized(
    _ x: Tensor, _ states: inout [State], _ context: inout SequenceContext
  ) -> Tensor {
    let shared = context.shared.sorted { $0.key < $1.key }
    let entries = states.enumerated().flatMap { i, state in
      state.tensors.map { (i, $0.name, $0.tensor) }
    }
    let (before, initial) = (context, states)
    // Which tensors come out is known only after the first run; later runs give the same.
    let layout = OutputLayout()
    let outputs = Tape.rematerialize([x] + shared.map(\.value) + entries.map(\.2)) { inputs in
      var context = before
      var states = initial
      for (j, item) in shared.enumerated() { context.shared[item.key] = inputs[1 + j] }
      for (j, item) in entries.enumerated() {
        states[item.0][item.1] = inputs[1 + shared.count + j]
      }
      let y = self(inputs[0], &states, &context)
      let sharedOut = context.shared.sorted { $0.key < $1.key }
      let statesOut = states.enumerated().flatMap { i, state in
        state.tensors.map { (i, $0.name, $0.tensor) }
      }
      layout.set(shared: sharedOut.map(\.key), states: statesOut.map { ($0.0, $0.1) })
      return [y] + sharedOut.map(\.value) + statesOut.map(\.2)
    }
    let (names, places) = layout.value
    for (j, name) in names.enumerated() { context.shared[name] = outputs[1 + j] }
    for (j, place) in places.enumerated() {
      states[place.0][place.1] = outputs[1 + names.count + j]
    }
    return outputs[0]
  }
}
