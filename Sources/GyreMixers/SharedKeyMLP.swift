import GyreLayers
import GyreRecurrence
import GyreTensors

/// The feed-forward part of Rodimus+: a gated unit that reads the stream with sliding window
/// attention added to it, which itself does not stay in the stream.
///
///     out = MLP(norm(x + attention(norm(x))))
///     attention: qₕ, vₕ of H heads, one key k for all; rotary positions; a window of W tokens
///
/// x is the residual stream. He et al., "Rodimus*: breaking the accuracy-efficiency trade-off with
/// efficient attentions", 2024. https://arxiv.org/abs/2410.06577
///
/// State: keys and values of the last W − 1 tokens. Engine: `SoftmaxAttention`.
public struct SharedKeyMLP: SequenceMixer {
  public static let kind = "shared_key_mlp"
  public static let readsStream = true
  public struct Configuration: MixerConfiguration {
    /// Heads; 0: width / 64, at least 1.
    public var heads = 0
    /// Tokens a query sees, itself included; 0: all.
    public var window = 1024
    public var rotaryBase = 10_000.0
    /// Bias of queries, the key and values.
    public var bias = false
    /// RMSNorm of queries and keys per head.
    public var normalizesKeys = false
    public var keyNormEpsilon = 1e-5
    /// Of the two norms.
    public var normEpsilon = 1e-5
    /// The gated unit's hidden width, activation and whether its maps are separate; see `GatedMLP`.
    public var hidden = 0
    public var activation = "silu"
    public var separate = false
    public init() {}

    var unit: GatedMLP.Configuration {
      with(GatedMLP.Configuration()) {
        $0.hidden = hidden; $0.activation = activation; $0.separate = separate
      }
    }

    func headCount(_ width: Int) -> Int { heads > 0 ? heads : max(1, width / 64) }

    public func resolved(width: Int) -> Self {
      with(self) {
        $0.heads = headCount(width); $0.hidden = unit.resolved(width: width).hidden
      }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try require(heads >= 0, "heads", "must not be negative, is \(heads)")
      try HeadSizes.divide(width, by: headCount(width), field: "heads", of: "width")
      let size = width / headCount(width)
      try require(size % 2 == 0, "heads", "must give an even head size, gives \(size)")
      try require(window >= 0, "window", "must not be negative, is \(window)")
      try require(
        rotaryBase > 0 && rotaryBase.isFinite, "rotaryBase", "must be positive, is \(rotaryBase)")
      for (value, field) in [(keyNormEpsilon, "keyNormEpsilon"), (normEpsilon, "normEpsilon")] {
        try HeadSizes.epsilon(value, field)
      }
      try unit.validate(width: width)
    }
    public static let largeFields: Set<String> = ["rotaryBase"]
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.heads = 4; $0.window = 9
    },
    with(Configuration()) {
      $0.heads = 2; $0.window = 0; $0.bias = true; $0.normalizesKeys = true
      $0.hidden = 24; $0.separate = true; $0.activation = "gelu"
    },
  ]

  private let attentionNorm, unitNorm: NormLayer
  private let query, key, value, output: Linear
  private let queryNorm, keyNorm: NormLayer?
  private let unit: GatedUnitLayer
  private let engine: SoftmaxAttention
  private let heads: Int
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    heads = c.headCount(width)
    let size = width / heads
    let bias: Initializer? = c.bias ? .zeros : nil
    attentionNorm = try NormLayer("attention_norm", width, epsilon: c.normEpsilon, &p)
    query = try Linear("q", inputs: width, outputs: width, bias: bias, &p)
    key = try Linear("k", inputs: width, outputs: size, bias: bias, &p)
    value = try Linear("v", inputs: width, outputs: width, bias: bias, &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
    queryNorm =
      c.normalizesKeys ? try NormLayer("query_norm", size, epsilon: c.keyNormEpsilon, &p) : nil
    keyNorm =
      c.normalizesKeys ? try NormLayer("key_norm", size, epsilon: c.keyNormEpsilon, &p) : nil
    unitNorm = try NormLayer("norm", width, epsilon: c.normEpsilon, &p)
    unit = try GatedUnitLayer(c.unit, width: width, &p)
    engine = SoftmaxAttention(
      heads: heads, keySize: size, valueSize: size, window: c.window > 0 ? c.window : nil)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let position = state.tokenCount
    func placed(_ t: Tensor, _ norm: NormLayer?) -> Tensor {
      (norm?(t) ?? t).rotated(base: c.rotaryBase, positionOffset: position)
    }
    let h = attentionNorm(x)
    let y = engine(
      .init(
        q: placed(query(h).heads(heads), queryNorm),
        k: placed(key(h).heads(1), keyNorm).repeatedHeads(heads), v: value(h).heads(heads)),
      state: &state, form: context.form, reset: context.reset)
    return unit(unitNorm(x + output(y.mergedHeads())))
  }
}
