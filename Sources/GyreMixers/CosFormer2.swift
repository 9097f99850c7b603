import GyreLayers
import GyreRecurrence
import GyreTensors

/// cosFormer2: linear attention without decay whose weights fall with the distance through a cosine of
/// it in every channel.
///
///     yₜ = Σ_{j≤t} Σ_i φ(qₜ)ᵢ φ(kⱼ)ᵢ cos((t − j) θᵢ) vⱼ    φ(x)ₜ = [φ(x) cos tθ, φ(x) sin tθ]
///     out = W_o (RMSNorm(y) ∘ silu(W_g x))    θᵢ = base^(−i/K)
///
/// Shen et al., "Scaling laws for linear complexity language models", 2024.
/// https://arxiv.org/abs/2406.16690; Qin et al., "cosFormer: rethinking softmax in attention", 2022.
///
/// State: `[H, 2K, V]`. Engine: `LinearAttention`, no decay.
public struct CosFormer2: SequenceMixer {
  public static let kind = "cosformer2"
  public struct Configuration: MixerConfiguration {
    public var heads = 4
    /// φ without parameters; see `FeatureMap`.
    public var featureMap = "relu"
    public var base = 10_000.0
    public var normEpsilon = 1e-5
    public static var largeFields: Set<String> { ["base"] }
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: heads, field: "heads", of: "width")
      _ = try FeatureMap.Kind(featureMap, withoutParameters: true)
      try require(base > 0 && base <= 1e12, "base", "must be in (0, 1e12], is \(base)")
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 2; $0.featureMap = "silu"; $0.base = 50
    },
  ]

  private let projection, output: Linear
  private let features: FeatureMap
  private let norm: OutputNorm
  private let engine: LinearAttention
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    let size = width / c.heads
    projection = try Linear("qkvg", inputs: width, outputs: 4 * width, &p)
    let kind = try FeatureMap.Kind(c.featureMap, withoutParameters: true)
    features = try FeatureMap(kind, size: size, "features", &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
    norm = try OutputNorm(size, epsilon: c.normEpsilon, &p)
    engine = LinearAttention(heads: c.heads, keySize: 2 * kind.features(size), valueSize: size)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let width = x.shape.last
    let parts = projection(x).split([width, width, width, width]).map { $0.heads(c.heads) }
    let position = state.tokenCount
    // Turning the pairs (φ, 0) gives (φ cos, φ sin).
    func placed(_ t: Tensor) -> Tensor {
      let f = features(t)
      return concatenated([f, f * 0]).rotated(base: c.base, positionOffset: position)
    }
    let y = engine(
      .init(q: placed(parts[0]), k: placed(parts[1]), v: parts[2], decay: .none), state: &state,
      form: context.form, reset: context.reset)
    return output(norm(y, gate: parts[3]).mergedHeads())
  }
}
