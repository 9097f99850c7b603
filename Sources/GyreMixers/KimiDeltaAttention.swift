import GyreLayers
import GyreRecurrence
import GyreTensors

/// Kimi delta attention: the delta rule on a state whose key channels decay each on their own.
///
///     Sₜ = (I − βₜ kₜ kₜᵀ) diag(αₜ) Sₜ₋₁ + βₜ kₜ vₜᵀ    yₜ = K^-½ Sₜᵀ qₜ    βₜ = σ(W_β xₜ)
///     ln αₜ = −e^a softplus(W₂ W₁ xₜ + b), or l·σ(e^a (W₂ W₁ xₜ + b)) with a lower bound l
///     out = W_o (RMSNorm(yₜ) ∘ σ(W₄ W₃ xₜ + b'))
///
/// q, k and v pass a short convolution with SiLU; q and k have unit length; value heads may be a
/// multiple of key heads. Kimi Team, "Kimi Linear: an expressive, efficient attention architecture",
/// 2025. https://arxiv.org/abs/2510.26692
///
/// State: `[H, K, V]` and the convolution's tail. Engine: `DeltaRule`, vector gate.
public struct KimiDeltaAttention: SequenceMixer {
  public static let kind = "kimi_delta_attention"
  public struct Configuration: DeltaHeads {
    public var headSize = 64
    /// Key heads; 0: width / headSize, at least 1.
    public var heads = 0
    /// Value heads; 0: as many as key heads.
    public var valueHeads = 0
    /// Value channels a head over `headSize`.
    public var valueExpansion = 1.0
    public var convolution = 4
    public var negativeEigenvalues = false
    /// l; nil for the unbounded gate.
    public var gateFloor: Double?
    public var normEpsilon = 1e-5
    public init() {}
    public static let optionalFields: Set<String> = ["gateFloor"]
    public static let widthShare = 1.0

    public func validate(width: Int) throws(ConfigurationError) {
      try validateHeads(width)
      try HeadSizes.convolution(convolution)
      if let gateFloor {
        try require(gateFloor < 0, "gateFloor", "must be negative, is \(gateFloor)")
      }
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.headSize = 8; $0.heads = 2
    },
    with(Configuration()) {
      $0.headSize = 8; $0.heads = 2; $0.valueHeads = 4; $0.valueExpansion = 1.5
      $0.negativeEigenvalues = true; $0.convolution = 0; $0.normEpsilon = 1e-6
    },
    with(Configuration()) {
      $0.headSize = 16; $0.gateFloor = -5; $0.convolution = 2
    },
  ]

  private let streams: Streams
  private let decayInput, gate: LowRankLinear
  private let strength, output: Linear
  private let decay: StepDecay
  private let norm: OutputNorm
  private let engine: DeltaRule
  private let c: Configuration
  private let keyHeads, heads: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    keyHeads = c.keyHeads(width)
    heads = c.headCount(width)
    let (keys, values) = (keyHeads * c.headSize, heads * c.valueSize)
    streams = try Streams(
      "qkv", inputs: width, mixed: [keys, keys, values], convolution: c.convolution,
      activations: [.silu], &p)
    decayInput = try LowRankLinear(
      "decay", inputs: width, rank: c.valueSize, outputs: heads * c.headSize, &p)
    decay = try StepDecay(
      heads: heads, channels: c.headSize, rates: 1...16, floor: c.gateFloor, &p)
    strength = try Linear("beta", inputs: width, outputs: heads, &p)
    gate = try LowRankLinear(
      "gate", inputs: width, rank: c.valueSize, outputs: values, bias: .zeros, &p)
    output = try Linear("output", inputs: values, outputs: width, &p)
    norm = try OutputNorm(c.valueSize, epsilon: c.normEpsilon, gate: .sigmoid, &p)
    engine = DeltaRule(
      heads: heads, keyHeads: keyHeads, keySize: c.headSize, valueSize: c.valueSize)
  }

  public var stateSpec: StateSpec { engine.stateSpec + streams.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = streams(x, state: &state, reset: context.reset)
    let beta = strength(x).sigmoid()
    let logDecay = decay(decayInput(x))
    let y = engine(
      .init(
        q: parts[0].heads(keyHeads).l2Normalized(), k: parts[1].heads(keyHeads).l2Normalized(),
        v: parts[2].heads(heads), beta: c.negativeEigenvalues ? beta * 2 : beta,
        gate: c.headSize > 1 ? .vector(logDecay) : .scalar(logDecay)),
      state: &state, form: context.form, reset: context.reset)
    return output(norm(y, gate: gate(x).heads(heads)).mergedHeads())
  }
}
