import GyreLayers
import GyreRecurrence
import GyreTensors

/// Gated DeltaNet: the delta rule on a state that also decays.
///
///     Sₜ = αₜ (I − βₜ kₜ kₜᵀ) Sₜ₋₁ + βₜ kₜ vₜᵀ    yₜ = K^-½ Sₜᵀ qₜ
///     ln αₜ = −e^a softplus(W_a xₜ + b)    βₜ = σ(W_β xₜ)    out = W_o (RMSNorm(yₜ) ∘ silu(W_g xₜ))
///
/// q, k and v pass a short convolution with SiLU; q and k have unit length; value heads may be a
/// multiple of key heads. With `negativeEigenvalues` β = 2σ. Yang, Kautz and Hatamizadeh, "Gated
/// delta networks: improving Mamba2 with delta rule", 2024. https://arxiv.org/abs/2412.06464
///
/// State: `[H, K, V]` and the convolution's tail. Engine: `DeltaRule`, scalar gate.
public struct GatedDeltaNet: SequenceMixer {
  public static let kind = "gated_delta_net"
  public struct Configuration: DeltaHeads {
    public var headSize = 64
    /// Key heads; 0: ¾ of width / headSize, at least 1.
    public var heads = 0
    /// Value heads; 0: as many as key heads.
    public var valueHeads = 0
    /// Value channels a head over `headSize`.
    public var valueExpansion = 2.0
    public var convolution = 4
    public var negativeEigenvalues = false
    /// Activation after the convolution.
    public var activation = "silu"
    public var gatesOutput = true
    /// Of the output gate: silu or sigmoid.
    public var gateActivation = "silu"
    public var normEpsilon = 1e-5
    public init() {}
    public static let widthShare = 0.75

    public func validate(width: Int) throws(ConfigurationError) {
      try validateHeads(width)
      try HeadSizes.convolution(convolution)
      _ = try GatedNorm.Gate.named(gateActivation, field: "gateActivation")
      try HeadSizes.activation(activation)
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.headSize = 8; $0.heads = 2
    },
    with(Configuration()) {
      $0.headSize = 12; $0.heads = 2; $0.valueHeads = 4; $0.valueExpansion = 1
      $0.negativeEigenvalues = true; $0.convolution = 2; $0.gateActivation = "sigmoid"
      $0.activation = "gelu"
    },
    with(Configuration()) {
      $0.headSize = 8; $0.heads = 2; $0.convolution = 0; $0.gatesOutput = false
      $0.normEpsilon = 1e-6
    },
  ]

  private let streams: Streams
  private let gates: Linear
  private let decay: StepDecay
  private let output: Linear
  private let norm: OutputNorm
  private let engine: DeltaRule
  private let c: Configuration
  private let keyHeads, heads: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    keyHeads = c.keyHeads(width)
    heads = c.headCount(width)
    let (keys, values) = (keyHeads * c.headSize, heads * c.valueSize)
    streams = try Streams(
      "qkvg", inputs: width, mixed: [keys, keys, values], plain: c.gatesOutput ? [values] : [],
      convolution: c.convolution, activations: [Unary.Kind.named(c.activation)], &p)
    // Decays, then write strengths.
    gates = try Linear("gates", inputs: width, outputs: 2 * heads, &p)
    decay = try StepDecay(heads: heads, rates: 0...16, &p)
    output = try Linear("output", inputs: values, outputs: width, &p)
    norm = try OutputNorm(
      c.valueSize, epsilon: c.normEpsilon,
      gate: .named(c.gateActivation, field: "gateActivation"), &p)
    engine = DeltaRule(
      heads: heads, keyHeads: keyHeads, keySize: c.headSize, valueSize: c.valueSize)
  }

  public var stateSpec: StateSpec { engine.stateSpec + streams.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (parts, control) = streams(x, beside: gates, state: &state, reset: context.reset)
    if context.reset == nil, let y = step(parts, control, &state) { return output(y.mergedHeads()) }
    let gate = decay.withStrengths(control, strength: c.negativeEigenvalues ? 2 : 1)
    let y = engine(
      .init(
        q: parts[0].heads(keyHeads).l2Normalized(), k: parts[1].heads(keyHeads).l2Normalized(),
        v: parts[2].heads(heads), beta: gate.beta, gate: .scalar(gate.decay)),
      state: &state, form: context.form, reset: context.reset)
    return output(norm(y, gate: c.gatesOutput ? parts[3].heads(heads) : nil).mergedHeads())
  }

  /// One token up to the last map; nil where that is not one kernel.
  private func step(_ parts: [Tensor], _ control: Tensor, _ state: inout State) -> Tensor? {
    guard c.gatesOutput, let rates = decay.scalarRates, let weight = norm.weight?.value
    else { return nil }
    return engine.step(
      .init(
        q: parts[0].heads(keyHeads), k: parts[1].heads(keyHeads), v: parts[2].heads(heads),
        gates: control, stepBias: rates.bias, logRate: rates.log,
        outputGate: parts[3].heads(heads), weight: weight),
      strength: c.negativeEigenvalues ? 2 : 1, normEpsilon: norm.epsilon, by: norm.activation,
      state: &state)
  }

  public func appendToken(
    _ input: TokenInput, to p: inout TokenProgram, state: State
  ) -> Bool {
    guard let rates = decay.scalarRates, let matrix = state["S"], streams.hasOneActivation
    else { return false }
    let (keys, values) = (keyHeads * c.headSize, heads * c.valueSize)
    let all = p.scratch("delta.streams", streams.projection.weight.shape[0])
    let control = p.scratch("delta.gates", 2 * heads)
    let y = p.scratch("delta.y", values)
    p.phases.append(
      .products(
        .init([input.operand], [streams.projection.token(to: all), gates.token(to: control)])))
    var step = TokenProgram.MatrixStep(
      .delta(write: control.advanced(by: heads), isDoubled: c.negativeEigenvalues), heads: heads,
      keyHeads: keyHeads, keySize: c.headSize, valueSize: c.valueSize, streams: all, q: 0, k: keys,
      v: 2 * keys, scale: engine.scale, epsilon: 1e-6, state: matrix, output: y)
    step.activation = Unary.Kind.named(c.activation)
    if let convolution = streams.convolution {
      guard let window = state["window"] else { return false }
      step.convolution = .init(
        weight: convolution.weight.value, bias: convolution.bias?.value, window: window)
    }
    (step.gate, step.logRate, step.stepBias) = (control, rates.log, rates.bias)
    p.phases.append(.matrix(step))
    let after = norm.token(gate: c.gatesOutput ? all.advanced(by: 2 * keys + values) : nil)
    p.phases.append(
      .products(
        .init(
          [.init(y, values, norm: after)], [input.output(output)],
          windows: step.convolution.map { [($0.window, all)] } ?? [])))
    return true
  }
}
