import GyreLayers
import GyreRecurrence
import GyreTensors

/// Rodimus: a purely recurrent block whose one gate, tempered by another, both forgets and selects.
///
///     h = W_u x, u = silu(conv(h))    γ = softplus(W_γ u + b)    τ = σ(W_τ u + b)
///     Sₜ = diag(e^(−γτ)) Sₜ₋₁ + (γ^τ ∘ k/‖k‖) vₜᵀ    yₜ = N^-½ Sₜᵀ qₜ    v = σ(W₂ W₁ h + b) ∘ h
///     out = W_d RMSNorm((yₜ + w ∘ u) ∘ silu(W_g x))
///
/// q, k = W_q u, W_k u of N channels, one head of 2D values. He et al., "Rodimus*: breaking the
/// accuracy-efficiency trade-off with efficient attentions", 2024. https://arxiv.org/abs/2410.06577
///
/// State: `[1, N, 2D]` and the convolution's tail. Engine: `LinearAttention`, vector decay.
public struct Rodimus: SequenceMixer {
  public static let kind = "rodimus"
  public struct Configuration: MixerConfiguration {
    /// N: key channels.
    public var stateSize = 64
    /// Rank of the input gate; 0: width / 64, at least 16.
    public var gateRank = 0
    /// Taps of the short convolution; 0 for none.
    public var convolution = 4
    public var normEpsilon = 1e-5
    /// Keys shorter than this are not lengthened to 1.
    public var keyEpsilon = 1e-12
    public init() {}
    public func resolved(width: Int) -> Self {
      with(self) { $0.gateRank = rank(width) }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.positive(stateSize, "stateSize")
      try require(gateRank >= 0, "gateRank", "must not be negative, is \(gateRank)")
      try HeadSizes.convolution(convolution)
      try HeadSizes.epsilon(normEpsilon)
      try require(
        keyEpsilon > 0 && keyEpsilon < 1, "keyEpsilon", "must be in (0, 1), is \(keyEpsilon)")
    }
    func rank(_ width: Int) -> Int { gateRank > 0 ? gateRank : max(width / 64, 16) }
    /// 2D, rounded up to a multiple of 8.
    public static func inner(_ width: Int) -> Int { (2 * width + 7) / 8 * 8 }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.stateSize = 12 },
    with(Configuration()) {
      $0.stateSize = 8; $0.gateRank = 5; $0.convolution = 0; $0.normEpsilon = 1e-6
    },
  ]

  private let input, readers, gates, output: Linear
  private let inputGate: LowRankLinear
  private let convolution: ShortConvolutionLayer?
  private let skip, norm: Parameter
  private let engine: LinearAttention
  private let c: Configuration
  private let inner: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    inner = Configuration.inner(width)
    // h, then the output gate.
    input = try Linear("input", inputs: width, outputs: 2 * inner, &p)
    convolution =
      c.convolution > 0
      ? try ShortConvolutionLayer(
        "convolution", channels: inner, width: c.convolution, bias: true, &p) : nil
    readers = try Linear("qk", inputs: inner, outputs: 2 * c.stateSize, &p)
    // γ, then τ.
    gates = try Linear("gates", inputs: inner, outputs: 2 * c.stateSize, bias: .zeros, &p)
    inputGate = try LowRankLinear(
      "input_gate", inputs: inner, rank: c.rank(width), outputs: inner, bias: .zeros, &p)
    skip = try p.parameter("skip", [inner], .constant(1))
    norm = try p.parameter("norm.weight", [inner], .constant(1))
    output = try Linear("output", inputs: inner, outputs: width, &p)
    engine = LinearAttention(heads: 1, keySize: c.stateSize, valueSize: inner)
  }

  public var stateSpec: StateSpec { engine.stateSpec + (convolution?.stateSpec ?? StateSpec()) }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = input(x).split([inner, inner])
    let h = parts[0]
    let u = convolution?(h, state: &state, reset: context.reset) ?? h
    let qk = readers(u).split([c.stateSize, c.stateSize])
    let gate = gates(u).split([c.stateSize, c.stateSize])
    let (gamma, tau) = (gate[0].softplus(), gate[1].sigmoid())
    // γ^τ; the floor keeps the logarithm of an underflown γ finite.
    let power = (gamma.clamped(1e-30, nil).log() * tau).exp()
    let k = qk[1].l2Normalized(epsilon: c.keyEpsilon * c.keyEpsilon) * power
    let y = engine(
      .init(
        q: qk[0].heads(1), k: k.heads(1), v: (inputGate(h).sigmoid() * h).heads(1),
        decay: .vector((-(gamma * tau)).heads(1))),
      state: &state, form: context.form, reset: context.reset)
    let mixed = y.mergedHeads() + u * skip.value
    return output(
      mixed.gatedNorm(parts[1], weight: norm.value, epsilon: c.normEpsilon, gatesFirst: true))
  }
}
