import GyreLayers
import GyreRecurrence
import GyreTensors

/// Causal softmax attention with rotary positions and grouped heads, over all tokens or a window.
///
///     yₜ = Σ_{t−W<j≤t} softmax_j(s qₜ·kⱼ) vⱼ    out = W_o (yₜ ∘ σ(W_g xₜ))
///
/// The gate is optional. Vaswani et al., "Attention is all you need", 2017; Su et al., "RoFormer",
/// 2021; Ainslie et al., "GQA", 2023; Qiu et al., "Gated attention", 2025.
///
/// State: keys and values of the tokens seen, or of the last W − 1. Engine: `SoftmaxAttention`.
public struct AttentionMixer: SequenceMixer {
  public static let kind = "softmax_attention"
  public struct Configuration: MixerConfiguration {
    /// Query heads; 0: width / 64, at least 1.
    public var heads = 0
    /// Key and value heads; 0: as many as query heads.
    public var keyHeads = 0
    /// Channels a head; 0: width / heads.
    public var headSize = 0
    /// Tokens a query sees, itself included; 0: all.
    public var window = 0
    /// Whether positions rotate queries and keys.
    public var rotary = true
    public var rotaryBase = 10_000.0
    /// Channels of a head that rotate, the first ones; 0: all.
    public var rotaryChannels = 0
    /// Rotates adjacent pairs instead of the two halves.
    public var rotaryInterleaved = false
    public var rotaryScaling: RotaryScaling?
    /// Bias of queries, keys and values.
    public var bias = false
    /// Bias of the output; nil: as `bias`.
    public var outputBias: Bool?
    /// RMSNorm of queries and keys per head.
    public var normalizesKeys = false
    public var keyNorm = NormLayer.Kind.rms
    public var keyNormEpsilon = 1e-6
    /// Multiplies the result by σ(W_g x) before the output projection.
    public var gated = false
    /// s; 0: headSize^-½.
    public var scale = 0.0
    /// Projections as matrices of their own rather than one: loading them copies nothing.
    public var separate = false
    public init() {}

    public static var optionalFields: Set<String> { ["rotaryScaling", "outputBias"] }
    public static var largeFields: Set<String> { ["rotaryBase", "rotaryScaling"] }

    func headCount(_ width: Int) -> Int { heads > 0 ? heads : max(1, width / 64) }
    func size(_ width: Int) -> Int { headSize > 0 ? headSize : width / headCount(width) }
    func rotated(_ width: Int) -> Int { rotaryChannels > 0 ? rotaryChannels : size(width) }

    public func resolved(width: Int) -> Self {
      var c = self
      c.heads = headCount(width)
      c.keyHeads = keyHeads > 0 ? keyHeads : c.heads
      c.headSize = size(width)
      c.rotaryChannels = rotated(width)
      c.outputBias = outputBias ?? bias
      return c
    }

    public func validate(width: Int) throws(ConfigurationError) {
      try require(heads >= 0, "heads", "must not be negative, is \(heads)")
      try require(headSize >= 0, "headSize", "must not be negative, is \(headSize)")
      if headSize == 0 {
        try HeadSizes.divide(width, by: headCount(width), field: "heads", of: "width")
      }
      try require(keyHeads >= 0, "keyHeads", "must not be negative, is \(keyHeads)")
      try require(
        keyHeads == 0 || headCount(width) % keyHeads == 0, "keyHeads",
        "must divide \(headCount(width)) heads, is \(keyHeads)")
      try require(window >= 0, "window", "must not be negative, is \(window)")
      try require(scale >= 0 && scale.isFinite, "scale", "must not be negative, is \(scale)")
      try require(
        keyNormEpsilon >= 0 && keyNormEpsilon < 1, "keyNormEpsilon", "must be in [0, 1)")
      guard rotary else { return }
      try require(
        rotaryBase > 0 && rotaryBase <= 1e12, "rotaryBase", "must be in (0, 1e12], is \(rotaryBase)"
      )
      let rotated = rotated(width)
      try require(
        rotated % 2 == 0, rotaryChannels > 0 ? "rotaryChannels" : "heads",
        "must rotate an even number of channels, rotates \(rotated)")
      try require(
        (0...size(width)).contains(rotaryChannels), "rotaryChannels",
        "must be in 0...\(size(width)), is \(rotaryChannels)")
      if let rotaryScaling {
        do throws(ConfigurationError) { try rotaryScaling.validate(rotated: rotated) } catch {
          throw error.under("rotaryScaling")
        }
      }
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.heads = 4; $0.keyHeads = 2
    },
    with(Configuration()) {
      $0.heads = 2; $0.window = 9; $0.bias = true; $0.normalizesKeys = true
      $0.rotaryInterleaved = true
    },
    with(Configuration()) {
      $0.heads = 4; $0.keyHeads = 1; $0.headSize = 12; $0.separate = true; $0.gated = true
      $0.normalizesKeys = true; $0.keyNorm = .rmsUnitOffset; $0.rotaryChannels = 6
      $0.outputBias = true; $0.scale = 0.2
      $0.rotaryScaling = RotaryScaling(kind: .yarn, factor: 4, length: 8)
    },
    with(Configuration()) {
      $0.heads = 2; $0.rotary = false
    },
  ]

  private let projections: [Linear]
  private let output: Linear
  private let queryNorm, keyNorm: NormLayer?
  private let engine: SoftmaxAttention
  private let c: Configuration
  private let heads, keyHeads, headSize, rotated: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    heads = c.headCount(width)
    keyHeads = c.keyHeads > 0 ? c.keyHeads : heads
    let headSize = c.size(width)
    self.headSize = headSize
    rotated = c.rotated(width)
    let bias: Initializer? = c.bias ? .zeros : nil
    let outputBias: Initializer? = c.outputBias ?? c.bias ? .zeros : nil
    var sizes = [heads, keyHeads, keyHeads].map { $0 * headSize }
    var names = ["q", "k", "v"]
    if c.gated {
      sizes.append(heads * headSize)
      names.append("gate")
    }
    if c.separate {
      var projections: [Linear] = []
      for (name, size) in zip(names, sizes) {
        projections.append(try Linear(name, inputs: width, outputs: size, bias: bias, &p))
      }
      self.projections = projections
    } else {
      projections = [
        try Linear(
          c.gated ? "qkvg" : "qkv", inputs: width, outputs: sizes.reduce(0, +), bias: bias, &p)
      ]
    }
    output = try Linear(
      "output", inputs: heads * headSize, outputs: width, bias: outputBias, &p)
    func norm(_ name: String, _ p: inout ParameterBuilder) throws(ConfigurationError) -> NormLayer?
    {
      c.normalizesKeys
        ? try NormLayer(name, headSize, kind: c.keyNorm, epsilon: c.keyNormEpsilon, &p) : nil
    }
    queryNorm = try norm("query_norm", &p)
    keyNorm = try norm("key_norm", &p)
    engine = SoftmaxAttention(
      heads: heads, keyHeads: keyHeads, keySize: headSize, valueSize: headSize,
      window: c.window > 0 ? c.window : nil, scale: c.scale > 0 ? c.scale : nil)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public var onlyMultipliesInput: Bool { true }
  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    // What nobody but the engine reads may be no wider than its products take.
    let isAlone = state.isLast && state["keys"] == nil && queryNorm == nil && !c.gated
    let type = isAlone ? ComputePrecision.betweenProducts(on: x.device) : nil
    let parts =
      c.separate
      ? projections.map { $0(x, output: type) }
      : projections[0](
        x, pieces: ([heads, keyHeads, keyHeads] + (c.gated ? [heads] : [])).map { $0 * headSize },
        output: type)
    if c.rotaryScaling == nil, context.reset == nil, x.shape[1] == 1 {
      let rotary = StepRotary(
        base: c.rotaryBase, rotated: rotated, interleaved: c.rotaryInterleaved)
      let (q, k) = (parts[0].heads(heads), parts[1].heads(keyHeads))
      if let y = engine.step(
        q: queryNorm?(q) ?? q, k: keyNorm?(k) ?? k, v: parts[2].heads(keyHeads),
        rotary: c.rotary ? rotary : nil, state: state)
      {
        return output(c.gated ? y.mergedHeads() * parts[3].sigmoid() : y.mergedHeads())
      }
    }
    let scaled = c.rotaryScaling?.rates(
      base: c.rotaryBase, rotated: rotated, tokens: state.tokenCount + x.shape[1])
    func placed(_ t: Tensor, _ norm: NormLayer?) -> Tensor {
      let normed = norm?(t) ?? t
      guard c.rotary else { return normed }
      if let scaled {
        return normed.rotated(
          rates: scaled.rates, magnitude: scaled.magnitude, positionOffset: state.tokenCount,
          interleaved: c.rotaryInterleaved)
      }
      return normed.rotated(
        base: c.rotaryBase, positionOffset: state.tokenCount, interleaved: c.rotaryInterleaved,
        rotated: rotated)
    }
    let q = placed(parts[0].heads(heads), queryNorm)
    let k = placed(parts[1].heads(keyHeads), keyNorm)
    let y = engine(
      .init(q: q, k: k, v: parts[2].heads(keyHeads)), state: &state, form: context.form,
      reset: context.reset
    ).mergedHeads()
    return output(c.gated ? y * parts[3].sigmoid() : y, output: context.output)
  }
  public func appendToken(
    _ input: TokenInput, to p: inout TokenProgram, state: State
  ) -> Bool {
    guard c.rotaryScaling == nil, state["starts"] == nil,
      [queryNorm, keyNorm].allSatisfy({
        $0.map { $0.kind == .rms || $0.kind == .rmsUnitOffset } ?? true
      })
    else { return false }
    let sizes = projections.map { $0.weight.shape[0] }
    let (queries, keys) = (heads * headSize, keyHeads * headSize)
    let all = p.scratch("attention.streams", sizes.reduce(0, +))
    var products: [TokenProgram.Product] = []
    var offset = 0
    for (map, size) in zip(projections, sizes) {
      products.append(map.token(to: all.advanced(by: offset)))
      offset += size
    }
    p.phases.append(.products(.init([input.operand], products)))
    var step = TokenProgram.Attention(
      heads: heads, keyHeads: keyHeads, size: headSize, window: engine.window, scale: engine.scale,
      rotated: c.rotary ? rotated : 0, rotaryBase: c.rotaryBase, interleaved: c.rotaryInterleaved,
      streams: all, q: 0, k: queries, v: queries + keys, index: p.attentionCount)
    if let query = queryNorm?.token(), let key = keyNorm?.token() {
      (step.queryNorm, step.keyNorm, step.epsilon) = (query.weight, key.weight, query.epsilon)
    }
    (step.keys, step.values) = (state["keys"], state["values"])
    p.phases.append(.attention(step))
    let gate = c.gated ? all.advanced(by: queries + 2 * keys) : nil
    p.phases.append(
      .products(
        .init(
          [.init(all, queries, attention: step, gate: gate.map { ($0, .sigmoid) })],
          [input.output(output)])))
    return true
  }
}
