import GyreLayers
import GyreRecurrence
import GyreTensors

/// The forget gate of HGRN and HGRN2: f = lb + (1 − lb)·σ(f̂), with a lower bound that grows with
/// depth: lb_l = Σ_{1≤m≤l} softmax over layers of Λ, a parameter that all layers share.
struct BoundedForgetGate: Sendable {
  private let bounds: Parameter?
  private let mask: [Float]

  /// - Parameter isBounded: without, f = σ(f̂).
  init(
    channels: Int, layer: LayerPosition, isBounded: Bool, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    bounds =
      isBounded
      ? try p.shared(
        "lower_bounds.weight", [layer.count, channels], .zeros, decay: WeightDecay.none) : nil
    mask = (0..<layer.count).map {
      (1...max(layer.index, 1)).contains($0) && layer.index > 0 ? 1 : 0
    }
  }

  /// f of a pre-activation `[B, T, channels]`.
  func callAsFunction(_ gate: Tensor) -> Tensor {
    let open = gate.sigmoid()
    guard let bounds, mask.contains(1) else { return open }
    let share = bounds.value.permuted([1, 0]).softmax()  // [channels, L]
    let bound = share.linear(Tensor(mask, shape: [1, mask.count], on: gate.device))
      .reshaped([share.shape[0]])
    return open * (1 - bound) + bound
  }
}

/// Hierarchically gated recurrent network.
///
///     hₜ = fₜ ∘ hₜ₋₁ + (1 − fₜ) ∘ silu(W_i xₜ)    out = W_o (RMSNorm(hₜ) ∘ silu(W_g xₜ))
///
/// Optionally W_i x and the gate's input pass a short convolution. Qin, Yang and Zhong,
/// "Hierarchically gated recurrent neural network for sequence modeling", 2023.
/// https://arxiv.org/abs/2311.04823
///
/// State: `[D]` and the convolution's tail. Engine: `DiagonalScan`.
public struct HGRN: SequenceMixer {
  public static let kind = "hgrn"
  public struct Configuration: MixerConfiguration {
    /// State channels over the model's width.
    public var expansion = 1
    /// Taps of the short convolution; 0 for none.
    public var convolution = 0
    /// Forget gates bounded below by a share that grows with depth.
    public var boundsGates = true
    /// Whether the output norm has a weight.
    public var normWeight = true
    public var normEpsilon = 1e-5
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.positive(expansion, "expansion")
      try HeadSizes.convolution(convolution)
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    Configuration(), with(Configuration()) { $0.expansion = 2 },
    with(Configuration()) {
      $0.convolution = 3; $0.boundsGates = false; $0.normWeight = false; $0.normEpsilon = 1e-6
    },
  ]

  private let streams: Streams
  private let output: Linear
  private let norm: OutputNorm
  private let forget: BoundedForgetGate
  private let engine: DiagonalScan

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let channels = c.expansion * width
    streams = try Streams(
      "ifg", inputs: width, mixed: [channels, channels], plain: [channels],
      convolution: c.convolution, activations: [nil], &p)
    output = try Linear("output", inputs: channels, outputs: width, &p)
    norm = try OutputNorm(channels, hasWeight: c.normWeight, epsilon: c.normEpsilon, &p)
    forget = try BoundedForgetGate(
      channels: channels, layer: layer, isBounded: c.boundsGates, &p)
    engine = DiagonalScan(channels: channels)
  }

  public var stateSpec: StateSpec { engine.stateSpec + streams.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = streams(x, state: &state, reset: context.reset)
    let f = forget(parts[1])
    let h = engine(
      .init(decay: f, decayIsLog: false, input: parts[0].silu() * (1 - f)), state: &state,
      form: context.form, reset: context.reset)
    return output(norm(h, gate: parts[2]))
  }
}

/// HGRN with a matrix state.
///
///     Sₜ = diag(fₜ) Sₜ₋₁ + (1 − fₜ) vₜᵀ    yₜ = s · Sₜᵀ silu(W_q xₜ)    out = W_o RMSNorm(yₜ)
///
/// with s = 1. Optionally q, the gate's input and v pass a short convolution. Qin et al., "HGRN2:
/// gated linear RNNs with state expansion", 2024. https://arxiv.org/abs/2404.07904
///
/// State: `[H, K, D/H]` and the convolution's tail. Engine: `LinearAttention`, vector decay, key
/// 1 − f.
public struct HGRN2: SequenceMixer {
  public static let kind = "hgrn2"
  public struct Configuration: MixerConfiguration {
    /// Key channels a head; width / expansion heads.
    public var expansion = 64
    /// s; nil for 1.
    public var scale: Double?
    /// Taps of the short convolution; 0 for none.
    public var convolution = 0
    /// Forget gates bounded below by a share that grows with depth.
    public var boundsGates = true
    /// Whether the output norm has a weight.
    public var normWeight = true
    public var normEpsilon = 1e-5
    public init() {}
    public static let optionalFields: Set<String> = ["scale"]
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: expansion, field: "expansion", of: "width")
      try require((scale ?? 1) > 0, "scale", "must be positive")
      try HeadSizes.convolution(convolution)
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.expansion = 16 }, with(Configuration()) { $0.expansion = 32 },
    with(Configuration()) {
      $0.expansion = 8; $0.convolution = 3; $0.boundsGates = false; $0.normWeight = false
      $0.scale = 0.25; $0.normEpsilon = 1e-6
    },
  ]

  private let streams: Streams
  private let output: Linear
  private let norm: OutputNorm
  private let forget: BoundedForgetGate
  private let engine: LinearAttention
  private let heads: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    heads = width / c.expansion
    streams = try Streams(
      "qfi", inputs: width, mixed: [width, width, width], convolution: c.convolution,
      activations: [.silu, nil, nil], &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
    norm = try OutputNorm(width, hasWeight: c.normWeight, epsilon: c.normEpsilon, &p)
    forget = try BoundedForgetGate(channels: width, layer: layer, isBounded: c.boundsGates, &p)
    engine = LinearAttention(
      heads: heads, keySize: c.expansion, valueSize: c.expansion, scale: c.scale ?? 1)
  }

  public var stateSpec: StateSpec { engine.stateSpec + streams.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = streams(x, state: &state, reset: context.reset)
    let f = forget(parts[1])
    let y = engine(
      .init(
        q: parts[0].heads(heads), k: (1 - f).heads(heads), v: parts[2].heads(heads),
        decay: .vector(f.log().heads(heads))),
      state: &state, form: context.form, reset: context.reset)
    return output(norm(y.mergedHeads()))
  }
}
