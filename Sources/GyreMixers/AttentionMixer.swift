import GyreLayers
import GyreRecurrence
import GyreTensors

/// Causal softmax attention with rotary positions and grouped heads, over all tokens or a window.
///
///     yₜ = Σ_{t−W<j≤t} softmax_j(K^-½ qₜ·kⱼ) vⱼ    out = W_o y
///
/// Vaswani et al., "Attention is all you need", 2017; Su et al., "RoFormer", 2021; Ainslie et al.,
/// "GQA", 2023.
///
/// State: keys and values of the tokens seen, or of the last W − 1. Engine: `SoftmaxAttention`.
public struct AttentionMixer: SequenceMixer {
  public static let kind = "softmax_attention"
  public struct Configuration: MixerConfiguration {
    /// Query heads; 0: width / 64, at least 1.
    public var heads = 0
    /// Key and value heads; 0: as many as query heads.
    public var keyHeads = 0
    /// Tokens a query sees, itself included; 0: all.
    public var window = 0
    public var rotaryBase = 10_000.0
    /// Rotates adjacent pairs instead of the two halves.
    public var rotaryInterleaved = false
    public var bias = false
    /// RMSNorm of queries and keys per head.
    public var normalizesKeys = false
    public init() {}

    func headCount(_ width: Int) -> Int { heads > 0 ? heads : max(1, width / 64) }
    public func validate(width: Int) throws(ConfigurationError) {
      try require(heads >= 0, "heads", "must not be negative, is \(heads)")
      try HeadSizes.divide(width, by: headCount(width), field: "heads", of: "width")
      try require(
        (width / headCount(width)) % 2 == 0, "heads",
        "must give an even head size, gives \(width / headCount(width))")
      try require(keyHeads >= 0, "keyHeads", "must not be negative, is \(keyHeads)")
      try require(
        keyHeads == 0 || headCount(width) % keyHeads == 0, "keyHeads",
        "must divide \(headCount(width)) heads, is \(keyHeads)")
      try require(window >= 0, "window", "must not be negative, is \(window)")
      try require(rotaryBase > 0, "rotaryBase", "must be positive, is \(rotaryBase)")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.heads = 4; $0.keyHeads = 2
    },
    with(Configuration()) {
      $0.heads = 2; $0.window = 9; $0.bias = true; $0.normalizesKeys = true
      $0.rotaryInterleaved = true
    },
  ]

  private let projection: Linear
  private let output: Linear
  private let queryNorm, keyNorm: NormLayer?
  private let engine: SoftmaxAttention
  private let c: Configuration
  private let heads, keyHeads, headSize: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    heads = c.headCount(width)
    keyHeads = c.keyHeads > 0 ? c.keyHeads : heads
    headSize = width / heads
    let bias: Initializer? = c.bias ? .zeros : nil
    projection = try Linear(
      "qkv", inputs: width, outputs: (heads + 2 * keyHeads) * headSize, bias: bias, &p)
    output = try Linear("output", inputs: width, outputs: width, bias: bias, &p)
    queryNorm = c.normalizesKeys ? try NormLayer("query_norm", headSize, &p) : nil
    keyNorm = c.normalizesKeys ? try NormLayer("key_norm", headSize, &p) : nil
    engine = SoftmaxAttention(
      heads: heads, keyHeads: keyHeads, keySize: headSize, valueSize: headSize,
      window: c.window > 0 ? c.window : nil)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).split([heads, keyHeads, keyHeads].map { $0 * headSize })
    func placed(_ t: Tensor, _ norm: NormLayer?) -> Tensor {
      (norm?(t) ?? t).rotated(
        base: c.rotaryBase, positionOffset: state.tokenCount, interleaved: c.rotaryInterleaved)
    }
    let q = placed(parts[0].heads(heads), queryNorm)
    let k = placed(parts[1].heads(keyHeads), keyNorm)
    let y = engine(
      .init(q: q, k: k, v: parts[2].heads(keyHeads)), state: &state, form: context.form,
      reset: context.reset)
    return output(y.mergedHeads())
  }
}
