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
/// with the delta rule over sequence length", 2024. https://arxiv.org/abs/2406.06484; activations and
/// sums as in Schlag, Irie and Schmidhuber, "Linear Transformers are secretly fast weight
/// programmers", 2021.
///
/// State: `[H, K, V]` and the convolution's tail. Engine: `DeltaRule`.
public struct DeltaNet: SequenceMixer {
  public static let kind = "delta_net"
  public struct Configuration: ExpandedHeads {
    public var heads = 4
    /// Total key and value widths over the model's width.
    public var keyExpansion = 1.0
    public var valueExpansion = 1.0
    public var convolution = 4
    public var negativeEigenvalues = false
    /// RMSNorm ∘ silu(W_g x) in place of RMSNorm.
    public var gatesOutput = false
    /// β from the input; without it 1.
    public var learnsStrength = true
    /// Of q and k: silu, relu, elu (elu + 1) or identity.
    public var keyActivation = "silu"
    /// What q and k are divided by: their length ("l2") or Σ|·| ("sum").
    public var keyNorm = "l2"
    public var normEpsilon = 1e-5
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try validateHeads(width)
      try HeadSizes.convolution(convolution)
      let activations = ["silu", "relu", "elu", "identity"]
      try require(
        activations.contains(keyActivation), "keyActivation",
        "must be one of \(activations), is \(keyActivation)")
      try require(
        ["l2", "sum"].contains(keyNorm), "keyNorm", "must be l2 or sum, is \(keyNorm)")
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 2; $0.convolution = 0; $0.negativeEigenvalues = true; $0.gatesOutput = true
    },
    with(Configuration()) {
      $0.keyExpansion = 0.5; $0.valueExpansion = 2; $0.keyActivation = "elu"; $0.keyNorm = "sum"
      $0.normEpsilon = 1e-6
    },
    with(Configuration()) {
      $0.heads = 2; $0.convolution = 0; $0.learnsStrength = false; $0.keyActivation = "identity"
    },
    with(Configuration()) {
      $0.convolution = 2; $0.keyActivation = "relu"
    },
  ]

  private let streams: Streams
  private let strength: Linear?
  private let output: Linear
  private let norm: OutputNorm
  private let engine: DeltaRule
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    let (keys, values) = c.channels(width)
    let activation: Unary.Kind? =
      switch c.keyActivation {
      case "silu": .silu
      case "relu": .relu
      default: nil
      }
    streams = try Streams(
      "qkv", inputs: width, mixed: [keys, keys, values], plain: c.gatesOutput ? [values] : [],
      convolution: c.convolution, activations: [activation, activation, .silu], &p)
    strength = c.learnsStrength ? try Linear("beta", inputs: width, outputs: c.heads, &p) : nil
    output = try Linear("output", inputs: values, outputs: width, &p)
    norm = try OutputNorm(values / c.heads, epsilon: c.normEpsilon, &p)
    engine = DeltaRule(heads: c.heads, keySize: keys / c.heads, valueSize: values / c.heads)
  }

  public var stateSpec: StateSpec { engine.stateSpec + streams.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = streams(x, state: &state, reset: context.reset).map { $0.heads(c.heads) }
    let beta =
      strength?(x).sigmoid() ?? .full(1, [x.shape[0], x.shape[1], c.heads], on: x.device)
    let y = engine(
      .init(
        q: placed(parts[0]), k: placed(parts[1]), v: parts[2],
        beta: c.negativeEigenvalues ? beta * 2 : beta, gate: .none),
      state: &state, form: context.form, reset: context.reset)
    return output(norm(y, gate: c.gatesOutput ? parts[3] : nil).mergedHeads())
  }

  private func placed(_ t: Tensor) -> Tensor {
    // elu + 1 without cancellation: max(x, 0) + e^min(x, 0).
    let activated = c.keyActivation == "elu" ? t.relu() + (-(-t).relu()).exp() : t
    return c.keyNorm == "sum"
      ? activated.absoluteNormalized(floor: 1e-6) : activated.l2Normalized()
  }
}
