import GyreLayers
import GyreRecurrence
import GyreTensors

/// The recurrent block of Griffin and Hawk around the real-gated linear recurrent unit.
///
///     rₜ = σ(W_a xₜ + b)    iₜ = σ(W_i xₜ + b)    ln aₜ = −8 rₜ softplus(Λ)
///     hₜ = aₜ ∘ hₜ₋₁ + √(1 − aₜ²) ∘ (iₜ ∘ xₜ)    out = W_o (hₜ ∘ gelu(W_y u))
///
/// x is a linear map of the block's input u after a short convolution; W_a and W_i are
/// block-diagonal; the first token of a document enters with factor 1. De et al., "Griffin: mixing
/// gated linear recurrences with local attention", 2024. https://arxiv.org/abs/2402.19427
///
/// State: `[D]` and the convolution's tail. Engine: `DiagonalScan`, log decays.
public struct RGLRU: SequenceMixer {
  public static let kind = "rg_lru"
  public struct Configuration: MixerConfiguration {
    /// Recurrent channels; 0: the model's width.
    public var channels = 0
    /// Blocks of the gates' matrices.
    public var heads = 4
    public var convolution = 4
    /// Activation of the gate W_y u.
    public var activation = "geluTanh"
    /// The two gates' matrices as parameters of their own: loading them copies nothing.
    public var separate = false
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try require(channels >= 0, "channels", "must not be negative, is \(channels)")
      try HeadSizes.divide(
        channels > 0 ? channels : width, by: heads, field: "heads", of: "channels")
      try HeadSizes.convolution(convolution)
      try HeadSizes.positive(convolution, "convolution")
      try HeadSizes.activation(activation)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.channels = 24; $0.heads = 2; $0.convolution = 2; $0.activation = "silu"
      $0.separate = true
    },
  ]

  private let input, gate, output: Linear
  private let convolution: ShortConvolutionLayer
  /// One for both gates, the input gate's columns first in a block, or one each.
  private let gates: [(weight: Parameter, bias: Parameter)]
  private let rate: Parameter
  private let activation: Unary.Kind
  private let engine: DiagonalScan
  private let heads: Int
  private let channels: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    channels = c.channels > 0 ? c.channels : width
    heads = c.heads
    activation = Unary.Kind.named(c.activation) ?? .geluTanh
    let block = channels / heads
    input = try Linear("x", inputs: width, outputs: channels, bias: .zeros, &p)
    gate = try Linear("y", inputs: width, outputs: channels, bias: .zeros, &p)
    convolution = try ShortConvolutionLayer(
      "convolution", channels: channels, width: c.convolution, bias: true, activates: false, &p)
    var gates: [(weight: Parameter, bias: Parameter)] = []
    for name in c.separate ? ["input_gate", "recurrent_gate"] : ["gates"] {
      let columns = c.separate ? block : 2 * block
      gates.append(
        (
          try p.parameter(
            name + ".weight", [heads, block, columns],
            .normal(standardDeviation: 1 / Double(block).squareRoot())),
          try p.parameter(
            name + ".bias", [heads, 1, columns], .zeros, decay: WeightDecay.none)
        ))
    }
    self.gates = gates
    // e^(−softplus Λ) = ρ with ρ² uniform in (0.9², 0.999²).
    rate = try p.parameter(
      "rate", [channels],
      .values { n, g in
        g.uniforms(n, 0.81, 0.998_001).map { Float(Functions.log(1 / Double($0).squareRoot() - 1)) }
      })
    output = try Linear("output", inputs: channels, outputs: width, bias: .zeros, &p)
    engine = DiagonalScan(channels: channels)
  }

  public var stateSpec: StateSpec { engine.stateSpec + convolution.stateSpec }

  public func callAsFunction(_ u: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let starts = documentStarts(u, isFresh: state["h"] == nil, reset: context.reset)
    let x = convolution(input(u), state: &state, reset: context.reset)
    let (batch, tokens, block) = (x.shape[0], x.shape[1], channels / heads)
    let blocks = x.reshaped([batch * tokens, heads, block]).permuted([1, 0, 2])
    let products = gates.map { (blocks.matmul($0.weight.value) + $0.bias.value).sigmoid() }
    let both = (products.count == 1 ? products[0].split([block, block]) : products)
      .map { $0.permuted([1, 0, 2]).reshaped([batch, tokens, channels]) }
    let logDecay = both[1] * (rate.value.softplus() * -8)
    var factor = (-(logDecay * 2).unary(.expm1)).boundedRoot()
    if let starts { factor = factor * (1 - starts) + starts }
    let h = engine(
      .init(decay: logDecay, decayIsLog: true, input: both[0] * x * factor), state: &state,
      form: context.form, reset: context.reset)
    return output(h * gate(u).unary(activation))
  }
}

extension Tensor {
  /// √x with a slope of at most 1000, which it has below 2.5e-7.
  fileprivate func boundedRoot() -> Tensor {
    let root = maximum(.full(2.5e-7, [1], on: device))
    let bounded = root.unary(.sqrt) + (self - root) * 1000
    return bounded + (self.unary(.sqrt) - bounded).detached()
  }
}
