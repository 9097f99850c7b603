import GyreLayers
import GyreRecurrence
import GyreTensors

/// Lightning attention: linear attention with one constant decay a head that weakens with depth.
///
///     Sₜ = λ Sₜ₋₁ + kₜ vₜᵀ    yₜ = Sₜᵀ qₜ    out = W_o (RMSNorm(yₜ) ∘ σ(W_g xₜ))
///
/// q, k and v pass an activation. The decay of head h of H in layer l of L is, with slopes
///
///     geometric: −ln λ = 2^(−8(h+1)/H) (1 − l/(L − 1))      (MiniMax-01)
///     linear:    −ln λ = (8/H) (1 − l/L) h                   (TransNormerLLM)
///
/// Qin et al., "Various lengths, constant speed: efficient language modeling with lightning
/// attention", 2024, https://arxiv.org/abs/2405.17381; MiniMax, "MiniMax-01", 2025,
/// https://arxiv.org/abs/2501.08313.
///
/// State: `[H, K, K]`. Engine: `LinearAttention`, constant decay.
public struct LightningAttention: SequenceMixer {
  public static let kind = "lightning_attention"
  public struct Configuration: MixerConfiguration {
    public enum Slopes: String, Codable, Hashable, Sendable { case geometric, linear }
    public var heads = 4
    /// Channels a head; 0: width / heads.
    public var headSize = 0
    public var slopes = Slopes.geometric
    /// Of q, k and v.
    public var activation = Unary.Kind.silu.name
    public var normEpsilon = 1e-6
    public init() {}

    func size(_ width: Int) -> Int { headSize > 0 ? headSize : width / max(heads, 1) }
    public func resolved(width: Int) -> Self { with(self) { $0.headSize = size(width) } }
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.positive(heads, "heads")
      try require(headSize >= 0, "headSize", "must not be negative, is \(headSize)")
      if headSize == 0 { try HeadSizes.divide(width, by: heads, field: "heads", of: "width") }
      try HeadSizes.activation(activation)
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 2; $0.headSize = 12; $0.slopes = .linear; $0.activation = "relu"
    },
  ]

  private let projection, gate, output: Linear
  private let norm: Parameter
  private let engine: LinearAttention
  private let activation: Unary.Kind
  private let logDecay: [Float]
  private let c: Configuration
  private let headSize: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    headSize = c.size(width)
    activation = Unary.Kind.named(c.activation) ?? .silu
    logDecay = (0..<c.heads).map { Float(-Self.slope(c, head: $0, layer)) }
    let inner = c.heads * headSize
    projection = try Linear("qkv", inputs: width, outputs: 3 * inner, &p)
    gate = try Linear("gate", inputs: width, outputs: inner, &p)
    output = try Linear("output", inputs: inner, outputs: width, &p)
    norm = try p.parameter("norm.weight", [inner], .constant(1), decay: WeightDecay.none)
    engine = LinearAttention(heads: c.heads, keySize: headSize, valueSize: headSize, scale: 1)
  }

  /// −ln λ of a head. The published code keeps the last layer's a little above zero.
  static func slope(_ c: Configuration, head: Int, _ layer: LayerPosition) -> Double {
    let heads = Double(c.heads)
    switch c.slopes {
    case .geometric:
      let depth = 1 - Double(layer.index) / (Double(layer.count - 1) + 1e-5) + 1e-5
      return Functions.pow(2, -8 * Double(head + 1) / heads) * depth
    case .linear:
      return 8 / heads * (1 - Double(layer.index) / Double(layer.count)) * Double(head)
    }
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  /// Rows of `qkv` lie head by head: q, k and v of the first, then those of the next.
  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).unary(activation).heads(c.heads)
      .split([headSize, headSize, headSize])
    let decay = Tensor(logDecay, shape: [c.heads], on: x.device)
    let y = engine(
      .init(q: parts[0], k: parts[1], v: parts[2], decay: .constant(decay)), state: &state,
      form: context.form, reset: context.reset)
    return output(
      y.mergedHeads().gatedNorm(
        gate(x), weight: norm.value, epsilon: c.normEpsilon, by: .sigmoid))
  }
}
