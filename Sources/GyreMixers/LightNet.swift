import GyreLayers
import GyreRecurrence
import GyreTensors

/// LightNet: linear attention whose keys are a running softmax over the tokens so far.
///
///     zₜ = ln Σ_{j≤t} e^kⱼ    Sₜ = diag(e^(zₜ₋₁ − zₜ)) Sₜ₋₁ + e^(kₜ − zₜ) vₜᵀ    yₜ = K^-½ Sₜᵀ silu(qₜ)
///     out = W_o (RMSNorm(yₜ) ∘ silu(W₂ W₁ xₜ)), the norm over all heads together
///
/// Optionally q, k and v pass a short convolution. Qin et al., "You only scan once: efficient
/// multi-dimension sequential modeling with LightNet", 2024. https://arxiv.org/abs/2405.21022
///
/// State: `[H, K, V]`, z `[H·K]` and the convolution's tail. Engines: `AdditiveGate`,
/// `LinearAttention` with vector decay.
public struct LightNet: SequenceMixer {
  public static let kind = "lightnet"
  public struct Configuration: MixerConfiguration {
    /// Key channels a head.
    public var expansion = 64
    /// Heads; 0: width / expansion.
    public var heads = 0
    /// Rank of the output gate.
    public var gateRank = 128
    /// Taps of the short convolution; 0 for none.
    public var convolution = 0
    /// Whether the output norm has a weight.
    public var normWeight = true
    public var normEpsilon = 1e-6
    public init() {}

    func headCount(_ width: Int) -> Int { heads > 0 ? heads : width / max(expansion, 1) }

    public func resolved(width: Int) -> Self {
      with(self) { $0.heads = headCount(width) }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.positive(expansion, "expansion")
      try require(heads >= 0, "heads", "must not be negative, is \(heads)")
      try HeadSizes.divide(
        width, by: headCount(width), field: heads > 0 ? "heads" : "expansion", of: "width")
      try HeadSizes.positive(gateRank, "gateRank")
      try HeadSizes.convolution(convolution)
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.expansion = 16 },
    with(Configuration()) {
      $0.expansion = 6; $0.heads = 4; $0.gateRank = 5; $0.convolution = 3; $0.normWeight = false
      $0.normEpsilon = 1e-5
    },
  ]

  private let streams: Streams
  private let gate: LowRankLinear
  private let output: Linear
  private let norm: OutputNorm
  private let keyGate: AdditiveGate
  private let engine: LinearAttention
  private let heads: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    heads = c.headCount(width)
    let keys = heads * c.expansion
    streams = try Streams(
      "qkv", inputs: width, mixed: [keys, keys, width], convolution: c.convolution,
      activations: [.silu, nil, nil], &p)
    gate = try LowRankLinear("gate", inputs: width, rank: c.gateRank, outputs: width, &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
    norm = try OutputNorm(width, hasWeight: c.normWeight, epsilon: c.normEpsilon, &p)
    keyGate = AdditiveGate(channels: keys)
    engine = LinearAttention(heads: heads, keySize: c.expansion, valueSize: width / heads)
  }

  public var stateSpec: StateSpec {
    engine.stateSpec + keyGate.stateSpec + streams.stateSpec
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = streams(x, state: &state, reset: context.reset)
    let keys = keyGate(parts[1], state: &state, reset: context.reset)
    let y = engine(
      .init(
        q: parts[0].heads(heads), k: keys.weight.heads(heads), v: parts[2].heads(heads),
        decay: .vector(keys.logDecay.heads(heads))),
      state: &state, form: context.form, reset: context.reset)
    return output(norm(y.mergedHeads(), gate: gate(x)))
  }
}
