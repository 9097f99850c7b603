import GyreLayers
import GyreRecurrence
import GyreTensors

/// ReGLA: gated linear attention with normalised exponential features and a gate that a second gate
/// refines, so that it does not saturate.
///
///     Sₜ = diag(αₜ) Sₜ₋₁ + φ(kₜ) vₜᵀ    yₜ = Sₜᵀ φ(qₜ)    φ(x) = √K e^x / Σ e^x
///     α = (1 − r) g² + r (1 − (1 − g)²)    g = σ(W_g x + b)    r = σ(W_r x)
///     out = W_o (RMSNorm(y) ∘ silu(W_u x))
///
/// The norm stands for the usual denominator; W_g and W_r have low rank; with r = ½ α = g. Lu,
/// Kobyzev, Rezagholizadeh, Chen and Langlais, "ReGLA: refining gated linear attention", 2025.
/// https://arxiv.org/abs/2502.01578
///
/// State: `[H, K, V]`. Engine: `LinearAttention`, vector decay.
public struct ReGLA: SequenceMixer {
  public static let kind = "regla"
  public struct Configuration: ExpandedHeads {
    public var heads = 4
    /// Total key and value widths over the model's width.
    public var keyExpansion = 0.5
    public var valueExpansion = 1.0
    /// Rank of the gates' maps.
    public var rank = 16
    /// b at the start: g = σ(b).
    public var gateBias = 3.0
    /// The second gate; without it α = g.
    public var refines = true
    public var normEpsilon = 1e-5
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try validateHeads(width)
      try HeadSizes.positive(rank, "rank")
      try require(abs(gateBias) <= 30, "gateBias", "must be in [−30, 30], is \(gateBias)")
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 2; $0.keyExpansion = 1; $0.valueExpansion = 2; $0.rank = 3; $0.gateBias = 0
      $0.refines = false
    },
  ]

  private let projection, output: Linear
  private let gate: LowRankLinear
  private let refine: LowRankLinear?
  private let norm: OutputNorm
  private let engine: LinearAttention
  private let sizes: [Int]
  private let heads: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    heads = c.heads
    let (keys, values) = c.channels(width)
    sizes = [keys, keys, values, values]
    projection = try Linear("qkvg", inputs: width, outputs: sizes.reduce(0, +), &p)
    gate = try LowRankLinear(
      "gate", inputs: width, rank: c.rank, outputs: keys, bias: .constant(c.gateBias), &p)
    refine =
      c.refines
      ? try LowRankLinear("refine", inputs: width, rank: c.rank, outputs: keys, bias: .zeros, &p)
      : nil
    output = try Linear("output", inputs: values, outputs: width, &p)
    norm = try OutputNorm(values / heads, epsilon: c.normEpsilon, &p)
    engine = LinearAttention(
      heads: heads, keySize: keys / heads, valueSize: values / heads, scale: 1)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).split(sizes).map { $0.heads(heads) }
    let root = Double(engine.keySize).squareRoot()
    let y = engine(
      .init(
        q: parts[0].softmax() * root, k: parts[1].softmax() * root, v: parts[2],
        decay: .vector(logDecay(x).heads(heads))),
      state: &state, form: context.form, reset: context.reset)
    return output(norm(y, gate: parts[3]).mergedHeads())
  }

  /// ln α = ln g + ln((1 − r) g + r (2 − g)), the second factor never zero.
  private func logDecay(_ x: Tensor) -> Tensor {
    let z = gate(x)
    guard let refine else { return z.logSigmoid() }
    let (g, r) = (z.sigmoid(), refine(x).sigmoid())
    let factor = g + r * ((1 - g) * 2)
    return z.logSigmoid() + (factor + 1e-30).log()
  }
}
