import GyreLayers
import GyreRecurrence
import GyreTensors

/// The linear recurrent unit: a complex diagonal recurrence that starts on a ring and cannot leave the
/// unit disc.
///
///     hₜ = λ ∘ hₜ₋₁ + γ ∘ (B uₜ)    yₜ = Re(C hₜ) + D ∘ uₜ    λ = exp(−e^ν + i e^θ)    γ = e^g
///     out = GLU(gelu(y))
///
/// |λ| starts uniform on the ring between `innerRadius` and `outerRadius`, its angle in (0, `phase`),
/// γ = √(1 − |λ|²). Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu and De, "Resurrecting recurrent
/// neural networks for long sequences", 2023. https://arxiv.org/abs/2303.06349
///
/// State: complex `[N]`. Engine: `ComplexScan`, constant decay.
public struct LRU: SequenceMixer {
  public static let kind = "lru"
  public struct Configuration: MixerConfiguration {
    /// N; 0: the width.
    public var stateSize = 0
    public var innerRadius = 0.0
    public var outerRadius = 1.0
    /// Largest angle of λ at the start; 2π where it is 0.
    public var phase = 0.0
    /// Learning rate of ν, θ, γ and B over that of the other parameters.
    public var dynamicsRate = 0.25
    public init() {}
    public func resolved(width: Int) -> Self {
      with(self) {
        $0.stateSize = stateSize > 0 ? stateSize : width
        $0.phase = phase > 0 ? phase : 2 * Double.pi
      }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try SystemChecks.states(stateSize > 0 || stateSize < 0 ? stateSize : 1)
      try require(
        innerRadius >= 0 && innerRadius < 1, "innerRadius", "must be in [0, 1), is \(innerRadius)")
      try require(
        outerRadius > innerRadius && outerRadius <= 1, "outerRadius",
        "must be in (innerRadius, 1], is \(outerRadius)")
      try require(
        phase >= 0 && phase <= 2 * Double.pi, "phase", "must be in [0, 2π], is \(phase)")
      try SystemChecks.rate(dynamicsRate)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.stateSize = 12 },
    with(Configuration()) {
      $0.innerRadius = 0.7; $0.outerRadius = 0.95; $0.phase = 0.6; $0.dynamicsRate = 1
    },
  ]

  private let rate, angle, scale: Parameter
  private let map: DiagonalMap
  private let out: GatedOutput

  public init(
    _ configuration: Configuration, width: Int, layer: LayerPosition,
    parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let c = configuration.resolved(width: width)
    let (n, low, high) = (c.stateSize, c.innerRadius * c.innerRadius, c.outerRadius * c.outerRadius)
    // |λ|² uniform on the ring. γ is made of the same numbers: one parameter, three rows.
    func row(_ f: @escaping @Sendable (Double, Double) -> Double) -> Initializer {
      .values { count, _ in
        let g = CounterGenerator(seed: UInt64(layer.index), name: "lru ring")
        let u = g.uniforms(2 * count)
        return (0..<count).map {
          Float(f(Double(u[$0]) * (high - low) + low, Double(u[count + $0])))
        }
      }
    }
    let phase = c.phase
    rate = try p.parameter(
      "nu_log", [n], row { r, _ in Functions.log(-0.5 * Functions.log(r)) },
      decay: WeightDecay.none, learningRateScale: c.dynamicsRate)
    angle = try p.parameter(
      "theta_log", [n], row { _, u in Functions.log(phase * u) }, decay: WeightDecay.none,
      learningRateScale: c.dynamicsRate)
    scale = try p.parameter(
      "gamma_log", [n], row { r, _ in 0.5 * Functions.log(1 - r) }, decay: WeightDecay.none,
      learningRateScale: c.dynamicsRate)
    map = try DiagonalMap(
      width: width, states: n,
      B: .normal(standardDeviation: 1 / Double(2 * width).squareRoot()),
      C: .normal(standardDeviation: 1 / Double(n).squareRoot()), rate: c.dynamicsRate, &p)
    out = try GatedOutput(inputs: width, width: width, &p)
  }

  public var stateSpec: StateSpec { map.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let decay = ComplexTensor.exp(-rate.value.exp(), angle.value.exp())
    let gain = scale.value.exp()
    return out(
      map(
        x, decay: decay, input: ComplexTensor(re: gain, im: gain * 0), factor: 1, state: &state,
        context))
  }
}
