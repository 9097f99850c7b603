import GyreLayers
import GyreRecurrence
import GyreTensors

/// S4D: a diagonal linear time-invariant system for each channel.
///
///     x' = A x + u    yₜ = 2 Re Σₙ Cₙ xₜₙ + D uₜ    Aₙ = −e^αₙ + iωₙ    out = GLU(gelu(y))
///
/// in steps of Δ = e^δ of each channel, discretised by zero-order hold (S4D) or bilinearly (LSSL, S4).
/// With `start` `legs` it is the diagonal form of LSSL's and S4's HiPPO-LegS. Gu, Goel, Gupta and Ré,
/// "On the parameterization and initialization of diagonal state space models", 2022,
/// https://arxiv.org/abs/2206.11893; Gu et al., "Combining recurrent, convolutional, and
/// continuous-time models with linear state-space layers", 2021, https://arxiv.org/abs/2110.13985.
///
/// State: complex `[D, N]`. Engine: `DiagonalSystem`.
public struct S4D: SequenceMixer {
  public static let kind = "s4d"
  public struct Configuration: MixerConfiguration {
    /// N, conjugate pairs a channel.
    public var stateSize = 32
    public var start = DiagonalStart.lin
    public var discretization = Discretization.zoh
    /// Between which Δ starts.
    public var stepLow = 0.001
    public var stepHigh = 0.1
    /// Learning rate of A and Δ over that of the other parameters.
    public var dynamicsRate = 0.25
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try SystemChecks.states(stateSize)
      try start.validate(states: stateSize, "stateSize")
      try SystemChecks.steps(stepLow, stepHigh)
      try SystemChecks.rate(dynamicsRate)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.stateSize = 4 },
    with(Configuration()) {
      $0.stateSize = 5; $0.start = .legs; $0.discretization = .bilinear; $0.stepLow = 0.01
      $0.dynamicsRate = 1
    },
    with(Configuration()) {
      $0.stateSize = 3; $0.start = .inv; $0.stepHigh = 0.5
    },
  ]

  private let logStep, rate, frequency, output, skip: Parameter
  private let out: GatedOutput
  private let engine: DiagonalSystem
  private let discretization: Discretization
  private let channels, states: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    (channels, states) = (width, c.stateSize)
    discretization = c.discretization
    let (n, start, scale) = (c.stateSize, c.start, c.dynamicsRate)
    logStep = try p.parameter(
      "log_dt", [width, 1], .logUniform(c.stepLow, c.stepHigh), decay: WeightDecay.none,
      learningRateScale: scale)
    rate = try p.parameter(
      "log_A_real", [width, n], .constant(Functions.log(0.5)), decay: WeightDecay.none,
      learningRateScale: scale)
    frequency = try p.parameter(
      "A_imag", [width, n],
      .values { count, _ in
        let one = start.frequencies(n)
        return (0..<count).map { Float(one[$0 % n]) }
      }, decay: WeightDecay.none, learningRateScale: scale)
    // Complex normal of variance 1.
    output = try p.parameter(
      "C", [2, width, n], .normal(standardDeviation: 0.5.squareRoot()), decay: WeightDecay.none)
    skip = try p.parameter("D", [width], .normal(standardDeviation: 1), decay: WeightDecay.none)
    out = try GatedOutput(inputs: width, width: width, &p)
    engine = DiagonalSystem(channels: width, states: n)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let A = ComplexTensor(re: -rate.value.exp(), im: frequency.value)
    let (decay, input) = discretization(A, step: logStep.value.exp())
    let parts = output.value.split([1, 1], axis: 0).map { $0.reshaped([channels, states]) }
    let c = ComplexTensor(re: parts[0], im: parts[1]) * input
    let y = engine(
      .init(input: x, decay: decay, output: c.map { $0 * 2 }), state: &state, form: context.form,
      reset: context.reset)
    return out(y + x * skip.value)
  }
}
