import GyreLayers
import GyreRecurrence
import GyreTensors

/// The forget gate of HGRN and HGRN2: f = lb + (1 − lb)·σ(f̂), with a lower bound that grows with
/// depth: lb_l = Σ_{1≤m≤l} softmax over layers of Λ, a parameter that all layers share.
struct BoundedForgetGate: Sendable {
  private let bounds: Parameter
  private let mask: [Float]

  init(
    channels: Int, layer: LayerPosition, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    bounds = try p.shared(
      "lower_bounds.weight", [layer.count, channels], .zeros, decay: WeightDecay.none)
    mask = (0..<layer.count).map {
      (1...max(layer.index, 1)).contains($0) && layer.index > 0 ? 1 : 0
    }
  }

  /// f of a pre-activation `[B, T, channels]`.
  func callAsFunction(_ gate: Tensor) -> Tensor {
    let open = gate.sigmoid()
    guard mask.contains(1) else { return open }
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
/// Qin, Yang and Zhong, "Hierarchically gated recurrent neural network for sequence modeling", 2023.
/// https://arxiv.org/abs/2311.04823
///
/// State: `[D]`. Engine: `DiagonalScan`.
public struct HGRN: SequenceMixer {
  public static let kind = "hgrn"
  public struct Configuration: MixerConfiguration {
    /// State channels over the model's width.
    public var expansion = 1
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.positive(expansion, "expansion")
    }
  }
  public static let testConfigurations = [
    Configuration(), with(Configuration()) { $0.expansion = 2 },
  ]

  private let projection: Linear
  private let output: Linear
  private let norm: Parameter
  private let forget: BoundedForgetGate
  private let engine: DiagonalScan
  private let channels: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    channels = c.expansion * width
    projection = try Linear("ifg", inputs: width, outputs: 3 * channels, &p)
    output = try Linear("output", inputs: channels, outputs: width, &p)
    norm = try p.parameter("norm.weight", [channels], .constant(1))
    forget = try BoundedForgetGate(channels: channels, layer: layer, &p)
    engine = DiagonalScan(channels: channels)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).split([channels, channels, channels])
    let f = forget(parts[1])
    let h = engine(
      .init(decay: f, decayIsLog: false, input: parts[0].silu() * (1 - f)), state: &state,
      form: context.form, reset: context.reset)
    return output(h.gatedNorm(parts[2], weight: norm.value, epsilon: 1e-5))
  }
}

/// HGRN with a matrix state.
///
///     Sₜ = diag(fₜ) Sₜ₋₁ + (1 − fₜ) vₜᵀ    yₜ = Sₜᵀ silu(W_q xₜ)    out = W_o RMSNorm(yₜ)
///
/// Qin et al., "HGRN2: gated linear RNNs with state expansion", 2024.
/// https://arxiv.org/abs/2404.07904
///
/// State: `[H, K, D/H]`. Engine: `LinearAttention`, vector decay, key 1 − f.
public struct HGRN2: SequenceMixer {
  public static let kind = "hgrn2"
  public struct Configuration: MixerConfiguration {
    /// Key channels a head; width / expansion heads.
    public var expansion = 64
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: expansion, field: "expansion", of: "width")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.expansion = 16 }, with(Configuration()) { $0.expansion = 32 },
  ]

  private let projection: Linear
  private let output: Linear
  private let norm: NormLayer
  private let forget: BoundedForgetGate
  private let engine: LinearAttention
  private let heads: Int
  private let width: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.width = width
    heads = width / c.expansion
    projection = try Linear("qfi", inputs: width, outputs: 3 * width, &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
    norm = try NormLayer("norm", width, epsilon: 1e-5, &p)
    forget = try BoundedForgetGate(channels: width, layer: layer, &p)
    engine = LinearAttention(
      heads: heads, keySize: c.expansion, valueSize: c.expansion, scale: 1)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).split([width, width, width])
    let f = forget(parts[1])
    let y = engine(
      .init(
        q: parts[0].silu().heads(heads), k: (1 - f).heads(heads), v: parts[2].heads(heads),
        decay: .vector(f.log().heads(heads))),
      state: &state, form: context.form, reset: context.reset)
    return output(norm(y.mergedHeads()))
  }
}
