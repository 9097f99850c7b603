import GyreLayers
import GyreRecurrence
import GyreTensors

/// Mixes of each token with the one before, by the share that the token itself has.
///
/// RWKV-4 stores that share, m: x·m + p·(1 − m).
private func shifted(
  _ x: Tensor, _ shares: [Parameter], state: inout State, reset: Tensor?
) -> [Tensor] {
  let (mixed, last) = x.tokenShiftMix(
    shares.map { 1 - $0.value }, last: state["last"], reset: reset)
  state["last"] = last
  return mixed
}

/// RWKV-4's time mixing: an average of values over time, gated by a receptance.
///
///     yₜ = (Nₜ₋₁ + e^(u+kₜ) vₜ) / (Dₜ₋₁ + e^(u+kₜ))    Nₜ = e^w Nₜ₋₁ + e^kₜ vₜ    Dₜ likewise
///     out = W_o (σ(rₜ) ∘ yₜ)    w = −e^θ
///
/// r, k and v are maps of learned mixes of the token and the one before. Peng et al., "RWKV:
/// reinventing RNNs for the Transformer era", 2023. https://arxiv.org/abs/2305.13048
///
/// State: num, den and max `[A]` and the last token. Engine: `WKV4`.
public struct RWKV4: SequenceMixer {
  public static let kind = "rwkv4"
  public struct Configuration: MixerConfiguration {
    /// Channels A of the average; 0: the model's width.
    public var channels = 0
    public init() {}
    func size(_ width: Int) -> Int { channels > 0 ? channels : width }
    public func resolved(width: Int) -> Self { with(self) { $0.channels = size(width) } }
    public func validate(width: Int) throws(ConfigurationError) {
      try require(channels >= 0, "channels", "must not be negative, is \(channels)")
    }
  }
  public static let testConfigurations = [
    Configuration(), with(Configuration()) { $0.channels = 48 },
  ]

  private let shares: [Parameter]
  private let receptance, key, value, output: Linear
  private let decay, bonus: Parameter
  private let engine: WKV4
  private let width: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.width = width
    let channels = c.size(width)
    let ratio = Double(layer.index) / Double(max(layer.count - 1, 1))
    let depth = 1 - Double(layer.index) / Double(layer.count)
    var shares: [Parameter] = []
    for (name, power, shift) in [
      ("mix_r", 0.5 * depth, 0), ("mix_k", depth, 0), ("mix_v", depth, 0.3 * ratio),
    ] {
      shares.append(
        try p.parameter(
          name, [width],
          .each { n in Functions.pow(Double(n) / Double(width), power) + shift },
          decay: WeightDecay.none))
    }
    self.shares = shares
    receptance = try Linear(
      "receptance", inputs: width, outputs: channels, initializer: .zeros, &p)
    key = try Linear("key", inputs: width, outputs: channels, initializer: .zeros, &p)
    value = try Linear("value", inputs: width, outputs: channels, &p)
    output = try Linear("output", inputs: channels, outputs: width, &p)
    let last = Double(max(channels - 1, 1))
    decay = try p.parameter(
      "decay", [channels],
      .each { n in -5 + 8 * Functions.pow(Double(n) / last, 0.7 + 1.3 * ratio) },
      decay: WeightDecay.none)
    bonus = try p.parameter(
      "bonus", [channels],
      .each { n in Functions.log(0.3) + 0.5 * Double((n + 1) % 3 - 1) }, decay: WeightDecay.none)
    engine = WKV4(channels: channels)
  }

  public var stateSpec: StateSpec {
    engine.stateSpec + StateSpec([.init("last", [width], .window)])
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let mixed = shifted(x, shares, state: &state, reset: context.reset)
    let y = engine(
      .init(
        logDecay: -decay.value.exp(), bonus: bonus.value, k: key(mixed[1]), v: value(mixed[2])),
      state: &state, form: context.form, reset: context.reset)
    return output(receptance(mixed[0]).sigmoid() * y)
  }
}

/// RWKV-4's channel mixing: y = σ(W_r x') ∘ W_v relu(W_k x'')² with x' and x'' learned mixes of the
/// token and the one before.
///
/// State: the last token.
public struct RWKV4ChannelMix: SequenceMixer {
  public static let kind = "rwkv4_channel_mix"
  public struct Configuration: MixerConfiguration {
    /// Width of the hidden layer; 0: four times the model's width.
    public var hidden = 0
    public init() {}
    func hiddenSize(_ width: Int) -> Int { hidden > 0 ? hidden : 4 * width }
    public func resolved(width: Int) -> Self { with(self) { $0.hidden = hiddenSize(width) } }
    public func validate(width: Int) throws(ConfigurationError) {
      try require(hidden >= 0, "hidden", "must not be negative, is \(hidden)")
    }
  }
  public static let testConfigurations = [
    Configuration(), with(Configuration()) { $0.hidden = 40 },
  ]

  private let shares: [Parameter]
  private let receptance, key, value: Linear
  private let width: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.width = width
    let hidden = c.hiddenSize(width)
    let depth = 1 - Double(layer.index) / Double(layer.count)
    var shares: [Parameter] = []
    for name in ["mix_r", "mix_k"] {
      shares.append(
        try p.parameter(
          name, [width], .each { n in Functions.pow(Double(n) / Double(width), depth) },
          decay: WeightDecay.none))
    }
    self.shares = shares
    receptance = try Linear("receptance", inputs: width, outputs: width, initializer: .zeros, &p)
    key = try Linear("key", inputs: width, outputs: hidden, &p)
    value = try Linear("value", inputs: hidden, outputs: width, &p)
  }

  public var stateSpec: StateSpec { StateSpec([.init("last", [width], .window)]) }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let mixed = shifted(x, shares, state: &state, reset: context.reset)
    return receptance(mixed[0]).sigmoid() * value(key(mixed[1]).unary(.reluSquared))
  }
}
