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

  /// Several batches as one, row after row.
  ///
  /// - Precondition: at least one; all have seen equally many tokens.
  public init(joining parts: [ModelState]) {
    self.init(
      layers: parts[0].layers.indices.map { i in State(joining: parts.map { $0.layers[i] }) },
      batch: parts.reduce(0) { $0 + $1.batch })
  }

  /// Whether nothing follows the next call's tokens; see `State.isLast`.
  package var isLast: Bool {
    get { layers.allSatisfy(\.isLast) }
    set { for i in layers.indices { layers[i].isLast = newValue } }
  }

  init(layers: [State], batch: Int) { (self.layers, self.batch) = (layers, batch) }

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
  let embedding: Parameter
  let embeddingNorm: NormLayer?
  let blocks: [Block]
  let finalAttention: ResidualAttention?
  let finalNorm: NormLayer
  let headWeight: Parameter
  /// Whether the backward pass computes each block again instead of keeping its activations.
  public var rematerializes = false
  /// Where layers get their states from and hand them on to while the sequence is spread over devices;
  /// nil for whole sequences.
  public var relay: (any StateRelay)?

  /// - Throws: the field of the configuration that cannot be built.
  public init(
    _ configuration: ModelConfiguration, source: any ParameterSource, device: any Device
  ) throws(ConfigurationError) {
    try configuration.validate()
    self.configuration = configuration
    let c = configuration
    var p = ParameterBuilder(source: source, device: device)
    embedding = try p.matrix(
      "embedding.weight", [c.vocabulary, c.width], .normal(standardDeviation: c.initialDeviation),
      decay: WeightDecay.none)
    embeddingNorm = c.normalizesEmbedding ? try c.makeNorm("embedding_norm", &p) : nil
    var blocks: [Block] = []
    for index in 0..<c.layers {
      blocks.append(
        try p.scoped("layers.\(index)") { p throws(ConfigurationError) in
          try Block(c, LayerPosition(index: index, count: c.layers), &p)
        })
    }
    self.blocks = blocks
    finalAttention =
      c.residual == .attention ? try c.makeResidualAttention("residual", &p) : nil
    finalNorm = try c.makeFinalNorm(&p)
    headWeight =
      c.tiesEmbedding
      ? embedding
      : try p.matrix(
        "head.weight", [c.vocabulary, c.width], .normal(standardDeviation: c.initialDeviation))
    parameters = p.parameters
  }

  /// The model without numbers: names, shapes and states, for who counts or checks them. Nothing is allocated.
  ///
  /// - Throws: the field that cannot be built.
  public init(
    outline configuration: ModelConfiguration, on device: NullDevice = NullDevice()
  ) throws(ConfigurationError) {
    try self.init(configuration, source: UninitializedParameters(device: device), device: device)
  }

  public var parameterCount: Int { parameters.reduce(0) { $0 + $1.shape.elementCount } }
  public var device: any Device { embedding.value.device }

  /// What each sublayer remembers of a sequence, once for each time that the stack is run over.
  public var stateSpecs: [StateSpec] { passes.flatMap { $0.sublayers.map(\.map.stateSpec) } }

  /// Whether some layer's state grows with the text and has no limit.
  public var hasUnboundedState: Bool { stateSpecs.contains(where: \.isUnbounded) }

  /// The blocks in the order in which a token passes them.
  var passes: [Block] {
    configuration.loops == 1
      ? blocks : Array(repeating: blocks, count: configuration.loops).flatMap { $0 }
  }

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
    var context = SequenceContext(form: form, reset: reset)
    return hidden(tokens, state: &state, context: &context)
  }

  private func hidden(
    _ tokens: Tensor, state: inout ModelState, context: inout SequenceContext
  ) -> Tensor {
    var x = embedding.value.embedded(tokens)
    if let noise = context.dropout, configuration.embeddingDropout > 0 {
      // A dropped token is dropped wherever it stands.
      let kept = noise.mask(
        [configuration.vocabulary, 1], rate: configuration.embeddingDropout, name: "embedding",
        on: device)
      x = x * kept.embedded(tokens)
    }
    if configuration.embeddingScale != 1 { x = x * configuration.embeddingScale }
    if let embeddingNorm { x = embeddingNorm(x) }
    var stream = ResidualStream(x: x)
    var next = 0
    for block in passes {
      let range = next..<next + block.sublayers.count
      next = range.upperBound
      var states = Array(state.layers[range])
      if let relay { states = range.map { relay.before($0, state.layers[$0], on: x.device) } }
      if rematerializes, Tape.current != nil {
        stream = ResidualStream(x: block.rematerialized(stream.settled(), &states, &context))
      } else {
        block.pass(&stream, &states, &context)
      }
      for i in states.indices { states[i].advance(by: tokens.shape[context.isTimeMajor ? 0 : 1]) }
      if let relay { for (i, layer) in range.enumerated() { relay.after(layer, states[i]) } }
      state.layers.replaceSubrange(range, with: states)
    }
    guard let finalAttention else { return stream.normed(by: finalNorm) }
    return finalNorm(finalAttention(ResidualAttention.blocks(context) + [stream.settled()]))
  }

  /// Logits of hidden states, `[…, D]` to `[…, vocabulary]`.
  public func logits(_ hidden: Tensor) -> Tensor {
    let logits = hidden.linear(headWeight.value)
    guard let cap = configuration.logitCap else { return logits }
    return (logits / cap).tanh() * cap
  }

  /// What training minimises, the mean cross-entropy in nats of predicting `targets` `[B, T]`
  /// (negative: ignored) plus λ times the routers' balance loss where the configuration has a
  /// `balanceFactor`, and with the gradient of the penalties on large logits, large and fast changing
  /// activations where it has a `logitPenalty`, an `activationPenalty`, a `temporalPenalty`; and the
  /// cross-entropy of each token.
  ///
  /// - Parameter dropout: the choices of a training step; nil drops nothing.
  public func loss(
    _ tokens: Tensor, targets: Tensor, state: inout ModelState, form: SequenceForm = .chunkwise,
    reset: Tensor? = nil, dropout: DropoutNoise? = nil
  ) -> (mean: Tensor, rows: Tensor) {
    if dropout == nil, prefersTimeMajor(tokens) {
      return timeMajorLoss(tokens, targets, &state, form, reset)
    }
    var context = SequenceContext(form: form, reset: reset, dropout: dropout)
    return loss(tokens, targets, &state, &context)
  }

  private func loss(
    _ tokens: Tensor, _ targets: Tensor, _ state: inout ModelState, _ context: inout SequenceContext
  ) -> (mean: Tensor, rows: Tensor) {
    let dropout = context.dropout
    let raw = hidden(tokens, state: &state, context: &context)
    let h = raw.dropped(
      configuration.outputDropout, dropout, name: "output", sharesTime: true)
    var (mean, rows) = crossEntropy(h, targets)
    if let factor = configuration.balanceFactor, let balance = context.balanceLoss {
      mean = mean + balance * factor
    }
    guard Tape.current != nil else { return (mean, rows) }
    var penalty = configuration.logitPenalty.map { logitPenalty(h) * $0 }
    if let term = activationPenalty(raw, dropped: h) { penalty = penalty.map { $0 + term } ?? term }
    if let penalty { mean = mean + (penalty - penalty.detached()) }
    return (mean, rows)
  }

  /// Recurrent cells alone, one layer after the other, on a device that reads a token of all sequences
  /// faster where they lie side by side.
  private func prefersTimeMajor(_ tokens: Tensor) -> Bool {
    // Members of a population are told apart by their rows.
    device.prefersTimeMajor && tokens.shape[0] > 1 && tokens.shape[1] > 1 && relay == nil
      && configuration.temporalPenalty == nil && Perturbation.current == nil
      && passes.allSatisfy { $0.sublayers.allSatisfy(\.map.takesTimeMajor) }
      && passes.contains { $0.sublayers.contains { !$0.map.stateSpec.entries.isEmpty } }
  }

  /// The loss by way of `[T, B, ·]`.
  private func timeMajorLoss(
    _ tokens: Tensor, _ targets: Tensor, _ state: inout ModelState, _ form: SequenceForm,
    _ reset: Tensor?
  ) -> (mean: Tensor, rows: Tensor) {
    var context = SequenceContext(form: form, reset: reset?.permuted([1, 0]))
    context.isTimeMajor = true
    let (mean, rows) = loss(tokens.permuted([1, 0]), targets.permuted([1, 0]), &state, &context)
    return (mean, rows.permuted([1, 0]))
  }

  /// The mean cross-entropy of `targets` `[B, T]` (negative: ignored) after hidden states, and that of
  /// each token.
  public func crossEntropy(_ hidden: Tensor, _ targets: Tensor) -> (mean: Tensor, rows: Tensor) {
    configuration.logitCap != nil
      ? logits(hidden).crossEntropy(targets) : hidden.crossEntropy(head: headWeight.value, targets)
  }

  /// α times the mean square of the activations and β times that of their change from token to token
  /// (Merity, McCann and Socher, "Revisiting activation regularization for language RNNs", 2017,
  /// https://arxiv.org/abs/1708.01009).
  private func activationPenalty(_ raw: Tensor, dropped: Tensor) -> Tensor? {
    func meanSquare(_ x: Tensor, _ factor: Double?) -> Tensor? {
      guard let factor, x.elementCount > 0 else { return nil }
      return apply(SumOfSquares(), [x])[0] * (factor / Double(x.elementCount))
    }
    let T = raw.shape[1]
    let size = meanSquare(dropped, configuration.activationPenalty)
    guard configuration.temporalPenalty != nil, T > 1 else { return size }
    let change = raw.sliced(1..<T, axis: 1) - raw.sliced(0..<T - 1, axis: 1)
    let speed = meanSquare(change, configuration.temporalPenalty)
    return size.map { a in speed.map { a + $0 } ?? a } ?? speed
  }

  /// Half the mean square of each position's largest logit (RWKV's L2Wrap). Logits exist for some rows
  /// at a time; only the largest ones are on the tape.
  private func logitPenalty(_ hidden: Tensor) -> Tensor {
    let flat = hidden.reshaped([-1, hidden.shape.last])
    let (rows, vocabulary) = (flat.shape[0], headWeight.shape[0])
    let piece = max(1, (1 << 25) / vocabulary)
    var sum = Tensor.zeros([1], on: hidden.device)
    for start in stride(from: 0, to: rows, by: piece) {
      let x = flat.sliced(start..<min(start + piece, rows), axis: 0)
      let largest = Tape.$current.withValue(nil) { x.linear(headWeight.value).argmax() }
      let top = (x * headWeight.value.rows(largest)).summed(to: [x.shape[0], 1])
      sum = sum + apply(SumOfSquares(), [top])[0]
    }
    return sum / Double(max(2 * rows, 1))
  }
}

/// The residual stream, with what the last sublayer gave not yet added: the next norm does both in one pass.
struct ResidualStream {
  var x: Tensor
  var part: Tensor?

  mutating func settled() -> Tensor {
    if let part { (x, self.part) = (x + part.cast(to: x.dtype), nil) }
    return x
  }

  mutating func normed(by norm: NormLayer, output: DType? = nil) -> Tensor {
    guard let part else { return norm(x) }
    let result = norm.adding(part, to: x, output: output)
    (x, self.part) = (result.sum, nil)
    return result.normed
  }
}

/// One residual layer: sublayers with a norm before each.
struct Block: Sendable {
  struct Sublayer: Sendable {
    var norm: NormLayer
    var map: any SequenceMixer
    var factors: (stream: Double, sublayer: Double)
    /// With residuals over depth; whether a block of sublayers starts here.
    var attention: ResidualAttention?
    var startsBlock = false
  }
  let sublayers: [Sublayer]
  let residual: ModelConfiguration.Residual

  init(
    _ c: ModelConfiguration, _ layer: LayerPosition, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    var sublayers: [Sublayer] = []
    for (name, entry, options) in c.sublayers(layer.index) {
      let norm = try c.makeNorm(
        name + "_norm", layer: layer.index, readsStream: Layers.readsStream(entry), &p)
      let map = try p.scoped(name) { p throws(ConfigurationError) in
        try Layers.make(entry, options, width: c.width, layer: layer, &p)
      }
      var sublayer = Sublayer(norm: norm, map: map, factors: c.factors(of: entry))
      if c.residual == .attention {
        sublayer.attention = try c.makeResidualAttention(name + "_residual", &p)
        sublayer.startsBlock = (2 * layer.index + sublayers.count) % c.residualBlock == 0
      }
      sublayers.append(sublayer)
    }
    residual = c.residual
    self.sublayers = sublayers
  }

  func pass(
    _ stream: inout ResidualStream, _ states: inout [State], _ context: inout SequenceContext
  ) {
    for (i, sublayer) in sublayers.enumerated() {
      if let attention = sublayer.attention {
        let x = stream.settled()
        let sums = ResidualAttention.blocks(context) + [x]
        let mixed = sums.count == 1 ? x : attention(sums)
        let y = sublayer.map(sublayer.norm(mixed), state: &states[i], context: &context)
        if sublayer.startsBlock { ResidualAttention.append(x, &context) }
        stream = ResidualStream(x: sublayer.startsBlock ? y : x + y)
        continue
      }
      let (y, kept) = result(of: sublayer, &stream, &states[i], &context)
      let (a, b) = sublayer.factors
      let part = b == 1 ? y : y * b
      // A plain stack has no stream.
      stream = a == 0 ? .init(x: part) : .init(x: a == 1 ? kept : kept * a, part: part)
    }
  }

  /// What the sublayer gives, and what it is added to.
  private func result(
    of sublayer: Sublayer, _ stream: inout ResidualStream, _ state: inout State,
    _ context: inout SequenceContext
  ) -> (y: Tensor, kept: Tensor) {
    if residual == .preNorm, let part = stream.part, let map = sublayer.map as? any JoinsNorm,
      let (sum, y) = map.joined(
        adding: part, to: stream.x, norm: sublayer.norm, state: &state, context: &context)
    {
      return (y, sum)
    }
    let type = ComputePrecision.betweenProducts(on: stream.x.device)
    let isPlain = residual == .preNorm && sublayer.factors == (1, 1)
    context.output = isPlain ? type : nil
    defer { context.output = nil }
    let normed = stream.normed(
      by: sublayer.norm, output: isPlain && sublayer.map.onlyMultipliesInput ? type : nil)
    let y = sublayer.map(normed, state: &state, context: &context)
    return (y, residual == .preNorm ? stream.x : normed)
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
      var stream = ResidualStream(x: inputs[0])
      self.pass(&stream, &states, &context)
      let y = stream.settled()
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
