import GyreLayers
import GyreRecurrence
import GyreTensors

/// Gated DeltaNet: the delta rule on a state that also decays.
///
///     Sₜ = αₜ (I − βₜ kₜ kₜᵀ) Sₜ₋₁ + βₜ kₜ vₜᵀ    yₜ = K^-½ Sₜᵀ qₜ
///     ln αₜ = −e^a softplus(W_a xₜ + b)    βₜ = σ(W_β xₜ)    out = W_o (RMSNorm(yₜ) ∘ silu(W_g xₜ))
///
/// q, k and v pass a short convolution with SiLU; q and k have unit length; value heads may be a
/// multiple of key heads. With `negativeEigenvalues` β = 2σ. Yang, Kautz and Hatamizadeh, "Gated
/// delta networks: improving Mamba2 with delta rule", 2024. https://arxiv.org/abs/2412.06464
///
/// State: `[H, K, V]` and the convolution's tail. Engine: `DeltaRule`, scalar gate.
public struct GatedDeltaNet: SequenceMixer {
  public static let kind = "gated_delta_net"
  public struct Configuration: MixerConfiguration {
    public var headSize = 64
    /// Key heads; 0: ¾ of width / headSize, at least 1.
    public var heads = 0
    /// Value heads; 0: as many as key heads.
    public var valueHeads = 0
    /// Value channels a head over `headSize`.
    public var valueExpansion = 2.0
    public var convolution = 4
    public var negativeEigenvalues = false
    public init() {}

    func keyHeads(_ width: Int) -> Int { heads > 0 ? heads : max(1, width * 3 / (4 * headSize)) }
    func headCount(_ width: Int) -> Int { valueHeads > 0 ? valueHeads : keyHeads(width) }
    var valueSize: Int { Int(valueExpansion * Double(headSize)) }

    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.positive(headSize, "headSize")
      try require(heads >= 0, "heads", "must not be negative, is \(heads)")
      try require(valueHeads >= 0, "valueHeads", "must not be negative, is \(valueHeads)")
      try require(
        headCount(width) % keyHeads(width) == 0, "valueHeads",
        "must be a multiple of \(keyHeads(width)) key heads, is \(valueHeads)")
      try HeadSizes.expansion(valueExpansion, "valueExpansion")
      try require(valueSize > 0, "valueExpansion", "must give at least one channel a head")
      try HeadSizes.convolution(convolution)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.headSize = 8; $0.heads = 2
    },
    with(Configuration()) {
      $0.headSize = 12; $0.heads = 2; $0.valueHeads = 4; $0.valueExpansion = 1
      $0.negativeEigenvalues = true; $0.convolution = 2
    },
  ]

  private let projection: Linear
  private let gates: Linear
  private let output: Linear
  private let convolution: ShortConvolutionLayer?
  private let logRate, stepBias, norm: Parameter
  private let engine: DeltaRule
  private let c: Configuration
  private let keyHeads, heads, keys, values: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    keyHeads = c.keyHeads(width)
    heads = c.headCount(width)
    keys = keyHeads * c.headSize
    values = heads * c.valueSize
    projection = try Linear("qkvg", inputs: width, outputs: 2 * keys + 2 * values, &p)
    gates = try Linear("gates", inputs: width, outputs: 2 * heads, &p)
    convolution =
      c.convolution > 0
      ? try ShortConvolutionLayer(
        "convolution", channels: 2 * keys + values, width: c.convolution, &p) : nil
    logRate = try p.parameter(
      "A_log", [heads],
      .values { n, g in
        g.uniforms(n, 0, 16).map { Float(Functions.log(max(Double($0), 1e-3))) }
      })
    stepBias = try p.parameter("dt_bias", [heads], .mambaStep())
    output = try Linear("output", inputs: values, outputs: width, &p)
    norm = try p.parameter("norm.weight", [c.valueSize], .constant(1))
    engine = DeltaRule(
      heads: heads, keyHeads: keyHeads, keySize: c.headSize, valueSize: c.valueSize)
  }

  public var stateSpec: StateSpec { engine.stateSpec + (convolution?.stateSpec ?? StateSpec()) }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).split([2 * keys + values, values])
    let mixed = convolution?(parts[0], state: &state, reset: context.reset) ?? parts[0].silu()
    let qkv = mixed.split([keys, keys, values])
    let gate = gates(x).split([heads, heads])
    let logDecay = (gate[0] + stepBias.value).softplus() * -logRate.value.exp()
    let beta = gate[1].sigmoid()
    let y = engine(
      .init(
        q: qkv[0].heads(keyHeads).l2Normalized(), k: qkv[1].heads(keyHeads).l2Normalized(),
        v: qkv[2].heads(heads), beta: c.negativeEigenvalues ? beta * 2 : beta,
        gate: .scalar(logDecay)),
      state: &state, form: context.form, reset: context.reset)
    return output(
      y.gatedNorm(parts[1].heads(heads), weight: norm.value, epsilon: 1e-5).mergedHeads())
  }
}
