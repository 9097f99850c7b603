import GyreLayers
import GyreRecurrence
import GyreTensors

/// S5: one diagonal system of many inputs and outputs.
///
///     hₜ = Λ̄ hₜ₋₁ + B̄ uₜ    yₜ = 2 Re(C̃ hₜ) + D ∘ uₜ    out = GLU(gelu(y))
///
/// Λ starts as the eigenvalues of `blocks` HiPPO-LegS matrices, B̃ = V⁻¹B₀ and C̃ = C₀V with their
/// eigenvectors V; each state stands for a conjugate pair and has a step Δ of its own. Smith,
/// Warrington and Linderman, "Simplified state space layers for sequence modeling", 2022.
/// https://arxiv.org/abs/2208.04933
///
/// State: complex `[N]`. Engine: `ComplexScan`, constant decay.
public struct S5: SequenceMixer {
  public static let kind = "s5"
  public struct Configuration: MixerConfiguration {
    /// N, conjugate pairs in all.
    public var stateSize = 64
    /// Blocks that the start of Λ has.
    public var blocks = 1
    public var discretization = Discretization.zoh
    /// Between which Δ starts.
    public var stepLow = 0.001
    public var stepHigh = 0.1
    /// Learning rate of Λ, Δ and B over that of the other parameters.
    public var dynamicsRate = 0.25
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try SystemChecks.states(stateSize)
      try HeadSizes.divide(stateSize, by: blocks, field: "blocks", of: "stateSize")
      try DiagonalStart.legs.validate(states: stateSize / blocks, "stateSize")
      try SystemChecks.steps(stepLow, stepHigh)
      try SystemChecks.rate(dynamicsRate)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.stateSize = 8 },
    with(Configuration()) {
      $0.stateSize = 12; $0.blocks = 3; $0.discretization = .bilinear; $0.stepHigh = 0.5
      $0.dynamicsRate = 1
    },
  ]

  private let real, imaginary, logStep: Parameter
  private let map: DiagonalMap
  private let out: GatedOutput
  private let discretization: Discretization

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let (n, block, rate) = (c.stateSize, c.stateSize / c.blocks, c.dynamicsRate)
    discretization = c.discretization
    real = try p.parameter(
      "Lambda_re", [n], .constant(-0.5), decay: WeightDecay.none, learningRateScale: rate)
    imaginary = try p.parameter(
      "Lambda_im", [n],
      .values { count, _ in
        let one = DiagonalStart.legs.frequencies(block)
        return (0..<count).map { Float(one[$0 % block]) }
      }, decay: WeightDecay.none, learningRateScale: rate)
    logStep = try p.parameter(
      "log_step", [n], .logUniform(c.stepLow, c.stepHigh), decay: WeightDecay.none,
      learningRateScale: rate)
    map = try DiagonalMap(
      width: width, states: n, B: Self.inputStart(width, n, block),
      C: Self.outputStart(width, n, block), rate: rate, &p)
    out = try GatedOutput(inputs: width, width: width, &p)
  }

  /// V⁻¹B₀ with B₀ normal of variance 1/D; V is unitary.
  private static func inputStart(_ width: Int, _ n: Int, _ block: Int) -> Initializer {
    .values { count, generator in
      let vectors = LegendreModes(block).vectors
      let start = generator.normals(count).map { Double($0) / Double(width).squareRoot() }
      var result = [Float](repeating: 0, count: count)
      for state in 0..<n {
        let (first, m) = (state / block * 2 * block, state % block)
        for d in 0..<width {
          var (re, im) = (0.0, 0.0)
          for r in 0..<2 * block {
            let b = start[(first + r) * width + d]
            re += vectors[r][m].re * b
            im -= vectors[r][m].im * b
          }
          result[state * width + d] = Float(re)
          result[(n + state) * width + d] = Float(im)
        }
      }
      return result
    }
  }

  /// C₀V with C₀ normal of variance 1/(2N).
  private static func outputStart(_ width: Int, _ n: Int, _ block: Int) -> Initializer {
    .values { count, generator in
      let vectors = LegendreModes(block).vectors
      let start = generator.normals(count).map { Double($0) / Double(2 * n).squareRoot() }
      var result = [Float](repeating: 0, count: count)
      for d in 0..<width {
        for state in 0..<n {
          let (first, m) = (state / block * 2 * block, state % block)
          var (re, im) = (0.0, 0.0)
          for r in 0..<2 * block {
            let c = start[d * 2 * n + first + r]
            re += vectors[r][m].re * c
            im += vectors[r][m].im * c
          }
          result[d * 2 * n + state] = Float(re)
          result[d * 2 * n + n + state] = Float(im)
        }
      }
      return result
    }
  }

  public var stateSpec: StateSpec { map.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (decay, input) = discretization(
      ComplexTensor(re: real.value, im: imaginary.value), step: logStep.value.exp())
    return out(map(x, decay: decay, input: input, factor: 2, state: &state, context))
  }
}
