import GyreLayers
import GyreRecurrence
import GyreTensors

/// A gated state space layer: a diagonal system on a reduced width inside a gated unit.
///
///     u = gelu(W_u x)    v = gelu(W_v x)    out = W_o (W_g s ∘ u)    s the response to v
///     hₜ = e^Λ hₜ₋₁ + vₜ    sₜ = Re Σₙ Cₙ (e^Λₙ − 1)/Λₙ hₜₙ + D vₜ    Λ = −e^r + i e^w
///
/// The poles Λ are shared by all channels (DSS). Mehta, Gupta, Cutkosky and Neyshabur, "Long range
/// language modeling via gated state spaces", 2022. https://arxiv.org/abs/2206.13947
///
/// State: complex `[inner, N]`. Engine: `DiagonalSystem`.
public struct GSS: SequenceMixer {
  public static let kind = "gss"
  public struct Configuration: MixerConfiguration {
    /// N; the published layers have 512.
    public var stateSize = 64
    /// Channels of the system; 0: width / 4.
    public var inner = 0
    /// Channels of the gate; 0: four times the width.
    public var hidden = 0
    /// Learning rate of Λ over that of the other parameters.
    public var dynamicsRate = 0.25
    public init() {}
    public func resolved(width: Int) -> Self {
      with(self) {
        $0.inner = inner > 0 ? inner : max(width / 4, 1)
        $0.hidden = hidden > 0 ? hidden : 4 * width
      }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try SystemChecks.states(stateSize)
      try require(inner >= 0, "inner", "must not be negative, is \(inner)")
      try require(hidden >= 0, "hidden", "must not be negative, is \(hidden)")
      try SystemChecks.rate(dynamicsRate)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.stateSize = 6 },
    with(Configuration()) {
      $0.stateSize = 4; $0.inner = 12; $0.hidden = 24; $0.dynamicsRate = 1
    },
  ]

  private let gate, value, expand, output: Linear
  private let rate, angle, C, skip: Parameter
  private let engine: DiagonalSystem

  public init(
    _ configuration: Configuration, width: Int, layer: LayerPosition,
    parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let c = configuration.resolved(width: width)
    let (n, inner) = (c.stateSize, c.inner)
    gate = try Linear("u", inputs: width, outputs: c.hidden, &p)
    value = try Linear("v", inputs: width, outputs: inner, &p)
    expand = try Linear("gate", inputs: inner, outputs: c.hidden, &p)
    output = try Linear("output", inputs: c.hidden, outputs: width, &p)
    rate = try p.parameter(
      "Lambda_re", [n], .normal(standardDeviation: 1), decay: WeightDecay.none,
      learningRateScale: c.dynamicsRate)
    angle = try p.parameter(
      "Lambda_im", [n], .normal(standardDeviation: 1), decay: WeightDecay.none,
      learningRateScale: c.dynamicsRate)
    C = try p.parameter(
      "C", [2, inner, n], .normal(standardDeviation: 1 / Double(n).squareRoot()),
      decay: WeightDecay.none)
    skip = try p.parameter("D", [inner], .normal(standardDeviation: 1), decay: WeightDecay.none)
    engine = DiagonalSystem(channels: inner, states: n)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (inner, n) = (engine.channels, engine.states)
    let poles = ComplexTensor(re: -rate.value.exp(), im: angle.value.exp())
    let one = Tensor.full(1, [1], on: x.device)
    let (decay, input) = Discretization.zoh(poles, step: one)
    let c = C.value.split([1, 1], axis: 0).map { $0.reshaped([inner, n]) }
    // Made of a parameter: populations must not take it for rows of a batch.
    let zeros = c[0] * 0
    let v = value(x).unary(.gelu)
    let s = engine(
      .init(
        input: v, decay: decay.map { zeros + $0 },
        output: ComplexTensor(re: c[0], im: c[1]) * input),
      state: &state, form: context.form, reset: context.reset)
    return output(expand(s + v * skip.value) * gate(x).unary(.gelu))
  }
}
