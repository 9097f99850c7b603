import GyreLayers
import GyreRecurrence
import GyreTensors

/// TransNormerLLM's layer: linear attention with constant decays, a norm without weight in place of a
/// denominator, and a linear gate.
///
///     Sₜ = λ Sₜ₋₁ + kₜ vₜᵀ    yₜ = Sₜᵀ qₜ    −ln λ = (8/H) (1 − l/L) h    out = W_o (RMSNorm(y) ∘ W_u x)
///
/// q and k pass an activation; positions rotate them in the first layer only, or as `rotary` says. Qin
/// et al., "TransNormerLLM: a faster and better large language model with improved TransNormer",
/// 2023, https://arxiv.org/abs/2307.14995; evaluated as Lightning Attention-2, 2024.
///
/// State: `[H, K, K]`. Engine: `LinearAttention`, constant decay. `lightning_attention` differs by σ of
/// the gate, the norm's weight and the activation of v.
public struct TransNormer: SequenceMixer {
  public static let kind = "transnormer"
  public struct Configuration: MixerConfiguration {
    public enum Rotary: String, Codable, Hashable, Sendable { case first, all, none }
    public var heads = 4
    /// Of q and k.
    public var activation = Unary.Kind.silu.name
    public var rotary = Rotary.first
    public var rotaryBase = 10_000.0
    public var normEpsilon = 1e-6
    public static var largeFields: Set<String> { ["rotaryBase"] }
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: heads, field: "heads", of: "width")
      try require(
        rotary == .none || width / heads % 2 == 0, "heads",
        "must leave an even number of channels a head, is \(heads)")
      try HeadSizes.activation(activation)
      try require(
        rotaryBase > 0 && rotaryBase <= 1e12, "rotaryBase", "must be in (0, 1e12], is \(rotaryBase)"
      )
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 2; $0.rotary = .all; $0.rotaryBase = 100; $0.activation = "relu"
    },
    with(Configuration()) { $0.rotary = .none },
  ]

  private let projection, output: Linear
  private let engine: LinearAttention
  private let activation: Unary.Kind
  private let logDecay: [Float]
  private let rotates: Bool
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    activation = Unary.Kind.named(c.activation) ?? .silu
    rotates = c.rotary == .all || (c.rotary == .first && layer.index == 0)
    var slopes = LightningAttention.Configuration()
    (slopes.heads, slopes.slopes) = (c.heads, .linear)
    logDecay = (0..<c.heads).map { Float(-LightningAttention.slope(slopes, head: $0, layer)) }
    projection = try Linear("qkvu", inputs: width, outputs: 4 * width, &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
    engine = LinearAttention(
      heads: c.heads, keySize: width / c.heads, valueSize: width / c.heads, scale: 1)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let width = x.shape.last
    let parts = projection(x).split([width, width, width, width])
    let position = state.tokenCount
    func placed(_ t: Tensor) -> Tensor {
      let active = t.unary(activation).heads(c.heads)
      return rotates ? active.rotated(base: c.rotaryBase, positionOffset: position) : active
    }
    let decay = Tensor(logDecay, shape: [c.heads], on: x.device)
    let y = engine(
      .init(
        q: placed(parts[0]), k: placed(parts[1]), v: parts[2].heads(c.heads),
        decay: .constant(decay)),
      state: &state, form: context.form, reset: context.reset)
    return output(y.mergedHeads().rmsNormalized(epsilon: c.normEpsilon) * parts[3])
  }
}
