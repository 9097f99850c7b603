import GyreLayers
import GyreRecurrence
import GyreTensors

/// Mamba-2, state-space duality: linear attention with a scalar decay a head.
///
///     Sₜ = e^(Δₜ A) Sₜ₋₁ + Bₜ (Δₜ xₜ)ᵀ    yₜ = Sₜᵀ Cₜ + D xₜ    Δ = softplus(dt + b)    A = −e^a
///     out = W_o RMSNorm(yₜ ∘ silu(zₜ))
///
/// x, B and C pass a short convolution with SiLU. Dao and Gu, "Transformers are SSMs", 2024.
/// https://arxiv.org/abs/2405.21060
///
/// State: `[H, N, P]` and the convolution's tail. Engine: `LinearAttention`, scalar decay.
public struct Mamba2: SequenceMixer {
  public static let kind = "mamba2"
  public struct Configuration: MixerConfiguration {
    public var headSize = 64
    public var stateSize = 64
    public var expansion = 2
    /// Groups of heads that share B and C.
    public var groups = 1
    public var convolution = 4
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      for (value, field) in [
        (headSize, "headSize"), (stateSize, "stateSize"), (expansion, "expansion"),
        (groups, "groups"),
      ] { try HeadSizes.positive(value, field) }
      try HeadSizes.divide(expansion * width, by: headSize, field: "headSize", of: "inner width")
      try HeadSizes.divide(
        expansion * width / headSize, by: groups, field: "groups", of: "head count")
      try HeadSizes.convolution(convolution)
      try HeadSizes.positive(convolution, "convolution")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.headSize = 16; $0.stateSize = 8
    },
    with(Configuration()) {
      $0.headSize = 16; $0.stateSize = 12; $0.groups = 2; $0.convolution = 3
    },
  ]

  private let input: Linear
  private let output: Linear
  private let convolution: ShortConvolutionLayer
  private let stepBias, logRate, skip, norm: Parameter
  private let engine: LinearAttention
  private let c: Configuration
  private let inner: Int
  private let heads: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    inner = c.expansion * width
    heads = inner / c.headSize
    let mixed = inner + 2 * c.groups * c.stateSize
    input = try Linear("input", inputs: width, outputs: inner + mixed + heads, &p)
    convolution = try ShortConvolutionLayer(
      "convolution", channels: mixed, width: c.convolution, bias: true, &p)
    stepBias = try p.parameter("dt_bias", [heads], .mambaStep())
    logRate = try p.parameter(
      "A_log", [heads],
      .values { n, g in g.uniforms(n, 1, 16).map { Float(Functions.log(Double($0))) } })
    skip = try p.parameter("D", [heads], .constant(1))
    norm = try p.parameter("norm.weight", [inner], .constant(1))
    output = try Linear("output", inputs: inner, outputs: width, &p)
    engine = LinearAttention(
      heads: heads, keyHeads: c.groups, keySize: c.stateSize, valueSize: c.headSize, scale: 1)
  }

  public var stateSpec: StateSpec { engine.stateSpec + convolution.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let keys = c.groups * c.stateSize
    let parts = input(x).split([inner, inner + 2 * keys, heads])
    let mixed = convolution(parts[1], state: &state, reset: context.reset)
      .split([inner, keys, keys])
    let step = (parts[2] + stepBias.value).softplus()  // [B, T, H]
    let logDecay = step * -logRate.value.exp()
    let v = mixed[0].heads(heads)  // [B, T, H, P]
    let scaled = v * step.reshaped(Shape(step.shape.dimensions + [1]))
    let y = engine(
      .init(
        q: mixed[2].heads(c.groups), k: mixed[1].heads(c.groups), v: scaled,
        decay: .scalar(logDecay)),
      state: &state, form: context.form, reset: context.reset)
    let skipped = y + v * skip.value.reshaped([heads, 1])
    return output(
      skipped.mergedHeads().gatedNorm(
        parts[0], weight: norm.value, epsilon: 1e-5, gatesFirst: true))
  }
}
