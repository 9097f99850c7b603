import GyreLayers
import GyreRecurrence
import GyreTensors

/// DeltaNet: linear attention that erases what a key already stores before it writes.
///
///     Sₜ = (I − βₜ kₜ kₜᵀ) Sₜ₋₁ + βₜ kₜ vₜᵀ    yₜ = K^-½ Sₜᵀ qₜ    βₜ = σ(W_β xₜ)
///     out = W_o RMSNorm(yₜ)
///
/// q, k and v pass a short convolution with SiLU; q and k have unit length. With
/// `negativeEigenvalues` β = 2σ. Yang, Wang, Zhang, Shen and Kim, "Parallelizing linear Transformers
/// with the delta rule over sequence length", 2024. https://arxiv.org/abs/2406.06484
///
/// State: `[H, K, V]` and the convolution's tail. Engine: `DeltaRule`.
public struct DeltaNet: SequenceMixer {
  public static let kind = "delta_net"
  public struct Configuration: MixerConfiguration {
    public var heads = 4
    public var convolution = 4
    public var negativeEigenvalues = false
    /// RMSNorm ∘ silu(W_g x) in place of RMSNorm.
    public var gatesOutput = false
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: heads, field: "heads", of: "width")
      try HeadSizes.convolution(convolution)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 2; $0.convolution = 0; $0.negativeEigenvalues = true; $0.gatesOutput = true
    },
  ]

  private let projection: Linear
  private let strength: Linear
  private let output: Linear
  private let convolution: ShortConvolutionLayer?
  private let norm: Parameter
  private let engine: DeltaRule
  private let c: Configuration
  private let width: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    self.width = width
    projection = try Linear(
      "qkv", inputs: width, outputs: (c.gatesOutput ? 4 : 3) * width, &p)
    strength = try Linear("beta", inputs: width, outputs: c.heads, &p)
    convolution =
      c.convolution > 0
      ? try ShortConvolutionLayer("convolution", channels: 3 * width, width: c.convolution, &p)
      : nil
    output = try Linear("output", inputs: width, outputs: width, &p)
    norm = try p.parameter("norm.weight", [width / c.heads], .constant(1))
    engine = DeltaRule(heads: c.heads, keySize: width / c.heads, valueSize: width / c.heads)
  }

  public var stateSpec: StateSpec { engine.stateSpec + (convolution?.stateSpec ?? StateSpec()) }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).split(c.gatesOutput ? [3 * width, width] : [3 * width])
    let mixed = convolution?(parts[0], state: &state, reset: context.reset) ?? parts[0].silu()
    let qkv = mixed.split([width, width, width]).map { $0.heads(c.heads) }
    let beta = strength(x).sigmoid()
    let y = engine(
      .init(
        q: qkv[0].l2Normalized(), k: qkv[1].l2Normalized(), v: qkv[2],
        beta: c.negativeEigenvalues ? beta * 2 : beta, gate: .none),
      state: &state, form: context.form, reset: context.reset)
    let normed =
      c.gatesOutput
      ? y.gatedNorm(parts[1].heads(c.heads), weight: norm.value, epsilon: 1e-5)
      : y.rmsNormalized(weight: norm.value, epsilon: 1e-5)
    return output(normed.mergedHeads())
  }
}
