import GyreLayers
import GyreRecurrence
import GyreTensors

/// Multi-scale retention: linear attention with one constant decay a head and rotary positions.
///
///     Sₜ = γₕ Sₜ₋₁ + kₜ vₜᵀ    yₜ = K^-½ Sₜᵀ qₜ    γₕ = 1 − 2^(−5−h)
///     out = W_o (RMSNorm(yₜ) ∘ silu(W_g xₜ))
///
/// Sun et al., "Retentive network: a successor to Transformer", 2023. https://arxiv.org/abs/2307.08621
///
/// State: `[H, K, V]`. Engine: `LinearAttention`, constant decay.
public struct RetNet: SequenceMixer {
  public static let kind = "retnet"
  public struct Configuration: MixerConfiguration {
    public var heads = 4
    /// Total value width over the model's width.
    public var valueExpansion = 2.0
    public var rotaryBase = 10_000.0
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: heads, field: "heads", of: "width")
      try require(
        (width / heads) % 2 == 0, "heads", "must give an even key size, gives \(width / heads)")
      try HeadSizes.expansion(valueExpansion, "valueExpansion")
      try HeadSizes.divide(
        Int(valueExpansion * Double(width)), by: heads, field: "valueExpansion", of: "value width")
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 2; $0.valueExpansion = 1
    },
  ]

  private let projection: Linear
  private let output: Linear
  private let norm: Parameter
  private let engine: LinearAttention
  private let sizes: (keys: Int, values: Int)
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    sizes = (width, Int(c.valueExpansion * Double(width)))
    projection = try Linear("qkvg", inputs: width, outputs: 2 * width + 2 * sizes.values, &p)
    output = try Linear("output", inputs: sizes.values, outputs: width, &p)
    norm = try p.parameter("norm.weight", [sizes.values / c.heads], .constant(1))
    engine = LinearAttention(
      heads: c.heads, keySize: width / c.heads, valueSize: sizes.values / c.heads)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).split([sizes.keys, sizes.keys, sizes.values, sizes.values])
    let heads = parts.map { $0.heads(c.heads) }
    let rotated = heads[..<2].map {
      $0.rotated(base: c.rotaryBase, positionOffset: state.tokenCount)
    }
    let decay = Tensor(
      (0..<c.heads).map { Float(Functions.log1p(-Functions.pow(2, -5 - Double($0)))) },
      shape: [c.heads], on: x.device)
    let y = engine(
      .init(q: rotated[0], k: rotated[1], v: heads[2], decay: .constant(decay)), state: &state,
      form: context.form, reset: context.reset)
    return output(y.gatedNorm(heads[3], weight: norm.value, epsilon: 1e-5).mergedHeads())
  }
}
