import GyreLayers
import GyreRecurrence
import GyreTensors

/// Linear attention: softmax(q·k) replaced by products of features, so that the past is a matrix.
///
///     Sₜ = Sₜ₋₁ + φ(kₜ) vₜᵀ    yₜ = s · Sₜᵀ φ(qₜ)    s = F^-½, F features
///     normalised: yₜ / (s · zₜ·φ(qₜ) + 1e-10), zₜ = zₜ₋₁ + φ(kₜ)    out = W_o RMSNorm(yₜ)
///
/// For φ see `FeatureMap`. Katharopoulos et al., "Transformers are RNNs", 2020,
/// https://arxiv.org/abs/2006.16236; Schlag et al., 2021; Kasai et al., 2021; Zhang et al., 2024;
/// Arora et al., "Simple linear attention language models balance the recall-throughput tradeoff",
/// 2024.
///
/// State: `[H, F, V]`, normalised also `[H, F]`. Engine: `LinearAttention`, no decay.
public struct LinearAttentionMixer: SequenceMixer {
  public static let kind = "linear_attention"
  public struct Configuration: GroupedHeads {
    public var heads = 4
    /// Heads of k and v; 0: as many as query heads.
    public var keyHeads = 0
    /// Total key and value widths over the model's width.
    public var keyExpansion = 1.0
    public var valueExpansion = 1.0
    public var featureMap = "elu"
    /// One feature map for queries and keys.
    public var tiesFeatureMap = false
    /// φ(q) / (Σφ(q) + 1e-4), and k likewise.
    public var normalizesQueries = false
    public var normalizesKeys = false
    /// Divides by the sum of the weights.
    public var normalizes = false
    /// RMSNorm over each head's values; without it the output map follows at once.
    public var normalizesOutput = true
    /// Whether that norm has a weight.
    public var normWeight = true
    public var normEpsilon = 1e-5
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try validateGroups(width)
      _ = try FeatureMap.Kind(featureMap)
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    // The output norm would cancel what normalising does, all but an ε.
    with(Configuration()) {
      $0.normalizes = true; $0.normalizesOutput = false
    },
    Configuration(),
    with(Configuration()) {
      $0.heads = 2; $0.featureMap = "elementwise_product"; $0.keyExpansion = 0.5
      $0.valueExpansion = 2
    },
    with(Configuration()) {
      $0.keyHeads = 2; $0.featureMap = "hedgehog"; $0.tiesFeatureMap = true; $0.normalizes = true
      $0.normalizesOutput = false
    },
    with(Configuration()) {
      $0.featureMap = "dpfp"; $0.normWeight = false; $0.normalizesQueries = true
      $0.normalizesKeys = true
    },
    with(Configuration()) {
      $0.heads = 2; $0.featureMap = "t2r"; $0.normEpsilon = 1e-6
    },
    with(Configuration()) {
      $0.featureMap = "taylor"; $0.keyExpansion = 0.5; $0.normalizes = true
      $0.normalizesOutput = false
    },
    with(Configuration()) { $0.featureMap = "identity" },
    with(Configuration()) { $0.featureMap = "relu" },
  ]

  private let projection: Linear
  private let output: Linear
  private let norm: OutputNorm?
  private let queryFeatures, keyFeatures: FeatureMap
  private let engine: LinearAttention
  private let keyHeads: Int
  private let sizes: [Int]
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    keyHeads = c.keyHeadCount
    let (keySize, valueSize) = c.sizes(width)
    sizes = c.mixed(width)
    projection = try Linear("qkv", inputs: width, outputs: sizes.reduce(0, +), &p)
    let kind = try FeatureMap.Kind(c.featureMap)
    queryFeatures = try FeatureMap(
      kind, size: keySize, c.tiesFeatureMap ? "features" : "query_features", &p)
    keyFeatures =
      c.tiesFeatureMap
      ? queryFeatures : try FeatureMap(kind, size: keySize, "key_features", &p)
    output = try Linear("output", inputs: c.heads * valueSize, outputs: width, &p)
    norm =
      c.normalizesOutput
      ? try OutputNorm(valueSize, hasWeight: c.normWeight, epsilon: c.normEpsilon, &p) : nil
    engine = LinearAttention(
      heads: c.heads, keySize: kind.features(keySize), valueSize: valueSize,
      normalizer: c.normalizes ? .sum(epsilon: 1e-10) : .none)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).split(sizes)
    let groups = c.heads / keyHeads
    var q = queryFeatures(parts[0].heads(c.heads))
    var k = keyFeatures(parts[1].heads(keyHeads))
    if c.normalizesQueries { q = q.sumNormalized(epsilon: 1e-4) }
    if c.normalizesKeys { k = k.sumNormalized(epsilon: 1e-4) }
    let y = engine(
      .init(
        q: q, k: k.repeatedHeads(groups), v: parts[2].heads(keyHeads).repeatedHeads(groups),
        decay: .none), state: &state, form: context.form, reset: context.reset)
    return output((norm?(y) ?? y).mergedHeads())
  }
}
