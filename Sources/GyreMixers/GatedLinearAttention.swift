import GyreLayers
import GyreRecurrence
import GyreTensors

/// Gated linear attention: a data-dependent decay for every key channel.
///
///     Sₜ = diag(αₜ) Sₜ₋₁ + kₜ vₜᵀ    yₜ = K^-½ Sₜᵀ qₜ    ln αₜ = logσ(W₂ W₁ xₜ + b) / 16
///     out = W_o (RMSNorm(yₜ) ∘ silu(W_g xₜ))
///
/// Yang, Wang, Shen, Panda and Kim, "Gated linear attention Transformers with hardware-efficient
/// training", 2024. https://arxiv.org/abs/2312.06635
///
/// State: `[H, K, V]`. Engine: `LinearAttention`, vector decay.
public struct GatedLinearAttention: SequenceMixer {
  public static let kind = "gla"
  public struct Configuration: MixerConfiguration {
    public var heads = 4
    /// Total key and value widths over the model's width.
    public var keyExpansion = 0.5
    public var valueExpansion = 1.0
    /// Rank of the gate's projection.
    public var gateRank = 16
    /// Divisor of the log decay.
    public var gateDivisor = 16.0
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.expansion(keyExpansion, "keyExpansion")
      try HeadSizes.expansion(valueExpansion, "valueExpansion")
      try HeadSizes.divide(
        Int(keyExpansion * Double(width)), by: heads, field: "heads", of: "key width")
      try HeadSizes.divide(
        Int(valueExpansion * Double(width)), by: heads, field: "heads", of: "value width")
      try HeadSizes.positive(gateRank, "gateRank")
      try require(gateDivisor > 0, "gateDivisor", "must be positive, is \(gateDivisor)")
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 2; $0.keyExpansion = 1; $0.valueExpansion = 2; $0.gateDivisor = 1
    },
  ]

  private let projection: Linear
  private let gate: LowRankLinear
  private let output: Linear
  private let norm: Parameter
  private let engine: LinearAttention
  private let sizes: (keys: Int, values: Int)
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    sizes = (Int(c.keyExpansion * Double(width)), Int(c.valueExpansion * Double(width)))
    projection = try Linear("qkvg", inputs: width, outputs: 2 * (sizes.keys + sizes.values), &p)
    gate = try LowRankLinear(
      "decay", inputs: width, rank: c.gateRank, outputs: sizes.keys, bias: .zeros, &p)
    output = try Linear("output", inputs: sizes.values, outputs: width, &p)
    norm = try p.parameter("norm.weight", [sizes.values / c.heads], .constant(1))
    engine = LinearAttention(
      heads: c.heads, keySize: sizes.keys / c.heads, valueSize: sizes.values / c.heads)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).split([sizes.keys, sizes.keys, sizes.values, sizes.values])
      .map { $0.heads(c.heads) }
    let logDecay = (gate(x).logSigmoid() / c.gateDivisor).heads(c.heads)
    let y = engine(
      .init(q: parts[0], k: parts[1], v: parts[2], decay: .vector(logDecay)), state: &state,
      form: context.form, reset: context.reset)
    return output(y.gatedNorm(parts[3], weight: norm.value, epsilon: 1e-5).mergedHeads())
  }
}
