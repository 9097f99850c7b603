import GyreLayers
import GyreRecurrence
import GyreTensors

/// JRT-RNN's prefix linear attention: the first M tokens of a document, the prompt, are also stored with
/// keys and values of their own.
///
///     yₜ = φ(qₜ)ᵀ (Σ_{j≤t} φ(kⱼ) vⱼᵀ + Σ_{j≤min(t,M)} φ(kᵉⱼ) vᵉⱼᵀ)
///          / φ(qₜ)ᵀ (Σ_{j≤t} φ(kⱼ) + Σ_{j≤min(t,M)} φ(kᵉⱼ))    out = W_o y
///
/// φ is the Taylor map of Based. Tokens behind the prefix read all of it, as published; those inside
/// read it causally, so that every token can be predicted and every form gives the same numbers. Arora
/// et al., "Just read twice: closing the recall gap for recurrent language models", 2024.
/// https://arxiv.org/abs/2407.05483
///
/// State: "S" and "prefix.S" `[H, F, V + 1]`, the last column the denominator, and the token count.
/// Engine: `LinearAttention`, no decay.
public struct PrefixLinearAttention: SequenceMixer {
  public static let kind = "prefix_linear_attention"
  public struct Configuration: MixerConfiguration {
    public var heads = 4
    /// Channels of q and k a head, before φ.
    public var featureSize = 16
    /// See `FeatureMap`; its values must be positive where y is to be an average.
    public var featureMap = "taylor"
    /// M.
    public var prefix = 512
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: heads, field: "heads", of: "width")
      try require(
        (1...256).contains(featureSize), "featureSize", "must be in 1...256, is \(featureSize)")
      _ = try FeatureMap.Kind(featureMap, withoutParameters: true)
      try require(
        (0...1 << 24).contains(prefix), "prefix", "must be in 0...\(1 << 24), is \(prefix)")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.featureSize = 4; $0.prefix = 7
    },
    with(Configuration()) {
      $0.heads = 2; $0.featureSize = 6; $0.featureMap = "elu"; $0.prefix = 12
    },
  ]

  private let projection, output: Linear
  private let features: FeatureMap
  private let engine: LinearAttention
  private let counter = TokenCounter()
  private let sizes: [Int]
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    let keys = c.heads * c.featureSize
    sizes = [keys, keys, width, keys, width]
    projection = try Linear("qkv", inputs: width, outputs: sizes.reduce(0, +), &p)
    let kind = try FeatureMap.Kind(c.featureMap, withoutParameters: true)
    features = try FeatureMap(kind, size: c.featureSize, "features", &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
    engine = LinearAttention(
      heads: c.heads, keySize: kind.features(c.featureSize), valueSize: width / c.heads + 1,
      scale: 1)
  }

  public var stateSpec: StateSpec {
    engine.stateSpec + engine.stateSpec.prefixed("prefix") + counter.stateSpec
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (batch, tokens, V) = (x.shape[0], x.shape[1], engine.valueSize - 1)
    let parts = projection(x).split(sizes).map { $0.heads(c.heads) }
    let ones = Tensor.full(1, [batch, tokens, c.heads, 1], on: x.device)
    // 1 up to token M, 0 behind.
    let inside = (Double(c.prefix) + 1 - counter(like: x, state: &state, context: context))
      .clamped(0, 1).reshaped([batch, tokens, 1, 1])
    let q = features(parts[0])
    let sums =
      engine.scoped(
        .init(q: q, k: features(parts[1]), v: concatenated([parts[2], ones]), decay: .none), "",
        &state, context)
      + engine.scoped(
        .init(
          q: q, k: features(parts[3]) * inside, v: concatenated([parts[4], ones]), decay: .none),
        "prefix", &state, context)
    let y = sums.split([V, 1])
    return output((y[0] / (y[1] + 1e-6)).mergedHeads())
  }
}
