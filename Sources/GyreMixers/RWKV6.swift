import GyreLayers
import GyreRecurrence
import GyreTensors

/// RWKV-6's time mixing: linear attention with a vector decay and a bonus for the token itself, whose
/// inputs are mixes of the token and the one before that depend on both.
///
///     Sₜ = diag(e^wₜ) Sₜ₋₁ + kₜ vₜᵀ    yₜ = (Sₜ₋₁ + diag(u) kₜ vₜᵀ)ᵀ rₜ
///     w = −exp(b + B tanh(A x_w))    out = W_o (GroupNorm(y) ∘ silu(W_g x_g))
///     x_j = x + (p − x) ∘ (λ_j + M_j tanh(L_j (x + (p − x) ∘ μ)))    j in r, w, k, v, g
///
/// Peng et al., "Eagle and Finch: RWKV with matrix-valued states and dynamic recurrence", 2024.
/// https://arxiv.org/abs/2404.05892
///
/// State: `[H, K, V]` and the last token. Engine: `LinearAttention`, vector decay with bonus.
public struct RWKV6: SequenceMixer {
  public static let kind = "rwkv6"
  public struct Configuration: ExpandedHeads {
    public var heads = 4
    /// Total key and value widths over the model's, rounded down.
    public var keyExpansion = 1.0
    public var valueExpansion = 1.0
    /// Rank of each of the five mixing maps.
    public var mixRank = 32
    public var decayRank = 64
    public var normEpsilon = 64e-5
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try validateFlooredHeads(width)
      try HeadSizes.positive(mixRank, "mixRank")
      try HeadSizes.positive(decayRank, "decayRank")
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.mixRank = 4; $0.decayRank = 6
    },
    with(Configuration()) {
      $0.heads = 2; $0.keyExpansion = 0.5; $0.valueExpansion = 1.5; $0.mixRank = 3; $0.decayRank = 5
    },
  ]

  private let mix, mixUp, mixBias: Parameter
  private let mixDown: Linear
  private let receptance, key, value, gate, output: Linear
  private let decay: LowRankLinear
  private let bonus: Parameter
  private let norm: NormLayer
  private let engine: LinearAttention
  private let c: Configuration
  private let width: Int

  public init(
    _ c: Configuration, width d: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    width = d
    let (keys, values) = c.flooredChannels(d)
    let depth = 1 - Double(layer.index) / Double(layer.count)
    let ratio = Double(layer.index) / Double(max(layer.count - 1, 1))
    /// The published start of a token's share of the one before.
    @Sendable func share(_ n: Int, _ power: Double) -> Double {
      1 - Functions.pow(Double(n) / Double(d), power)
    }
    mix = try p.parameter("mix", [d], .each { share($0, depth) }, decay: WeightDecay.none)
    mixDown = try Linear("mix_down", inputs: d, outputs: 5 * c.mixRank, initializer: .zeros, &p)
    mixUp = try p.parameter("mix_up.weight", [d, 5 * c.mixRank], .uniform(-0.01, 0.01))
    // r, w, k, v, g
    let powers = [0.5 * depth, depth, depth, depth, 0.5 * depth]
    mixBias = try p.parameter(
      "mix_bias", [5, d],
      .each { i in share(i % d, powers[i / d]) - (i / d == 3 ? 0.3 * ratio : 0) },
      decay: WeightDecay.none)
    receptance = try Linear("receptance", inputs: d, outputs: keys, &p)
    key = try Linear("key", inputs: d, outputs: keys, &p)
    value = try Linear("value", inputs: d, outputs: values, &p)
    gate = try Linear("gate", inputs: d, outputs: values, &p)
    let last = Double(max(keys - 1, 1))
    decay = try LowRankLinear(
      "decay", inputs: d, rank: c.decayRank, outputs: keys, activation: .tanh,
      bias: .each { n in -6 + 5 * Functions.pow(Double(n) / last, 0.7 + 1.3 * ratio) },
      down: .zeros, up: .uniform(-0.01, 0.01), &p)
    bonus = try p.parameter(
      "bonus", [c.heads, keys / c.heads],
      .each { n in ratio * (1 - Double(n) / last) + 0.1 * Double((n + 1) % 3 - 1) },
      decay: WeightDecay.none)
    norm = try NormLayer("norm", values, kind: .layer, epsilon: c.normEpsilon, bias: true, &p)
    output = try Linear("output", inputs: values, outputs: d, &p)
    engine = LinearAttention(
      heads: c.heads, keySize: keys / c.heads, valueSize: values / c.heads, scale: 1)
  }

  public var stateSpec: StateSpec {
    engine.stateSpec + StateSpec([.init("last", [width], .window)])
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let mixed = mixes(x, &state, context.reset)
    let logDecay = -decay(mixed[1]).exp()
    let y = engine(
      .init(
        q: receptance(mixed[0]).heads(c.heads), k: key(mixed[2]).heads(c.heads),
        v: value(mixed[3]).heads(c.heads), decay: .vector(logDecay.heads(c.heads)),
        bonus: bonus.value),
      state: &state, form: context.form, reset: context.reset)
    return output(norm(y).mergedHeads() * gate(mixed[4]).silu())
  }

  /// The inputs of r, w, k, v and g.
  private func mixes(_ x: Tensor, _ state: inout State, _ reset: Tensor?) -> [Tensor] {
    let all = Tensor.full(1, [width], on: x.device)
    let (shifted, last) = x.tokenShiftMix([mix.value, all], last: state["last"], reset: reset)
    state["last"] = last
    let delta = shifted[1] - x
    let ranks = [Int](repeating: c.mixRank, count: 5)
    let hidden = mixDown(shifted[0]).tanh().split(ranks)
    let maps = mixUp.value.split(ranks)
    let biases = mixBias.value.split([1, 1, 1, 1, 1], axis: 0)
    return (0..<5).map { j in
      x + delta * hidden[j].linear(maps[j], bias: biases[j].reshaped([width]))
    }
  }
}

/// RWKV-6's channel mixing: y = σ(W_r x') ∘ W_v act(W_k x'') with x' and x'' learned mixes of the
/// token and the one before.
///
/// State: the last token.
public struct RWKV6ChannelMix: SequenceMixer {
  public static let kind = "rwkv6_channel_mix"
  public struct Configuration: MixerConfiguration {
    /// Width of the hidden layer; 0: 3.5 times the model's width, rounded up to a multiple of 32.
    public var hidden = 0
    public var activation = Unary.Kind.reluSquared.name
    public init() {}
    func hiddenSize(_ width: Int) -> Int {
      hidden > 0 ? hidden : (width * 7 / 2 + 31) / 32 * 32
    }
    public func resolved(width: Int) -> Self { with(self) { $0.hidden = hiddenSize(width) } }
    public func validate(width: Int) throws(ConfigurationError) {
      try require(hidden >= 0, "hidden", "must not be negative, is \(hidden)")
      try HeadSizes.activation(activation)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.hidden = 40; $0.activation = "silu"
    },
  ]

  private let receptanceMix, keyMix: Parameter
  private let receptance, key, value: Linear
  private let activation: Unary.Kind
  private let width: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.width = width
    activation = Unary.Kind.named(c.activation) ?? .reluSquared
    let hidden = c.hiddenSize(width)
    let depth = 1 - Double(layer.index) / Double(layer.count)
    let share = Initializer.each { n in 1 - Functions.pow(Double(n) / Double(width), depth) }
    receptanceMix = try p.parameter("mix_r", [width], share, decay: WeightDecay.none)
    keyMix = try p.parameter("mix_k", [width], share, decay: WeightDecay.none)
    receptance = try Linear("receptance", inputs: width, outputs: width, &p)
    key = try Linear("key", inputs: width, outputs: hidden, &p)
    value = try Linear("value", inputs: hidden, outputs: width, &p)
  }

  public var stateSpec: StateSpec { StateSpec([.init("last", [width], .window)]) }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (mixed, last) = x.tokenShiftMix(
      [receptanceMix.value, keyMix.value], last: state["last"], reset: context.reset)
    state["last"] = last
    return receptance(mixed[0]).sigmoid() * value(key(mixed[1]).unary(activation))
  }
}
