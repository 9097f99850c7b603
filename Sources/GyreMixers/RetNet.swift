import GyreLayers
import GyreRecurrence
import GyreTensors

/// Multi-scale retention: linear attention with one constant decay a head and rotary positions.
///
///     Sₜ = γₕ Sₜ₋₁ + kₜ vₜᵀ    yₜ = K^-½ Sₜᵀ qₜ    γₕ = 1 − 2^(−5−h)
///     out = W_o (RMSNorm(yₜ) ∘ silu(W_g xₜ))
///
/// Optionally q, k and v pass a short convolution with SiLU, q and k a feature map before they
/// rotate, and keys and values are shared by groups of query heads. Sun et al., "Retentive network: a
/// successor to Transformer", 2023. https://arxiv.org/abs/2307.08621
///
/// State: `[H, K, V]` and the convolution's tail. Engine: `LinearAttention`, constant decay.
public struct RetNet: SequenceMixer {
  public static let kind = "retnet"
  public struct Configuration: GroupedHeads {
    public var heads = 4
    /// Heads of k and v; 0: as many as query heads.
    public var keyHeads = 0
    /// Total key and value widths over the model's width.
    public var keyExpansion = 1.0
    public var valueExpansion = 2.0
    public var rotaryBase = 10_000.0
    /// Of q and k: identity or an element-wise function.
    public var featureMap = "identity"
    /// Taps of the short convolution; 0 for none.
    public var convolution = 0
    public var gatesOutput = true
    /// Whether the output norm has a weight.
    public var normWeight = true
    public var normEpsilon = 1e-5
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try validateGroups(width)
      let keySize = sizes(width).key
      try require(keySize % 2 == 0, "heads", "must give an even key size, gives \(keySize)")
      try require(rotaryBase > 0, "rotaryBase", "must be positive, is \(rotaryBase)")
      _ = try FeatureMap.Kind(featureMap, withoutParameters: true)
      try HeadSizes.convolution(convolution)
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 2; $0.valueExpansion = 1
    },
    with(Configuration()) {
      $0.keyHeads = 2; $0.keyExpansion = 0.5; $0.valueExpansion = 1; $0.featureMap = "relu"
      $0.convolution = 3; $0.gatesOutput = false
    },
    with(Configuration()) {
      $0.heads = 2; $0.normWeight = false; $0.normEpsilon = 1e-6
    },
  ]

  private let streams: Streams
  private let output: Linear
  private let norm: OutputNorm
  private let features: FeatureMap
  private let engine: LinearAttention
  private let keyHeads: Int
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    keyHeads = c.keyHeadCount
    let (keySize, valueSize) = c.sizes(width)
    streams = try Streams(
      "qkvg", inputs: width,
      mixed: c.mixed(width),
      plain: c.gatesOutput ? [c.heads * valueSize] : [], convolution: c.convolution,
      activations: [c.convolution > 0 ? .silu : nil], &p)
    output = try Linear("output", inputs: c.heads * valueSize, outputs: width, &p)
    norm = try OutputNorm(valueSize, hasWeight: c.normWeight, epsilon: c.normEpsilon, &p)
    features = try FeatureMap(
      .init(c.featureMap, withoutParameters: true), size: keySize, "features", &p)
    engine = LinearAttention(heads: c.heads, keySize: keySize, valueSize: valueSize)
  }

  public var stateSpec: StateSpec { engine.stateSpec + streams.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = streams(x, state: &state, reset: context.reset)
    let groups = c.heads / keyHeads
    let position = state.tokenCount
    func placed(_ t: Tensor) -> Tensor {
      features(t).rotated(base: c.rotaryBase, positionOffset: position)
    }
    let decay = Tensor(
      (0..<c.heads).map { Float(Functions.log1p(-Functions.pow(2, -5 - Double($0)))) },
      shape: [c.heads], on: x.device)
    let y = engine(
      .init(
        q: placed(parts[0].heads(c.heads)),
        k: placed(parts[1].heads(keyHeads)).repeatedHeads(groups),
        v: parts[2].heads(keyHeads).repeatedHeads(groups), decay: .constant(decay)),
      state: &state, form: context.form, reset: context.reset)
    let gate = c.gatesOutput ? parts[3].heads(c.heads) : nil
    return output(norm(y, gate: gate).mergedHeads())
  }
}
