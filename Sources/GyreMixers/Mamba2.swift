import GyreLayers
import GyreRecurrence
import GyreTensors

/// Mamba-2, state-space duality: linear attention with a scalar decay a head.
///
///     Sₜ = e^(Δₜ A) Sₜ₋₁ + Bₜ (Δₜ xₜ)ᵀ    yₜ = Sₜᵀ Cₜ + D xₜ    Δ = softplus(dt + b)    A = −e^a
///     out = W_o RMSNorm(yₜ ∘ silu(zₜ))
///
/// x, B and C pass a short convolution with SiLU; Δ may be bounded; with groups the norm is over the
/// channels of each. Dao and Gu, "Transformers are SSMs", 2024.
/// https://arxiv.org/abs/2405.21060. With `negativeEigenvalues` the factor is 2 e^(Δ A) − 1: Grazzi et
/// al., "Unlocking state-tracking in linear RNNs through negative eigenvalues", 2024.
/// https://arxiv.org/abs/2411.12537
///
/// State: `[H, N, P]` and the convolution's tail. Engine: `LinearAttention`, scalar decay.
public struct Mamba2: SequenceMixer {
  public static let kind = "mamba2"
  public struct Configuration: MixerConfiguration {
    public var headSize = 64
    public var stateSize = 64
    public var expansion = 2
    /// Groups of heads that share B and C.
    public var groups = 1
    public var convolution = 4
    public var convolutionBias = true
    /// Activation after the convolution.
    public var activation = "silu"
    /// Bias of the input and output maps.
    public var bias = false
    /// Groups of the norm; 0: as `groups`.
    public var normGroups = 0
    public var normEpsilon = 1e-5
    /// Norm before the gate: RMSNorm(y) ∘ silu(z).
    public var normsFirst = false
    /// Whether there is the norm; without it y ∘ act(z).
    public var normalizes = true
    public var gateActivation = "silu"
    /// D a channel rather than a head.
    public var skipPerChannel = false
    /// Bounds of Δ.
    public var stepLow = 0.0
    public var stepHigh: Double?
    /// Factors of the state in (−1, 1) in place of (0, 1).
    public var negativeEigenvalues = false
    public init() {}

    public static var optionalFields: Set<String> { ["stepHigh"] }
    public func resolved(width: Int) -> Self {
      var c = self
      c.normGroups = normGroupCount()
      return c
    }
    func normGroupCount() -> Int { normGroups > 0 ? normGroups : groups }
    public func validate(width: Int) throws(ConfigurationError) {
      for (value, field) in [
        (headSize, "headSize"), (stateSize, "stateSize"), (expansion, "expansion"),
        (groups, "groups"),
      ] { try HeadSizes.positive(value, field) }
      try HeadSizes.divide(expansion * width, by: headSize, field: "headSize", of: "inner width")
      try HeadSizes.divide(
        expansion * width / headSize, by: groups, field: "groups", of: "head count")
      try HeadSizes.convolution(convolution)
      try HeadSizes.positive(convolution, "convolution")
      try HeadSizes.activation(activation)
      try HeadSizes.activation(gateActivation, "gateActivation")
      try require(
        !normalizes || gateActivation == "silu", "gateActivation", "must be silu with a norm")
      try require(normGroups >= 0, "normGroups", "must not be negative, is \(normGroups)")
      try HeadSizes.divide(
        expansion * width, by: normGroupCount(), field: "normGroups", of: "inner width")
      try HeadSizes.epsilon(normEpsilon, "normEpsilon")
      try require(stepLow >= 0 && stepLow.isFinite, "stepLow", "must not be negative")
      if let stepHigh {
        try require(stepHigh >= stepLow, "stepHigh", "must not be below stepLow \(stepLow)")
      }
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.headSize = 16; $0.stateSize = 8
    },
    with(Configuration()) {
      $0.headSize = 16; $0.stateSize = 12; $0.groups = 2; $0.convolution = 3
    },
    with(Configuration()) {
      $0.headSize = 16; $0.stateSize = 8; $0.groups = 2; $0.normGroups = 1; $0.bias = true
      $0.convolutionBias = false; $0.activation = "gelu"; $0.normsFirst = true
      $0.skipPerChannel = true; $0.stepLow = 0.02; $0.stepHigh = 0.06; $0.normEpsilon = 1e-3
    },
    with(Configuration()) {
      $0.headSize = 16; $0.stateSize = 8; $0.normalizes = false; $0.gateActivation = "sigmoid"
    },
    with(Configuration()) {
      $0.headSize = 16; $0.stateSize = 8; $0.convolution = 1; $0.negativeEigenvalues = true
    },
  ]

  private let input: Linear
  private let output: Linear
  private let convolution: ShortConvolutionLayer
  private let stepBias, logRate, skip: Parameter
  private let norm: Parameter?
  private let gate: Unary.Kind
  private let engine: LinearAttention
  private let c: Configuration
  private let inner: Int
  private let heads: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    gate = Unary.Kind.named(c.gateActivation) ?? .silu
    inner = c.expansion * width
    heads = inner / c.headSize
    let mixed = inner + 2 * c.groups * c.stateSize
    let bias: Initializer? = c.bias ? .zeros : nil
    input = try Linear("input", inputs: width, outputs: inner + mixed + heads, bias: bias, &p)
    convolution = try ShortConvolutionLayer(
      "convolution", channels: mixed, width: c.convolution, bias: c.convolutionBias,
      activation: Unary.Kind.named(c.activation), &p)
    stepBias = try p.parameter("dt_bias", [heads], .mambaStep())
    logRate = try p.parameter(
      "A_log", [heads],
      .values { n, g in g.uniforms(n, 1, 16).map { Float(Functions.log(Double($0))) } })
    skip = try p.parameter("D", [c.skipPerChannel ? inner : heads], .constant(1))
    norm = c.normalizes ? try p.parameter("norm.weight", [inner], .constant(1)) : nil
    output = try Linear("output", inputs: inner, outputs: width, bias: bias, &p)
    engine = LinearAttention(
      heads: heads, keyHeads: c.groups, keySize: c.stateSize, valueSize: c.headSize, scale: 1)
  }

  public var stateSpec: StateSpec { engine.stateSpec + convolution.stateSpec }

  public var onlyMultipliesInput: Bool { true }
  public func callAsFunction(_ u: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let keys = c.groups * c.stateSize
    // Streams that fused ops pass on to products may be as narrow as these read.
    let isFused = norm != nil && !c.negativeEigenvalues && gate == .silu && u.shape[1] > 1
    let parts = input(
      u, pieces: [inner, inner + 2 * keys, heads],
      output: isFused ? ComputePrecision.betweenProducts(on: u.device) : nil)
    let mixed = convolution(
      parts[1], pieces: [inner, keys, keys], state: &state, reset: context.reset)
    let (logDecay, step) = gates(parts[2].cast(to: ComputePrecision.activations(on: u.device)))
    let v = mixed[0].heads(heads)  // [B, T, H, P]
    let skipped = read(
      v, mixed, logDecay: logDecay, step: step, state: &state, context: context)
    guard let norm else {
      return output(skipped.mergedHeads() * parts[0].unary(gate), output: context.output)
    }
    let groups = c.normGroupCount()
    return output(
      skipped.mergedHeads().heads(groups).gatedNorm(
        parts[0].heads(groups), weight: norm.value, epsilon: c.normEpsilon,
        gatesFirst: !c.normsFirst
      ).mergedHeads(), output: context.output)
  }

  /// What the memory gives, with D x added.
  private func read(
    _ v: Tensor, _ mixed: [Tensor], logDecay: Tensor, step: Tensor, state: inout State,
    context: SequenceContext
  ) -> Tensor {
    let (q, k) = (mixed[2].heads(c.groups), mixed[1].heads(c.groups))
    guard c.negativeEigenvalues else {
      return engine(
        .init(q: q, k: k, v: v, decay: .scalar(logDecay), scaling: (step, skip.value)),
        state: &state, form: context.form, reset: context.reset)
    }
    let (scaled, kept) = v.scaled(by: step, and: skip.value)
    let (size, sign) = signed(logDecay, context.form)
    let y = engine(
      .init(q: q, k: k, v: scaled * sign, decay: .scalar(size)), state: &state, form: context.form,
      reset: context.reset)
    if v.shape[1] > 0, let last = state["S"] {
      // [B, 1, H, 1] to [B, H, 1, 1].
      let end = sign.sliced(v.shape[1] - 1..<v.shape[1], axis: 1)
      state["S"] = last * end.reshaped([v.shape[0], heads, 1, 1])
    }
    return y * sign + kept
  }

  public func appendToken(
    _ input: TokenInput, to p: inout TokenProgram, state: State
  ) -> Bool {
    guard let norm, let matrix = state["S"], let window = state["window"] else { return false }
    let keys = c.groups * c.stateSize
    let all = p.scratch("mamba2.streams", self.input.weight.shape[0])
    let y = p.scratch("mamba2.y", inner)
    let streams = all.advanced(by: inner)
    p.phases.append(.products(.init([input.operand], [self.input.token(to: all)])))
    var step = TokenProgram.MatrixStep(
      .mamba2(low: c.stepLow, high: c.stepHigh), heads: heads, keyHeads: c.groups,
      keySize: c.stateSize, valueSize: c.headSize, streams: streams, q: inner + keys, k: inner,
      v: 0, scale: engine.scale, epsilon: 0, state: matrix, output: y)
    step.convolution = .init(
      weight: convolution.weight.value, bias: convolution.bias?.value, window: window)
    step.activation = Unary.Kind.named(c.activation)
    step.gate = streams.advanced(by: inner + 2 * keys)
    (step.logRate, step.stepBias, step.skip) = (logRate.value, stepBias.value, skip.value)
    p.phases.append(.matrix(step))
    var after = TokenProgram.Norm(
      group: inner / c.normGroupCount(), weight: norm.value, epsilon: c.normEpsilon)
    after.gate = (all, gate, c.normsFirst ? .after : .before)
    p.phases.append(
      .products(
        .init(
          [.init(y, inner, norm: after)], [input.output(output)], windows: [(window, streams)])))
    return true
  }

  /// Log decays and step sizes `[B, T, H]`.
  private func gates(_ z: Tensor) -> (decay: Tensor, step: Tensor) {
    if c.stepLow <= 0, c.stepHigh == nil, z.device.fuses(StepGates()) {
      let gates = apply(StepGates(), [z, stepBias.value, logRate.value])
      return (gates[0], gates[1])
    }
    var step = (z + stepBias.value).softplus()
    if c.stepLow > 0 { step = step.maximum(.full(c.stepLow, [1], on: z.device)) }
    if let high = c.stepHigh { step = step.minimum(.full(high, [1], on: z.device)) }
    return (step * -logRate.value.exp(), step)
  }

  /// The factor 2 e^g − 1 as the logarithm of its magnitude, at least 10⁻⁴, `[B, T, H]`, and the product
  /// of the signs so far, `[B, T, H, 1]`: with σ that product, hₜ = uₜ hₜ₋₁ + xₜ is σₜ times the
  /// recurrence of |uₜ| and σₜ xₜ.
  private func signed(
    _ logDecay: Tensor, _ form: SequenceForm
  ) -> (size: Tensor, sign: Tensor) {
    let (device, shape) = (logDecay.device, logDecay.shape)
    let factor = logDecay.exp().affine(2, -1)
    let one = Tensor.full(1, [1], on: device)
    // 1 for positive factors and zero, −1 for negative ones: no difference of float32s lies between.
    let signs = factor.detached().affine(1e30, 1).minimum(one).maximum(-one)
    let product = DiagonalScan(channels: heads)
    var state = State(product.stateSpec, batch: shape[0])
    state["h"] = .full(1, [shape[0], heads], on: device)
    let sign = product(
      .init(decay: signs, decayIsLog: false, input: .zeros(shape, on: device)), state: &state,
      form: form, reset: nil)
    let size = factor.unary(.absolute).maximum(.full(1e-4, [1], on: device)).log()
    return (size, sign.reshaped(Shape(shape.dimensions + [1])))
  }
}
