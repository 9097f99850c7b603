import GyreLayers
import GyreRecurrence
import GyreTensors

/// GateLoop: linear attention whose decay, complex and one a key channel, follows from the data.
///
///     Sₜ = diag(aₜ) Sₜ₋₁ + kₜ vₜᵀ    yₜ = Re(Sₜᵀ qₜ)    aₜ = σ(mₜ) e^(iθₜ)    out = W_o (y ∘ silu(W_g x))
///
/// (m, θ) is a linear map of x. Without `rotates` θ = 0: the ablation with real decays. Katsch,
/// "GateLoop: fully data-controlled linear recurrence for sequence modeling", 2023.
/// https://arxiv.org/abs/2311.01927
///
/// State: one channel a head (the default): complex `[D]`, engine `ComplexScan`. Larger heads:
/// `[H, 2K, V]` in the frame that turns with the angles, and that frame, complex `[H·K]`; engine
/// `LinearAttention`, vector decay. With real decays `[H, K, V]`.
public struct GateLoop: SequenceMixer {
  public static let kind = "gate_loop"
  public struct Configuration: MixerConfiguration {
    /// 0: as many as the width, one channel each.
    public var heads = 0
    public var rotates = true
    /// RMSNorm of a head's values before the gate.
    public var normalizesOutput = false
    public init() {}
    public func resolved(width: Int) -> Self { with(self) { $0.heads = heads > 0 ? heads : width } }
    public func validate(width: Int) throws(ConfigurationError) {
      try require(heads >= 0, "heads", "must not be negative, is \(heads)")
      if heads > 0 { try HeadSizes.divide(width, by: heads, field: "heads", of: "width") }
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 4; $0.normalizesOutput = true
    },
    with(Configuration()) { $0.rotates = false },
    with(Configuration()) {
      $0.heads = 2; $0.rotates = false; $0.normalizesOutput = true
    },
  ]

  private let projection, transition, output: Linear
  private let norm: OutputNorm?
  private let heads, size, width: Int
  private let rotates: Bool
  private let frame: ComplexScan
  private let memory: LinearAttention

  public init(
    _ configuration: Configuration, width: Int, layer: LayerPosition,
    parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let c = configuration.resolved(width: width)
    (heads, size, self.width, rotates) = (c.heads, width / c.heads, width, c.rotates)
    projection = try Linear("qkvg", inputs: width, outputs: 4 * width, &p)
    transition = try Linear(
      "transition", inputs: width, outputs: c.rotates ? 2 * width : width, &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
    norm = c.normalizesOutput ? try OutputNorm(size, epsilon: 1e-6, &p) : nil
    frame = ComplexScan(channels: width)
    memory = LinearAttention(
      heads: heads, keySize: c.rotates ? 2 * size : size, valueSize: size, scale: 1)
  }

  /// Whether each head is one complex number.
  private var isElementwise: Bool { size == 1 }

  public var stateSpec: StateSpec {
    if isElementwise {
      return rotates ? frame.stateSpec : DiagonalScan(channels: width).stateSpec
    }
    return memory.stateSpec + (rotates ? frame.stateSpec.prefixed("frame") : StateSpec())
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).split([width, width, width, width])
    let gates = rotates ? transition(x).split([width, width]) : [transition(x)]
    let y =
      isElementwise
      ? elementwise(parts, gates, &state, context) : matrix(parts, gates, &state, context)
    let normed = norm.map { $0(y.heads(heads)).mergedHeads() } ?? y
    return output(normed * parts[3].silu())
  }

  private func elementwise(
    _ p: [Tensor], _ gates: [Tensor], _ state: inout State, _ context: SequenceContext
  ) -> Tensor {
    let written = p[1] * p[2]
    guard rotates else {
      let h = DiagonalScan(channels: width)(
        .init(decay: gates[0].logSigmoid(), decayIsLog: true, input: written), state: &state,
        form: context.form, reset: context.reset)
      return p[0] * h
    }
    let a = ComplexTensor.exp(gates[0].logSigmoid(), gates[1])
    let h = frame(
      .init(
        decayReal: a.re, decayImaginary: a.im, inputReal: written, inputImaginary: written * 0),
      state: &state, form: context.form, reset: context.reset)
    return p[0] * h.split([width, width])[0]
  }

  /// With rₜ = e^(i Σθ), Re(q Π a k) = Re(q rₜ · conj(k rⱼ)) e^(Σ ln σ): real products of turned keys and
  /// queries.
  private func matrix(
    _ p: [Tensor], _ gates: [Tensor], _ state: inout State, _ context: SequenceContext
  ) -> Tensor {
    let g = gates[0].logSigmoid().heads(heads)
    var (q, k, decay) = (p[0].heads(heads), p[1].heads(heads), g)
    if rotates {
      let r = turned(gates[1], &state, context).map { $0.heads(heads) }
      (q, k) = (concatenated([q * r.re, q * r.im]), concatenated([k * r.re, k * r.im]))
      decay = concatenated([g, g])
    }
    return memory.scoped(
      .init(q: q, k: k, v: p[2].heads(heads), decay: .vector(decay)), "", &state, context
    ).mergedHeads()
  }

  /// rₜ = e^(iθₜ) rₜ₋₁, 1 before a document's first token.
  private func turned(
    _ angle: Tensor, _ state: inout State, _ context: SequenceContext
  ) -> ComplexTensor {
    var part = state.scoped("frame", frame.stateSpec)
    let step = ComplexTensor.exp(angle * 0, angle)
    let starts = documentStarts(angle, isFresh: part["re"] == nil, reset: context.reset)
    let r = frame(
      .init(
        decayReal: step.re, decayImaginary: step.im,
        inputReal: starts.map { step.re * $0 } ?? step.re * 0,
        inputImaginary: starts.map { step.im * $0 } ?? step.im * 0),
      state: &part, form: context.form, reset: context.reset
    ).split([width, width])
    state.merge(part, prefix: "frame")
    return ComplexTensor(re: r[0], im: r[1])
  }
}
