import GyreLayers
import GyreRecurrence
import GyreTensors

/// One diagonal system over all channels, as S5 and LRU have it:
///
///     hₜ = a ∘ hₜ₋₁ + b ∘ (B uₜ)    yₜ = Re(C hₜ) + D ∘ uₜ
///
/// a, b and h complex `[P]`, B complex `[P, D]`, C complex `[D, P]`.
struct DiagonalMap: Sendable {
  private let B, C, skip: Parameter
  private let engine: ComplexScan
  private let states: Int

  /// - Parameters:
  ///   - B: of `[2·P, D]`, the real parts first.
  ///   - C: of `[D, 2·P]`, the real parts first.
  init(
    width: Int, states: Int, B: Initializer, C: Initializer, rate: Double,
    _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.states = states
    self.B = try p.parameter("B", [2 * states, width], B, learningRateScale: rate)
    self.C = try p.parameter("C", [width, 2 * states], C)
    skip = try p.parameter("D", [width], .normal(standardDeviation: 1), decay: WeightDecay.none)
    engine = ComplexScan(channels: states)
  }

  var stateSpec: StateSpec { engine.stateSpec }

  /// - Parameter factor: of Re(C h); 2 where each state stands for a conjugate pair.
  func callAsFunction(
    _ u: Tensor, decay: ComplexTensor, input: ComplexTensor, factor: Double, state: inout State,
    _ context: SequenceContext
  ) -> Tensor {
    let parts = u.linear(B.value).split([states, states])
    let driven = ComplexTensor(re: parts[0], im: parts[1]) * input
    let h = engine(
      .init(
        decayReal: decay.re, decayImaginary: decay.im, inputReal: driven.re,
        inputImaginary: driven.im), state: &state, form: context.form, reset: context.reset)
    let c = C.value.split([states, states])
    return h.linear(concatenated([c[0] * factor, c[1] * -factor])) + u * skip.value
  }
}
