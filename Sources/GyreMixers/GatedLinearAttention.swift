import GyreLayers
import GyreRecurrence
import GyreTensors

/// Gated linear attention: a data-dependent decay for every key channel.
///
///     Sₜ = diag(αₜ) Sₜ₋₁ + φ(kₜ) vₜᵀ    yₜ = K^-½ Sₜᵀ φ(qₜ)    ln αₜ = logσ(W₂ W₁ xₜ + b) / 16
///     out = W_o (RMSNorm(yₜ) ∘ silu(W_g xₜ))
///
/// Optionally q, k and v pass a short convolution with SiLU, and keys, values and decays are shared
/// by groups of query heads. Yang, Wang, Shen, Panda and Kim, "Gated linear attention Transformers
/// with hardware-efficient training", 2024. https://arxiv.org/abs/2312.06635
///
/// State: `[H, K, V]` and the convolution's tail. Engine: `LinearAttention`, vector decay.
public struct GatedLinearAttention: SequenceMixer {
  public static let kind = "gla"
  public struct Configuration: GroupedHeads {
    public var heads = 4
    /// Heads of k, v and the decay; 0: as many as query heads.
    public var keyHeads = 0
    /// Total key and value widths over the model's width.
    public var keyExpansion = 0.5
    public var valueExpansion = 1.0
    /// Rank of the gate's projection.
    public var gateRank = 16
    /// Divisor of the log decay.
    public var gateDivisor = 16.0
    /// Lower bound of the log decay; nil for none.
    public var gateFloor: Double?
    /// φ: identity or an element-wise function.
    public var featureMap = "identity"
    /// Taps of the short convolution; 0 for none.
    public var convolution = 0
    public var gatesOutput = true
    /// Whether the output norm has a weight.
    public var normWeight = true
    public var normEpsilon = 1e-5
    public init() {}
    public static let optionalFields: Set<String> = ["gateFloor"]
    public func validate(width: Int) throws(ConfigurationError) {
      try validateGroups(width)
      try HeadSizes.positive(gateRank, "gateRank")
      try require(gateDivisor > 0, "gateDivisor", "must be positive, is \(gateDivisor)")
      try require((gateFloor ?? -1) <= 0, "gateFloor", "must not be positive")
      _ = try FeatureMap.Kind(featureMap, withoutParameters: true)
      try HeadSizes.convolution(convolution)
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 2; $0.keyExpansion = 1; $0.valueExpansion = 2; $0.gateDivisor = 1
    },
    with(Configuration()) {
      $0.keyHeads = 2; $0.gateDivisor = 2; $0.gateFloor = -0.4; $0.featureMap = "relu"
      $0.convolution = 3; $0.gatesOutput = false; $0.normEpsilon = 1e-6
    },
    with(Configuration()) {
      $0.heads = 2; $0.featureMap = "silu"; $0.normWeight = false
    },
  ]

  private let streams: Streams
  private let gate: LowRankLinear
  private let output: Linear
  private let norm: OutputNorm
  private let features: FeatureMap
  private let engine: LinearAttention
  private let keyHeads: Int
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    keyHeads = c.keyHeadCount
    let (keySize, valueSize) = c.sizes(width)
    streams = try Streams(
      "qkvg", inputs: width,
      mixed: c.mixed(width),
      plain: c.gatesOutput ? [c.heads * valueSize] : [], convolution: c.convolution,
      activations: [c.convolution > 0 ? .silu : nil], &p)
    gate = try LowRankLinear(
      "decay", inputs: width, rank: c.gateRank, outputs: keyHeads * keySize, bias: .zeros, &p)
    output = try Linear("output", inputs: c.heads * valueSize, outputs: width, &p)
    norm = try OutputNorm(valueSize, hasWeight: c.normWeight, epsilon: c.normEpsilon, &p)
    features = try FeatureMap(
      .init(c.featureMap, withoutParameters: true), size: keySize, "features", &p)
    engine = LinearAttention(heads: c.heads, keySize: keySize, valueSize: valueSize)
  }

  public var stateSpec: StateSpec { engine.stateSpec + streams.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = streams(x, state: &state, reset: context.reset)
    let groups = c.heads / keyHeads
    let logDecay = (gate(x).logSigmoid() / c.gateDivisor).clamped(c.gateFloor, nil)
    let y = engine(
      .init(
        q: features(parts[0].heads(c.heads)),
        k: features(parts[1].heads(keyHeads)).repeatedHeads(groups),
        v: parts[2].heads(keyHeads).repeatedHeads(groups),
        decay: .vector(logDecay.heads(keyHeads).repeatedHeads(groups))), state: &state,
      form: context.form, reset: context.reset)
    let gate = c.gatesOutput ? parts[3].heads(c.heads) : nil
    return output(norm(y, gate: gate).mergedHeads())
  }
}
