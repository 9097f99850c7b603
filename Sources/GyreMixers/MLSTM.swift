import GyreLayers
import GyreRecurrence
import GyreTensors

/// mLSTM of xLSTM: a matrix memory with exponential gates, a normaliser and a stabiliser.
///
///     Cₜ = f Cₜ₋₁ + i kₜ vₜᵀ    nₜ = f nₜ₋₁ + i kₜ    yₜ = Cₜᵀ q / max(|nₜᵀ q|, e^(−m))
///     out = W_o (LayerNorm per head (yₜ) ∘ σ(W_g xₜ))
///
/// with f = σ(f̃), i = e^ĩ, both pre-activations capped at ±15. Beck et al., "xLSTM: extended long
/// short-term memory", 2024. https://arxiv.org/abs/2405.04517
///
/// State: C `[H, K, V]`, n `[H, K]`, m `[H]`. Engine: `MatrixLSTM`.
public struct MLSTM: SequenceMixer {
  public static let kind = "mlstm"
  public struct Configuration: MixerConfiguration {
    public var heads = 4
    /// Total key width over the model's width.
    public var keyExpansion = 0.5
    /// Gate pre-activations are c·tanh(x/c).
    public var gateCap = 15.0
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: heads, field: "heads", of: "width")
      try HeadSizes.expansion(keyExpansion, "keyExpansion")
      try HeadSizes.divide(
        Int(keyExpansion * Double(width)), by: heads, field: "heads", of: "key width")
      try require(gateCap > 0, "gateCap", "must be positive, is \(gateCap)")
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 1; $0.keyExpansion = 1
    },
  ]

  private let projection: Linear
  private let gates: Linear
  private let output: Linear
  private let norm: NormLayer
  private let engine: MatrixLSTM
  private let c: Configuration
  private let width: Int
  private let keys: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    self.width = width
    keys = Int(c.keyExpansion * Double(width))
    let heads = c.heads
    projection = try Linear("qkvo", inputs: width, outputs: 2 * keys + 2 * width, &p)
    // Input gates start closed (−10), forget gates open (3 to 6); their weights start at zero.
    gates = try Linear(
      "gates", inputs: width, outputs: 2 * heads,
      bias: .each { i in i < heads ? -10 : 3 + 3 * Double(i - heads) / Double(max(heads - 1, 1)) },
      initializer: .zeros, &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
    norm = try NormLayer("norm", width, kind: .layer, epsilon: 1e-6, &p)
    engine = MatrixLSTM(heads: heads, keySize: keys / heads, valueSize: width / heads)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).split([keys, keys, width, width])
    let capped = ((gates(x) / c.gateCap).tanh() * c.gateCap).split([c.heads, c.heads])
    let y = engine(
      .init(
        q: parts[0].heads(c.heads), k: parts[1].heads(c.heads), v: parts[2].heads(c.heads),
        inputGate: capped[0], forgetGate: capped[1]),
      state: &state, form: context.form, reset: context.reset)
    return output(norm(y).mergedHeads() * parts[3].sigmoid())
  }
}
