import GyreLayers
import GyreRecurrence
import GyreTensors

/// Titans: a neural long-term memory, alone or with attention over a short window.
///
/// | mode | |
/// | --- | --- |
/// | `memory` | out = W_o (RMSNorm(m) ∘ silu(W_g x)), m = M(x) |
/// | `layer` (MAL) | the same, then attention over a window of it |
/// | `gate` (MAG) | out = W_o (RMSNorm(a) ∘ σ(RMSNorm(m))), a = attention over a window of x |
/// | `context` (MAC) | a = attention over persistent tokens, what M recalls for each token of the segment, and the segment's tokens; M is written with a; out = W_o (a ∘ RMSNorm(M(a))) |
///
/// with M(x) the memory that `NeuralMemory` writes with k and v of x and reads with q, q and k of unit
/// length after SiLU, α = σ(w_α x), η = σ(w_η x), θ = θ₀ σ(w_θ x)/c per head, c tokens a segment. Persistent tokens are read by
/// a softmax of their own. Behrouz, Zhong and Mirrokni, "Titans: learning to memorize at test time",
/// 2024. https://arxiv.org/abs/2501.00663
///
/// State: base, memory and momentum of each layer of the network, `[H, K, K]` where it is linear; with
/// attention also keys and values of the window.
public struct Titans: SequenceMixer {
  public static let kind = "titans"
  public struct Configuration: MixerConfiguration {
    public enum Mode: String, Codable, Hashable, Sendable { case memory, layer, gate, context }
    public enum Network: String, Codable, Hashable, Sendable { case linear, mlp }
    public var mode = Mode.gate
    public var network = Network.linear
    public var heads = 4
    /// Tokens whose gradients are taken at the same weights; with `context` also those that attention
    /// sees.
    public var segment = 64
    /// Tokens that attention sees in the modes `layer` and `gate`.
    public var window = 64
    /// Persistent tokens of `context`.
    public var persistent = 4
    /// θ₀, the rate of a segment's tokens together.
    public var rate = 1.0
    public var convolution = 4
    public var rotaryBase = 10_000.0
    public static var largeFields: Set<String> { ["rotaryBase"] }
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: heads, field: "heads", of: "width")
      try require(
        width / heads % 2 == 0, "heads", "must leave an even number of channels a head, is \(heads)"
      )
      try require((1...4096).contains(segment), "segment", "must be in 1...4096, is \(segment)")
      try require(
        (1...1 << 24).contains(window), "window", "must be in 1...\(1 << 24), is \(window)")
      try require(
        (0...4096).contains(persistent), "persistent", "must be in 0...4096, is \(persistent)")
      try require(rate > 0 && rate <= 2, "rate", "must be in (0, 2], is \(rate)")
      try HeadSizes.convolution(convolution)
      try require(
        rotaryBase > 0 && rotaryBase <= 1e12, "rotaryBase", "must be in (0, 1e12], is \(rotaryBase)"
      )
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.segment = 6; $0.window = 5
    },
    with(Configuration()) {
      $0.mode = .memory; $0.network = .mlp; $0.heads = 2; $0.segment = 5; $0.convolution = 0
      $0.rate = 0.5
    },
    with(Configuration()) {
      $0.mode = .layer; $0.segment = 4; $0.window = 7; $0.convolution = 2; $0.rotaryBase = 100
    },
    with(Configuration()) {
      $0.mode = .context; $0.heads = 2; $0.segment = 6; $0.persistent = 3; $0.convolution = 0
    },
  ]

  private let streams: Streams
  private let gates, output: Linear
  private let gate, attended: Linear?
  private let persistentKeys, persistentValues: Parameter?
  private let weights: [Parameter]
  private let memoryNorm: NormLayer
  private let attentionNorm: NormLayer?
  private let memory: NeuralMemory
  private let attention: SoftmaxAttention?
  private let c: Configuration
  private let width: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    (self.c, self.width) = (c, width)
    let size = width / c.heads
    // With `context` the memory reads x only to recall; what it writes comes from attention.
    streams = try Streams(
      "qkv", inputs: width, mixed: [width, width, width],
      convolution: c.mode == .context ? 0 : c.convolution, activations: [.silu], &p)
    gates = try Linear(
      "gates", inputs: width, outputs: 3 * c.heads,
      // Slow forgetting, some momentum.
      bias: .each { i in i < c.heads ? -4 : 0 }, &p)
    gate =
      c.mode == .memory || c.mode == .layer
      ? try Linear("gate", inputs: width, outputs: width, &p) : nil
    attended =
      c.mode == .memory ? nil : try Linear("attention", inputs: width, outputs: 3 * width, &p)
    memory = NeuralMemory(
      heads: c.heads, size: size, hidden: c.network == .mlp ? 4 * size : 0, segment: c.segment)
    var weights: [Parameter] = []
    for (l, shape) in memory.weightShapes.enumerated() {
      weights.append(
        try p.parameter(
          "M\(l)", shape, .normal(standardDeviation: 1 / Double(shape[1]).squareRoot()),
          decay: WeightDecay.none))
    }
    self.weights = weights
    let hasPersistent = c.mode == .context && c.persistent > 0
    persistentKeys =
      hasPersistent
      ? try p.parameter("persistent_k", [c.persistent, width], .normal(standardDeviation: 0.02))
      : nil
    persistentValues =
      hasPersistent
      ? try p.parameter("persistent_v", [c.persistent, width], .normal(standardDeviation: 0.02))
      : nil
    memoryNorm = try NormLayer("memory_norm", width, &p)
    attentionNorm = c.mode == .gate ? try NormLayer("attention_norm", width, &p) : nil
    output = try Linear("output", inputs: width, outputs: width, &p)
    attention =
      c.mode == .memory
      ? nil
      : SoftmaxAttention(
        heads: c.heads, keySize: size, valueSize: size,
        window: c.mode == .context ? 2 * c.segment : c.window)
  }

  public var stateSpec: StateSpec {
    memory.stateSpec + streams.stateSpec + (attention?.stateSpec ?? StateSpec())
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let plan = SegmentPlan(
      x, period: c.segment, limit: SegmentPlan.limit(context.form), state: &state,
      reset: context.reset)
    if c.mode == .context { return asContext(x, plan, &state, context) }
    let m = memoryNorm(
      memory(
        inputs(x, &state, context.reset), starts: weights.map(\.value), plan: plan, state: &state
      ).mergedHeads())
    switch c.mode {
    case .gate:
      let a = attend(x, &state, context)
      return output((attentionNorm?(a) ?? a) * m.sigmoid())
    case .layer:
      return output(attend(m * (gate?(x).silu() ?? m), &state, context))
    case .memory, .context:
      return output(m * (gate?(x).silu() ?? m))
    }
  }

  private func inputs(_ x: Tensor, _ state: inout State, _ reset: Tensor?) -> NeuralMemory.Inputs {
    let parts = streams(x, state: &state, reset: reset).map { $0.heads(c.heads) }
    let g = gates(x).split([c.heads, c.heads, c.heads])
    return .init(
      q: parts[0].l2Normalized(), k: parts[1].l2Normalized(), v: parts[2], forget: g[0],
      momentum: g[1], rate: g[2].sigmoid() * (c.rate / Double(c.segment)))
  }

  /// Attention over a window of x.
  private func attend(
    _ x: Tensor, _ state: inout State, _ context: SequenceContext
  ) -> Tensor {
    guard let attention, let attended else { return x }
    let parts = attended(x).split([width, width, width]).map { $0.heads(c.heads) }
    let position = state.tokenCount
    func placed(_ t: Tensor) -> Tensor { t.rotated(base: c.rotaryBase, positionOffset: position) }
    return attention.scoped(
      .init(q: placed(parts[0]), k: placed(parts[1]), v: parts[2]), "", &state, context
    ).mergedHeads()
  }

  /// Piece by piece: attention needs what the memory held, the memory what attention gave.
  private func asContext(
    _ x: Tensor, _ plan: SegmentPlan, _ state: inout State, _ context: SequenceContext
  ) -> Tensor {
    guard let attention, let attended else { return x }
    var w = memory.begin(weights.map(\.value), state: state)
    let batch = x.shape[0]
    var outputs: [Tensor] = []
    for (piece, part) in zip(plan.pieces, plan.split(x)) {
      memory.enter(piece, &w)
      let n = piece.range.count
      let recalled = memory.recalled(inputs(part, &state, nil).q, w).mergedHeads()
      // Each token behind what was recalled for it.
      let pairs = concatenated(
        [recalled.reshaped([batch, n, 1, width]), part.reshaped([batch, n, 1, width])], axis: 2
      ).reshaped([batch, 2 * n, width])
      let parts = attended(pairs).split([width, width, width]).map { $0.heads(c.heads) }
      let position = 2 * (state.tokenCount + piece.range.lowerBound)
      func placed(_ t: Tensor) -> Tensor { t.rotated(base: c.rotaryBase, positionOffset: position) }
      let begins = plan.positions.flatMap { row in
        row[piece.range].flatMap { [$0 == 0 ? 1 : 0, 0] as [Int32] }
      }
      var local = context
      local.reset = Tensor(begins, shape: [batch, 2 * n], on: x.device)
      var a = attention.scoped(
        .init(q: placed(parts[0]), k: placed(parts[1]), v: parts[2]), "", &state, local)
      if let kept = persisted(parts[0]) { a = a + kept }
      let read = a.reshaped([batch, n, 2 * width]).split([width, width])[1]
      let m = memory(inputs(read, &state, nil), piece, &w).mergedHeads()
      outputs.append(read * memoryNorm(m))
    }
    memory.end(w, state: &state)
    return output(outputs.isEmpty ? x : concatenated(outputs, axis: 1))
  }

  /// softmax(q·K_p) V_p, `[B, n, H, K]`.
  private func persisted(_ q: Tensor) -> Tensor? {
    guard let persistentKeys, let persistentValues else { return nil }
    let s = q.shape
    let (H, K, P) = (s[2], s[3], c.persistent)
    func heads(_ p: Parameter) -> Tensor { p.value.reshaped([P, H, K]).permuted([1, 0, 2]) }
    let rows = q.permuted([2, 0, 1, 3]).reshaped([H, s[0] * s[1], K])
    let scores =
      rows.matmul(heads(persistentKeys), transposingRight: true) / Double(K).squareRoot()
    return scores.softmax().matmul(heads(persistentValues)).reshaped([H, s[0], s[1], K])
      .permuted([1, 2, 0, 3])
  }
}
