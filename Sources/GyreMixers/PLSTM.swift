import GyreLayers
import GyreRecurrence
import GyreTensors

/// pLSTM on a sequence: sources write, transitions carry, marks read, and the token itself goes straight
/// through.
///
///     Cʲₜ = Tʲₜ Cʲₜ₋₁ + Sʲₜ kₜ vₜᵀ    yₜ = Σⱼ Mʲₜ Cʲₜ₋₁ᵀ qₜ + Dₜ (qₜ·kₜ) vₜ
///     T = tanh(5 (W_T c + e))    S, M, D = σ(W c + b)    out = W_o (RMSNorm(y) + w ∘ x)
///
/// c is x after a short convolution, j runs over the J transitions of a head: the eigenvalues of the
/// published transition matrix, whose mixers are taken to be the identity that they start as.
/// Transitions may be negative. Pöppel, Freinschlag, Schmied, Lin and Hochreiter, "pLSTM:
/// parallelizable linear source transition mark networks", 2025. https://arxiv.org/abs/2506.11997
///
/// State: `[H·J, K, V]`, the signs `[H·J]` and the convolution's tail. Engine: `LinearAttention`, vector
/// decay |T| with the write of the same token left out; signs are carried by a scan.
public struct PLSTM: SequenceMixer {
  public static let kind = "plstm"
  public struct Configuration: MixerConfiguration {
    public var heads = 4
    /// J.
    public var transitions = 4
    public var convolution = 4
    /// e of the transitions tanh(5 e) at the start.
    public var transitionBias = 1.0
    /// b of sources, marks and the direct path at the start.
    public var gateBias = -5.0
    public var normEpsilon = 1e-5
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: heads, field: "heads", of: "width")
      try require(
        (1...256).contains(transitions), "transitions", "must be in 1...256, is \(transitions)")
      try HeadSizes.convolution(convolution)
      try HeadSizes.positive(convolution, "convolution")
      try require(
        abs(transitionBias) <= 30, "transitionBias", "must be in [−30, 30], is \(transitionBias)")
      try require(abs(gateBias) <= 30, "gateBias", "must be in [−30, 30], is \(gateBias)")
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.transitions = 2; $0.gateBias = -1
    },
    with(Configuration()) {
      $0.heads = 2; $0.transitions = 1; $0.convolution = 2; $0.transitionBias = 0.1;
      $0.gateBias = 0.5
      $0.normEpsilon = 1e-3
    },
  ]

  private let projection, gates, output: Linear
  private let convolution: ShortConvolutionLayer
  private let norm: OutputNorm
  private let pass: Parameter
  private let engine: LinearAttention
  private let signs: DiagonalScan
  private let heads, transitions: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    (heads, transitions) = (c.heads, c.transitions)
    let (size, lanes) = (width / c.heads, c.heads * c.transitions)
    projection = try Linear("qkv", inputs: width, outputs: 3 * width, &p)
    convolution = try ShortConvolutionLayer(
      "convolution", channels: width, width: c.convolution, bias: true, &p)
    gates = try Linear(
      "gates", inputs: width, outputs: 3 * lanes + c.heads,
      bias: .each { $0 < lanes ? c.transitionBias : c.gateBias }, initializer: .zeros, &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
    norm = try OutputNorm(size, epsilon: c.normEpsilon, &p)
    pass = try p.parameter("skip", [width], .constant(1), decay: WeightDecay.none)
    engine = LinearAttention(heads: lanes, keySize: size, valueSize: size)
    signs = DiagonalScan(channels: lanes)
  }

  public var stateSpec: StateSpec {
    engine.stateSpec + signs.stateSpec.prefixed("sign") + convolution.stateSpec
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (batch, tokens, width) = (x.shape[0], x.shape[1], x.shape.last)
    let (J, K, lanes) = (transitions, width / heads, heads * transitions)
    let parts = projection(x).split([width, width, width]).map { $0.heads(heads) }
    let c = convolution(x, state: &state, reset: context.reset)
    let g = gates(c).split([lanes, lanes, lanes, heads])
    let transition = (g[0] * 5).tanh()
    // C = σ Ĉ with σₜ = sign(Tₜ) σₜ₋₁ and Ĉ decaying by |T|.
    let size = transition.unary(.absolute) + 1e-30
    let sign = (transition / size).detached()
    let starts = documentStarts(x, isFresh: state["sign.h"] == nil, reset: context.reset)
    let sums = signs.scoped(
      .init(decay: sign, decayIsLog: false, input: starts.map { sign * $0 } ?? sign * 0), "sign",
      &state, context
    ).detached()
    state["sign.h"] = state["sign.h"]?.detached()
    func lane(_ t: Tensor) -> Tensor { t.reshaped([batch, tokens, lanes, 1]) }
    let wide = Tensor.zeros([batch, tokens, lanes, K], on: x.device)
    let y = engine.scoped(
      .init(
        q: parts[0].repeatedHeads(J) * lane(g[2].sigmoid() * sums * sign),
        k: parts[1].repeatedHeads(J) * lane(g[1].sigmoid() * sums),
        v: parts[2].repeatedHeads(J), decay: .vector(wide + lane(size.log())),
        bonus: .zeros([lanes, K], on: x.device)), "", &state, context)
    let read = y.reshaped([batch, tokens, heads, J * K])
      .split([Int](repeating: K, count: J)).reduce(nil) { (sum: Tensor?, part) in
        sum.map { $0 + part } ?? part
      }
    let direct =
      (parts[0] * parts[1]).summed(to: [batch, tokens, heads, 1])
      * g[3].sigmoid().reshaped([batch, tokens, heads, 1]) / Double(K).squareRoot()
    let written = parts[2] * direct
    return output(norm(read.map { $0 + written } ?? written).mergedHeads() + x * pass.value)
  }
}
