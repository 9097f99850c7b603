import GyreLayers
import GyreRecurrence
import GyreTensors

/// MesaNet's layer: the best linear map of keys to values seen so far, solved for at every token.
///
///     Hₜ = γₜ Hₜ₋₁ + βₜ kₜ kₜᵀ    Gₜ = γₜ Gₜ₋₁ + βₜ kₜ vₜᵀ    yₜ = Gₜᵀ (Hₜ + diag λ)⁻¹ qₜ
///     γ = σ(W_a x + b_a)    β = σ(W_b x + b_b)    λ = softplus(θ) + λ₀
///     out = W_o RMSNorm(yₜ)   or   W_o (RMSNorm(yₜ) ∘ silu(W_g xₜ))
///
/// q and k pass short convolutions with SiLU and have unit length. von Oswald et al., "MesaNet: sequence
/// modeling by locally optimal test-time training", 2025. https://arxiv.org/abs/2506.05233
///
/// State: H `[H, K, K]`, G `[H, K, K]` and the convolutions' tails. Engine: `Mesa`.
public struct MesaNet: SequenceMixer {
  public static let kind = "mesa_net"
  public struct Configuration: MixerConfiguration {
    public var heads = 4
    /// Channels a head; 0: width / heads.
    public var headSize = 0
    /// Taps.
    public var convolution = 4
    public var gatesOutput = false
    /// λ₀.
    public var ridgeBound = 0.25
    /// Steps of conjugate gradients, and the ε of their divisors.
    public var steps = 30
    public var epsilon = 1e-5
    public var normEpsilon = 1e-5
    /// Rounds as flash-linear-attention's kernel does (`Mesa`); not to be trained with.
    public var roundsToHalf = false
    public init() {}

    func size(_ width: Int) -> Int { headSize > 0 ? headSize : width / max(heads, 1) }
    public func resolved(width: Int) -> Self { with(self) { $0.headSize = size(width) } }
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.positive(heads, "heads")
      try require(headSize >= 0, "headSize", "must not be negative, is \(headSize)")
      if headSize == 0 { try HeadSizes.divide(width, by: heads, field: "heads", of: "width") }
      try HeadSizes.convolution(convolution)
      try HeadSizes.positive(convolution, "convolution")
      try require(
        ridgeBound >= 0 && ridgeBound.isFinite, "ridgeBound",
        "must not be negative, is \(ridgeBound)")
      try require((1...1000).contains(steps), "steps", "must be in 1...1000, is \(steps)")
      try HeadSizes.epsilon(epsilon, "epsilon")
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 2; $0.headSize = 12; $0.convolution = 3; $0.gatesOutput = true
      $0.ridgeBound = 0.5; $0.steps = 12; $0.epsilon = 1e-6
    },
  ]

  private let query, key, value, decay, strength, output: Linear
  private let gate: Linear?
  private let queryConvolution, keyConvolution: ShortConvolutionLayer
  private let ridge, norm: Parameter
  private let engine: Mesa
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    let size = c.size(width)
    let inner = c.heads * size
    query = try Linear("q", inputs: width, outputs: inner, &p)
    key = try Linear("k", inputs: width, outputs: inner, &p)
    value = try Linear("v", inputs: width, outputs: inner, &p)
    decay = try Linear("decay", inputs: width, outputs: c.heads, bias: .zeros, &p)
    strength = try Linear("beta", inputs: width, outputs: c.heads, bias: .zeros, &p)
    gate = c.gatesOutput ? try Linear("gate", inputs: width, outputs: inner, &p) : nil
    // λ starts at 1.
    let start = Functions.log(Functions.expm1(max(1 - c.ridgeBound, 1e-3)))
    ridge = try p.parameter("ridge", [inner], .constant(start), decay: WeightDecay.none)
    queryConvolution = try ShortConvolutionLayer(
      "q_convolution", channels: inner, width: c.convolution, entry: "q_window", &p)
    keyConvolution = try ShortConvolutionLayer(
      "k_convolution", channels: inner, width: c.convolution, entry: "k_window", &p)
    norm = try p.parameter("norm.weight", [size], .constant(1), decay: WeightDecay.none)
    output = try Linear("output", inputs: inner, outputs: width, &p)
    engine = Mesa(
      heads: c.heads, keySize: size, valueSize: size, steps: c.steps, epsilon: c.epsilon,
      roundsToHalf: c.roundsToHalf)
  }

  public var stateSpec: StateSpec {
    engine.stateSpec + queryConvolution.stateSpec + keyConvolution.stateSpec
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let q = queryConvolution(query(x), state: &state, reset: context.reset)
    let k = keyConvolution(key(x), state: &state, reset: context.reset)
    let lambda = (ridge.value.softplus() + c.ridgeBound).reshaped([c.heads, -1])
    let y = engine(
      .init(
        q: q.heads(c.heads).l2Normalized(), k: k.heads(c.heads).l2Normalized(),
        v: value(x).heads(c.heads), logDecay: decay(x).logSigmoid(), beta: strength(x).sigmoid(),
        ridge: lambda),
      state: &state, form: context.form, reset: context.reset)
    let normed =
      gate.map { y.gatedNorm($0(x).heads(c.heads), weight: norm.value, epsilon: c.normEpsilon) }
      ?? y.rmsNormalized(weight: norm.value, epsilon: c.normEpsilon)
    return output(normed.mergedHeads())
  }
}
