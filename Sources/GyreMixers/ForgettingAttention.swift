import GyreLayers
import GyreRecurrence
import GyreTensors

/// Softmax attention that forgets: a gate a head lowers the scores of what lies further back.
///
///     yₜ = Σ_{j≤t} softmax_j(K^-½ qₜ·kⱼ + Σ_{j<l≤t} ln f_l) vⱼ    f = σ(W_f x + b)
///     out = W_o (yₜ ∘ σ(W_g xₜ))
///
/// There are no positions beside the gates. The output gate is an option. Lin, Nikishin, He and
/// Courville, "Forgetting Transformer: softmax attention with a forget gate", 2025.
/// https://arxiv.org/abs/2503.02130
///
/// State: keys, values and gates of the tokens seen, or of the last W − 1. Engine:
/// `SoftmaxAttention` with forget gates.
public struct ForgettingAttention: SequenceMixer {
  public static let kind = "forgetting_attention"
  public struct Configuration: MixerConfiguration {
    /// Query heads; 0: width / 64, at least 1.
    public var heads = 0
    /// Key and value heads; 0: as many as query heads.
    public var keyHeads = 0
    /// Tokens a query sees, itself included; 0: all.
    public var window = 0
    /// Biases of queries, keys and values.
    public var bias = false
    /// RMSNorm of queries and keys over each head, with a weight for every channel.
    public var normalizesKeys = false
    public var normEpsilon = 1e-5
    public var gatesOutput = false
    public init() {}

    func headCount(_ width: Int) -> Int { heads > 0 ? heads : max(1, width / 64) }
    public func resolved(width: Int) -> Self {
      with(self) {
        $0.heads = headCount(width)
        $0.keyHeads = keyHeads > 0 ? keyHeads : headCount(width)
      }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try require(heads >= 0, "heads", "must not be negative, is \(heads)")
      try HeadSizes.divide(width, by: headCount(width), field: "heads", of: "width")
      try require(keyHeads >= 0, "keyHeads", "must not be negative, is \(keyHeads)")
      try require(
        keyHeads == 0 || headCount(width) % keyHeads == 0, "keyHeads",
        "must divide \(headCount(width)) heads, is \(keyHeads)")
      try require(window >= 0, "window", "must not be negative, is \(window)")
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.heads = 4 },
    with(Configuration()) {
      $0.heads = 4; $0.keyHeads = 2; $0.bias = true; $0.normalizesKeys = true
      $0.gatesOutput = true
    },
    with(Configuration()) {
      $0.heads = 2; $0.window = 9
    },
  ]

  private let query, key, value, forget, output: Linear
  private let gate: Linear?
  private let queryNorm, keyNorm: NormLayer?
  private let engine: SoftmaxAttention
  private let heads, keyHeads: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    heads = c.headCount(width)
    keyHeads = c.keyHeads > 0 ? c.keyHeads : heads
    let headSize = width / heads
    let bias: Initializer? = c.bias ? .zeros : nil
    let keyWidth = keyHeads * headSize
    query = try Linear("q", inputs: width, outputs: width, bias: bias, &p)
    key = try Linear("k", inputs: width, outputs: keyWidth, bias: bias, &p)
    value = try Linear("v", inputs: width, outputs: keyWidth, bias: bias, &p)
    forget = try Linear("forget", inputs: width, outputs: heads, bias: .zeros, &p)
    gate = c.gatesOutput ? try Linear("gate", inputs: width, outputs: width, &p) : nil
    output = try Linear("output", inputs: width, outputs: width, &p)
    queryNorm =
      c.normalizesKeys ? try NormLayer("query_norm", width, epsilon: c.normEpsilon, &p) : nil
    keyNorm =
      c.normalizesKeys ? try NormLayer("key_norm", keyWidth, epsilon: c.normEpsilon, &p) : nil
    engine = SoftmaxAttention(
      heads: heads, keyHeads: keyHeads, keySize: headSize, valueSize: headSize,
      window: c.window > 0 ? c.window : nil, hasForgetGate: true)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (q, k) = (query(x).heads(heads), key(x).heads(keyHeads))
    let y = engine(
      .init(
        q: queryNorm?(q) ?? q, k: keyNorm?(k) ?? k, v: value(x).heads(keyHeads),
        logForget: forget(x).logSigmoid()),
      state: &state, form: context.form, reset: context.reset
    ).mergedHeads()
    return output(gate.map { y * $0(x).sigmoid() } ?? y)
  }
}
