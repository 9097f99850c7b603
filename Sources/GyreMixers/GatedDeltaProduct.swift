import GyreLayers
import GyreRecurrence
import GyreTensors

/// Gated DeltaProduct: several delta steps a token, so that the transition is a product of
/// generalised Householder reflections.
///
///     S⁰ = αₜ Sₜ₋₁    Sʲ = (I − βⱼ kⱼ kⱼᵀ) Sʲ⁻¹ + βⱼ kⱼ vⱼᵀ, j = 1…n    Sₜ = Sⁿ    yₜ = K^-½ Sₜᵀ qₜ
///     out = W_o (RMSNorm(yₜ) ∘ silu(W_g xₜ))
///
/// q and the n keys and values pass a short convolution with SiLU; q and keys have unit length; α and
/// β as in `GatedDeltaNet`. With n reflections of β in (0, 2) a layer tracks permutations of n + 1
/// elements. Siems et al., "DeltaProduct: improving state-tracking in linear RNNs via Householder
/// products", 2025. https://arxiv.org/abs/2502.10297
///
/// State: `[H, K, V]` and the convolution's tail. Engine: `DeltaRule` on n·T tokens.
public struct GatedDeltaProduct: SequenceMixer {
  public static let kind = "gated_delta_product"
  public struct Configuration: DeltaHeads {
    public var headSize = 64
    /// Key heads; 0: ¾ of width / headSize, at least 1.
    public var heads = 0
    /// Value heads; 0: as many as key heads.
    public var valueHeads = 0
    /// Value channels a head over `headSize`.
    public var valueExpansion = 2.0
    /// n: delta steps a token.
    public var reflections = 2
    public var convolution = 4
    /// α from the input; without it 1.
    public var decays = true
    public var negativeEigenvalues = true
    public var gatesOutput = true
    public var normEpsilon = 1e-5
    public init() {}
    public static let widthShare = 0.75

    public func validate(width: Int) throws(ConfigurationError) {
      try validateHeads(width)
      try require(
        (1...64).contains(reflections), "reflections", "must be in 1...64, is \(reflections)")
      try HeadSizes.convolution(convolution)
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.headSize = 8; $0.heads = 2
    },
    with(Configuration()) {
      $0.headSize = 8; $0.heads = 1; $0.valueHeads = 2; $0.valueExpansion = 1; $0.reflections = 3
      $0.decays = false; $0.convolution = 2; $0.normEpsilon = 1e-6
    },
    with(Configuration()) {
      $0.headSize = 8; $0.heads = 2; $0.reflections = 1; $0.negativeEigenvalues = false
      $0.gatesOutput = false; $0.convolution = 0
    },
  ]

  private let streams: Streams
  private let strength: Linear
  private let decayInput: Linear?
  private let decay: StepDecay?
  private let output: Linear
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
    // Keys and values of the first step, of the second, ….
    streams = try Streams(
      "qkvg", inputs: width, mixed: [keys, c.reflections * keys, c.reflections * values],
      plain: c.gatesOutput ? [values] : [], convolution: c.convolution, activations: [.silu], &p)
    strength = try Linear("beta", inputs: width, outputs: c.reflections * heads, &p)
    decayInput = c.decays ? try Linear("decay", inputs: width, outputs: heads, &p) : nil
    decay = c.decays ? try StepDecay(heads: heads, rates: 0...16, &p) : nil
    output = try Linear("output", inputs: values, outputs: width, &p)
    norm = try OutputNorm(c.valueSize, epsilon: c.normEpsilon, &p)
    engine = DeltaRule(
      heads: heads, keyHeads: keyHeads, keySize: c.headSize, valueSize: c.valueSize)
  }

  public var stateSpec: StateSpec { engine.stateSpec + streams.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let n = c.reflections
    let (batch, tokens) = (x.shape[0], x.shape[1])
    let parts = streams(x, state: &state, reset: context.reset)
    let betas = strength(x).sigmoid()
    let beta = (c.negativeEigenvalues ? betas * 2 : betas).reshaped([batch, tokens * n, heads])
    // The state decays before the first step and is read after the last.
    let q = steps(parts[0].heads(keyHeads).l2Normalized(), at: n - 1)
    let gate = zip(decay, decayInput).map { steps($0($1(x)), at: 0) }
    let reset = context.reset.map { steps($0.cast(to: .float32), at: 0).cast(to: .int32) }
    let y = engine(
      .init(
        q: q,
        k: parts[1].reshaped([batch, tokens * n, keyHeads, c.headSize]).l2Normalized(),
        v: parts[2].reshaped([batch, tokens * n, heads, c.valueSize]), beta: beta,
        gate: gate.map { .scalar($0) } ?? .none),
      state: &state, form: context.form, reset: reset)
    let last = y.reshaped([batch, tokens, n, heads * c.valueSize]).sliced(n - 1..<n, axis: 2)
      .reshaped([batch, tokens, heads, c.valueSize])
    return output(norm(last, gate: c.gatesOutput ? parts[3].heads(heads) : nil).mergedHeads())
  }

  /// `[B, T, …]` as `[B, n·T, …]`: each token's entry at one of its n steps, zeros at the others.
  private func steps(_ x: Tensor, at step: Int) -> Tensor {
    guard c.reflections > 1 else { return x }
    let (batch, tokens) = (x.shape[0], x.shape[1])
    let rest = Array(x.shape.dimensions.dropFirst(2))
    let size = rest.reduce(1, *)
    func zeros(_ count: Int) -> [Tensor] {
      count > 0 ? [.zeros([batch, tokens, count, size], on: x.device)] : []
    }
    let entry = x.reshaped([batch, tokens, 1, size])
    return concatenated(
      zeros(step) + [entry] + zeros(c.reflections - 1 - step), axis: 2
    ).reshaped(Shape([batch, tokens * c.reflections] + rest))
  }
}

/// Both values, or nil where one is absent.
private func zip<A, B>(_ a: A?, _ b: B?) -> (A, B)? {
  guard let a, let b else { return nil }
  return (a, b)
}
