import GyreLayers
import GyreRecurrence
import GyreTensors

/// Mamba: a selective diagonal state space model with a state of N numbers a channel.
///
///     hₜ = exp(Δₜ A) ∘ hₜ₋₁ + Δₜ xₜ Bₜᵀ    yₜ = hₜ Cₜ + D ∘ xₜ    A = −e^a    out = W_o (yₜ ∘ silu(zₜ))
///     (dt, B, C) = W_s x    Δ = softplus(W_Δ dt + b)
///
/// x and z are linear maps of the input; x passes a short convolution and an activation first.
/// `innerNorm` normalises dt, B and C (FalconMamba without weights, Jamba with). Gu and Dao, "Mamba:
/// linear-time sequence modeling with selective state spaces", 2023.
/// https://arxiv.org/abs/2312.00752. With `negativeEigenvalues` the factor is 2 exp(Δ A) − 1: Grazzi
/// et al., "Unlocking state-tracking in linear RNNs through negative eigenvalues", 2024.
/// https://arxiv.org/abs/2411.12537
///
/// State: `[D, N]` and the convolution's tail. Engine: `SelectiveScan`; `DiagonalScan` over N·D
/// channels with `negativeEigenvalues`.
public struct Mamba1: SequenceMixer {
  public static let kind = "mamba"
  public struct Configuration: MixerConfiguration {
    public enum InnerNorm: String, Codable, Hashable, Sendable { case none, plain, rms }
    /// N.
    public var stateSize = 16
    /// Inner channels; 0: twice the width.
    public var inner = 0
    /// Rank of Δ's map; 0: width / 16, rounded up.
    public var rank = 0
    public var convolution = 4
    public var convolutionBias = true
    /// Activation after the convolution.
    public var activation = "silu"
    /// Of the gate z.
    public var gateActivation = "silu"
    /// Bias of the input and output maps.
    public var bias = false
    public var innerNorm = InnerNorm.none
    public var innerNormEpsilon = 1e-6
    /// Factors of the state in (−1, 1) in place of (0, 1).
    public var negativeEigenvalues = false
    public init() {}

    func innerSize(_ width: Int) -> Int { inner > 0 ? inner : 2 * width }
    func rankSize(_ width: Int) -> Int { rank > 0 ? rank : (width + 15) / 16 }

    public func resolved(width: Int) -> Self {
      var c = self
      (c.inner, c.rank) = (innerSize(width), rankSize(width))
      return c
    }

    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.positive(stateSize, "stateSize")
      try require(inner >= 0, "inner", "must not be negative, is \(inner)")
      try require(rank >= 0, "rank", "must not be negative, is \(rank)")
      try HeadSizes.convolution(convolution)
      try HeadSizes.positive(convolution, "convolution")
      try HeadSizes.activation(activation)
      try HeadSizes.activation(gateActivation, "gateActivation")
      try HeadSizes.epsilon(innerNormEpsilon, "innerNormEpsilon")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.stateSize = 8 },
    with(Configuration()) {
      $0.stateSize = 5; $0.inner = 40; $0.rank = 3; $0.convolution = 2; $0.convolutionBias = false
      $0.activation = "geluTanh"; $0.bias = true; $0.innerNorm = .rms; $0.innerNormEpsilon = 1e-3
      $0.gateActivation = "geluTanh"
    },
    with(Configuration()) {
      $0.stateSize = 4; $0.innerNorm = .plain; $0.innerNormEpsilon = 1e-3
    },
    with(Configuration()) {
      $0.stateSize = 3; $0.inner = 24; $0.convolution = 1; $0.negativeEigenvalues = true
    },
  ]

  private let input, select, step, output: Linear
  private let convolution: ShortConvolutionLayer
  private let logRate, skip: Parameter
  private let norms: [NormLayer]
  private let engine: SelectiveScan
  private let signed: DiagonalScan?
  private let inner, rank, stateSize: Int
  private let gate: Unary.Kind

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    gate = Unary.Kind.named(c.gateActivation) ?? .silu
    inner = c.innerSize(width)
    rank = c.rankSize(width)
    let n = c.stateSize
    stateSize = n
    let bias: Initializer? = c.bias ? .zeros : nil
    input = try Linear("input", inputs: width, outputs: 2 * inner, bias: bias, &p)
    convolution = try ShortConvolutionLayer(
      "convolution", channels: inner, width: c.convolution, bias: c.convolutionBias,
      activation: Unary.Kind.named(c.activation), &p)
    select = try Linear("select", inputs: inner, outputs: rank + 2 * n, &p)
    step = try Linear(
      "step", inputs: rank, outputs: inner, bias: .mambaStep(), initializer: .fanIn(rank), &p)
    logRate = try p.parameter(
      "A_log", [inner, n], .each { Functions.log(Double($0 % n + 1)) }, decay: WeightDecay.none)
    skip = try p.parameter("D", [inner], .constant(1))
    var norms: [NormLayer] = []
    if c.innerNorm != .none {
      for (name, size) in [("step_norm", rank), ("B_norm", n), ("C_norm", n)] {
        norms.append(
          try NormLayer(
            name, size, kind: c.innerNorm == .rms ? .rms : .plain, epsilon: c.innerNormEpsilon, &p))
      }
    }
    self.norms = norms
    output = try Linear("output", inputs: inner, outputs: width, bias: bias, &p)
    engine = SelectiveScan(channels: inner, stateSize: n)
    signed = c.negativeEigenvalues ? DiagonalScan(channels: inner * n) : nil
  }

  public var stateSpec: StateSpec {
    (signed?.stateSpec ?? engine.stateSpec) + convolution.stateSpec
  }

  public func callAsFunction(_ u: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = input(u).split([inner, inner])
    let x = convolution(parts[0], state: &state, reset: context.reset)
    var selected = select(x).split([rank, stateSize, stateSize])
    for (i, norm) in norms.enumerated() { selected[i] = norm(selected[i]) }
    let inputs = SelectiveScan.Inputs(
      x: x, step: step(selected[0]).softplus(), A: -logRate.value.exp(), B: selected[1],
      C: selected[2], skip: skip.value)
    let y =
      signed.map { signedScan($0, inputs, &state, context) }
      ?? engine(inputs, state: &state, form: context.form, reset: context.reset)
    return output(y * parts[1].unary(gate))
  }

  /// hₜ = (2 exp(Δₜ A) − 1) ∘ hₜ₋₁ + Δₜ xₜ Bₜᵀ, a channel of the scan for every number of the state, N
  /// parts of D.
  private func signedScan(
    _ scan: DiagonalScan, _ i: SelectiveScan.Inputs, _ state: inout State,
    _ context: SequenceContext
  ) -> Tensor {
    let (batch, tokens) = (i.x.shape[0], i.x.shape[1])
    let flat: Shape = [batch, tokens, stateSize * inner]
    let parts: Shape = [batch, tokens, stateSize, inner]
    let column: Shape = [batch, tokens, stateSize, 1]
    func repeated(_ x: Tensor) -> Tensor {
      concatenated([Tensor](repeating: x, count: stateSize))
    }
    let rates = i.A.permuted([1, 0]).reshaped([stateSize * inner])
    let decay = (repeated(i.step) * rates).exp().affine(2, -1)
    let written = repeated(i.step * i.x).reshaped(parts) * i.B.reshaped(column)
    let h = scan(
      .init(decay: decay, decayIsLog: false, input: written.reshaped(flat)),
      state: &state, form: context.form, reset: context.reset)
    let read = (h.reshaped(parts) * i.C.reshaped(column)).reshaped(flat)
    return read.split([Int](repeating: inner, count: stateSize))
      .reduce(i.x * skip.value) { $0 + $1 }
  }
}
