import GyreLayers
import GyreRecurrence
import GyreTensors

/// The initial mixing weights of RWKV-7's token shifts: 1 − (n/D)^(p·(1 − l/L)).
private func shiftMix(_ power: Double, _ layer: LayerPosition, _ width: Int) -> Initializer {
  let depth = 1 - Double(layer.index) / Double(layer.count)
  return .each { n in 1 - Functions.pow(Double(n) / Double(width), power * depth) }
}

/// RWKV-7's time mixing: a generalised delta rule with vector decay and in-context learning rates.
///
///     Sₜ = diag(wₜ) Sₜ₋₁ − (κₜ ∘ aₜ)(κₜᵀ Sₜ₋₁) + k̃ₜ vₜᵀ    yₜ = Sₜᵀ rₜ + (Σ r ∘ k̃ ∘ ρ) v
///     ln w = −e^-½ σ(w₀ + W₂ tanh(W₁ x_w))    a = σ(a₀ + A₂ A₁ x_a)    κ = normalise(k ∘ ξ)
///     k̃ = k ∘ (1 + (a − 1) ∘ α)    out = W_o (GroupNorm(y) ∘ G₂ σ(G₁ x_g))
///
/// Each input is a learned mix of the token and the one before; v mixes towards the first layer's.
/// The erase term acts on the undecayed state. Peng et al., "RWKV-7 Goose with expressive dynamic
/// state evolution", 2025. https://arxiv.org/abs/2503.14456
///
/// State: `[H, K, V]` and the last token. Engine: `GeneralizedDeltaRule`.
public struct RWKV7: JoinsNorm {
  public static let kind = "rwkv7"
  public struct Configuration: MixerConfiguration {
    public var headSize = 64
    /// Ranks of the low-rank maps; 0: the published rule for the width.
    public var decayRank = 0
    public var rateRank = 0
    public var valueRank = 0
    public var gateRank = 0
    /// Total value width; 0: the model's width.
    public var valueWidth = 0
    /// ε of the norm over each head of y.
    public var normEpsilon = 64e-5
    /// ε under the root of κ's length: 1e-24 in the authors' code, 1e-6 in some others'.
    public var keyEpsilon = 1e-24
    /// Erases with 2a in place of a: eigenvalues of the transition down to −1, as the authors' proofs
    /// about state tracking have it.
    public var negativeEigenvalues = false
    public init() {}

    func values(_ width: Int) -> Int { valueWidth > 0 ? valueWidth : width }
    private func rank(_ given: Int, _ factor: Double, _ width: Int) -> Int {
      if given > 0 { return given }
      return max(32, 32 * Int((factor * Double(width).squareRoot() / 32).rounded()))
    }
    func ranks(_ width: Int) -> (decay: Int, rate: Int, value: Int, gate: Int) {
      (
        rank(decayRank, 2.5, width), rank(rateRank, 2.5, width), rank(valueRank, 1.7, width),
        rank(gateRank, 5, width)
      )
    }
    public func resolved(width: Int) -> Self {
      let ranks = ranks(width)
      return with(self) {
        ($0.decayRank, $0.rateRank) = (ranks.decay, ranks.rate)
        ($0.valueRank, $0.gateRank) = (ranks.value, ranks.gate)
        $0.valueWidth = values(width)
      }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.positive(headSize, "headSize")
      try HeadSizes.divide(width, by: headSize, field: "headSize", of: "width")
      for (value, field) in [
        (decayRank, "decayRank"), (rateRank, "rateRank"), (valueRank, "valueRank"),
        (gateRank, "gateRank"), (valueWidth, "valueWidth"),
      ] { try require(value >= 0, field, "must not be negative, is \(value)") }
      try HeadSizes.divide(
        values(width), by: width / headSize, field: "valueWidth", of: "value width")
      try HeadSizes.epsilon(normEpsilon)
      try HeadSizes.epsilon(keyEpsilon, "keyEpsilon")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.headSize = 16; $0.decayRank = 4; $0.rateRank = 4; $0.valueRank = 4; $0.gateRank = 4
    },
    with(Configuration()) {
      $0.headSize = 8; $0.decayRank = 3; $0.rateRank = 5; $0.valueRank = 6; $0.gateRank = 7
      $0.valueWidth = 64; $0.normEpsilon = 1e-4; $0.keyEpsilon = 1e-6; $0.negativeEigenvalues = true
    },
    with(Configuration()) {
      $0.headSize = 16; $0.decayRank = 4; $0.rateRank = 4; $0.valueRank = 4; $0.gateRank = 4
      $0.negativeEigenvalues = true
    },
  ]

  private let mixes: [Parameter]
  private let receptance, key, value, output: Linear
  private let decay, rate, gate: LowRankLinear
  private let residualValue: LowRankLinear?
  private let keyScale, keyRate, bonus: Parameter
  private let norm: NormLayer
  private let engine: GeneralizedDeltaRule
  private let heads: Int
  private let width: Int
  private let keyEpsilon: Double
  private let flips: Bool

  public init(
    _ c: Configuration, width d: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let n = c.headSize
    let values = c.values(d)
    keyEpsilon = c.keyEpsilon
    flips = c.negativeEigenvalues
    let ranks = c.ranks(d)
    width = d
    heads = d / n
    let last = Double(max(d - 1, 1))
    let ratio = Double(layer.index) / Double(max(layer.count - 1, 1))
    /// Position of channel i in its head, from −1 to 1, times its magnitude.
    @Sendable func zigzag(_ i: Int) -> Double {
      let y = (Double(i % n) - Double(n - 1) / 2) / max(Double(n - 1) / 2, 1)
      return y * abs(y)
    }
    @Sendable func linear(_ i: Int) -> Double { Double(i) / last - 0.5 }

    var mixes: [Parameter] = []
    for (name, power) in [("r", 0.2), ("w", 0.9), ("k", 0.7), ("v", 0.7), ("a", 0.9), ("g", 0.2)] {
      mixes.append(
        try p.parameter("x_\(name)", [d], shiftMix(power, layer, d), decay: WeightDecay.none))
    }
    self.mixes = mixes
    receptance = try Linear(
      "receptance", inputs: d, outputs: d, initializer: .orthogonal(gain: 1), &p)
    key = try Linear("key", inputs: d, outputs: d, initializer: .orthogonal(gain: 0.1), &p)
    value = try Linear("value", inputs: d, outputs: values, initializer: .orthogonal(gain: 1), &p)
    output = try Linear("output", inputs: values, outputs: d, initializer: .zeros, &p)
    func lowRank(
      _ name: String, _ rank: Int, _ outputs: Int, _ activation: Unary.Kind?,
      _ bias: Initializer?, _ p: inout ParameterBuilder
    ) throws(ConfigurationError) -> LowRankLinear {
      try LowRankLinear(
        name, inputs: d, rank: rank, outputs: outputs, activation: activation, bias: bias,
        down: .zeros,
        up: .orthogonal(gain: 0.1), &p)
    }
    let exponent = 1 + Functions.pow(ratio, 0.3)
    decay = try lowRank(
      "decay", ranks.decay, d, .tanh,
      .each { i in -6 + 6 * Functions.pow(Double(i) / last, exponent) + 0.5 + 2.5 * zigzag(i) }, &p)
    rate = try lowRank(
      "rate", ranks.rate, d, nil, .each { i in -0.19 + 0.3 * zigzag(i) + 0.4 * linear(i) }, &p)
    residualValue =
      layer.index == 0
      ? nil
      : try lowRank(
        "residual_value", ranks.value, values, nil, .each { i in 0.73 - 0.4 * linear(i) }, &p)
    gate = try lowRank("gate", ranks.gate, values, .sigmoid, nil, &p)
    keyScale = try p.parameter("k_k", [d], .each { i in 0.71 - 0.1 * linear(i) })
    keyRate = try p.parameter("k_a", [d], .constant(1.02))
    bonus = try p.parameter("r_k", [d / n, n], .constant(-0.04), decay: WeightDecay.none)
    norm = try NormLayer(
      "norm", values, kind: .layer, epsilon: c.normEpsilon, bias: true,
      weight: .constant(Functions.pow(Double(layer.index + 1) / Double(layer.count), 0.7)), &p)
    engine = GeneralizedDeltaRule(heads: heads, keySize: n, valueSize: values / heads)
  }

  public var stateSpec: StateSpec {
    engine.stateSpec + StateSpec([.init("last", [width], .window)])
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (mixed, last) = x.tokenShiftMix(
      mixes.map(\.value), last: state["last"], reset: context.reset)
    state["last"] = last
    return result(mixed, &state, &context)
  }

  public func joined(
    adding part: Tensor, to x: Tensor, norm: NormLayer, state: inout State,
    context: inout SequenceContext
  ) -> (sum: Tensor, y: Tensor)? {
    guard context.reset == nil, let last = state["last"],
      let next = norm.mixes(adding: part, to: x, mixes.map(\.value), last: last)
    else { return nil }
    state["last"] = next.last
    return (next.sum, result(next.mixed, &state, &context))
  }

  /// The layer's result for the mixed inputs.
  private func result(
    _ mixed: [Tensor], _ state: inout State, _ context: inout SequenceContext
  ) -> Tensor {
    let maps = maps(mixed)
    if context.reset == nil, let y = step(mixed, maps, &state, &context) {
      return output(y.mergedHeads())
    }
    let r = maps.receptance.heads(heads)
    let amount = residualValue.map { LowRank(map: $0, x: mixed[3], product: maps.low?[3]) }
    let v = values(maps.value, amount, &context)
    let terms = terms(
      k: maps.key, decay: LowRank(map: decay, x: mixed[1], product: maps.low?[0]),
      rate: LowRank(map: rate, x: mixed[4], product: maps.low?[1]))
    let y = engine(
      .init(
        q: r, k: terms.written, v: v, logDecay: terms.logDecay, a: terms.erase, b: terms.write),
      state: &state, form: context.form, reset: context.reset)
    return output(readout(y, r, terms.written, v, gate: maps.low?[2] ?? gate(mixed[5])))
  }

  /// A low-rank map of x; without its bias where it is known already.
  private struct LowRank {
    let map: LowRankLinear
    let x: Tensor
    let product: Tensor?
    var withoutBias: Tensor { product ?? map.withoutBias(x) }
    var whole: Tensor { product.map { map.biased($0) } ?? map(x) }
  }

  /// The maps of the mixed inputs: of full rank, and of low rank without bias (decay, rate, gate, value)
  /// where all of them are two launches.
  private struct Maps {
    var receptance, key, value: Tensor
    var low: [Tensor]?
  }

  private func maps(_ x: [Tensor]) -> Maps {
    var pairs = [(decay, x[1]), (rate, x[4]), (gate, x[5])]
    if let residualValue { pairs.append((residualValue, x[3])) }
    let down = pairs.compactMap { map, x in
      LinearGroup.Function(map.activation).map { LinearGroup.Map(x, map.down.weight.value, $0) }
    }
    let full = [(receptance, x[0]), (key, x[2]), (value, x[3])]
    if down.count == pairs.count,
      let first = LinearGroup.apply(full.map { LinearGroup.Map($1, $0.weight.value) } + down),
      let second = LinearGroup.apply(
        zip(pairs, first[3...]).map { LinearGroup.Map($1, $0.0.up.weight.value) })
    {
      return Maps(receptance: first[0], key: first[1], value: first[2], low: second)
    }
    return Maps(receptance: receptance(x[0]), key: key(x[2]), value: value(x[3]), low: nil)
  }

  /// One token up to the last map; nil where that is not one kernel.
  private func step(
    _ x: [Tensor], _ maps: Maps, _ state: inout State, _ context: inout SequenceContext
  ) -> Tensor? {
    guard isWhole, !flips, x[0].shape[1] == 1, let rateBias = rate.up.bias,
      let decayBias = decay.up.bias, let weight = norm.weight, let bias = norm.bias
    else { return nil }
    let first = residualValue == nil ? nil : context.shared["rwkv7.value"]
    var inputs = GeneralizedDeltaRule.StepInputs(
      r: maps.receptance, k: maps.key, v: maps.value,
      rate: maps.low?[1] ?? rate.withoutBias(x[4]),
      decay: maps.low?[0] ?? decay.withoutBias(x[1]), gate: maps.low?[2] ?? gate(x[5]),
      parameters: [keyScale, keyRate, rateBias, decayBias, bonus, weight, bias].map(\.value),
      blend: nil)
    if let residualValue, let first, let bias = residualValue.up.bias {
      inputs.blend = (first, maps.low?[3] ?? residualValue.withoutBias(x[3]), bias.value)
    }
    let y = engine.step(
      inputs, keyEpsilon: keyEpsilon, normEpsilon: norm.epsilon, state: &state)
    if y != nil, first == nil { context.shared["rwkv7.value"] = maps.value }
    return y
  }

  /// `[B, T, H, V]`, mixed towards the first layer's values.
  private func values(
    _ own: Tensor, _ amount: LowRank?, _ context: inout SequenceContext
  ) -> Tensor {
    guard let amount, let first = context.shared["rwkv7.value"] else {
      context.shared["rwkv7.value"] = own
      return own.heads(heads)
    }
    if let bias = amount.map.up.bias, own.device.fuses(GatedBlend()) {
      return apply(GatedBlend(), [own, first, amount.withoutBias, bias.value])[0].heads(heads)
    }
    return (own + (first - own) * amount.whole.sigmoid()).heads(heads)
  }

  private struct Terms {
    var written, logDecay, erase, write: Tensor
  }

  private func terms(k: Tensor, decay w: LowRank, rate z: LowRank) -> Terms {
    let op = RWKV7Keys(heads: heads, epsilon: keyEpsilon)
    if let rateBias = rate.up.bias, let decayBias = decay.up.bias, isWhole, !flips,
      k.device.fuses(op)
    {
      let t = apply(
        op,
        [
          k, z.withoutBias, w.withoutBias, keyScale.value, keyRate.value,
          rateBias.value, decayBias.value,
        ])
      return Terms(written: t[0], logDecay: t[1], erase: t[2], write: t[3])
    }
    let a = z.whole.sigmoid()
    let strength = flips ? a * 2 : a
    let direction = (k * keyScale.value).heads(heads).l2Normalized(epsilon: keyEpsilon)
    return Terms(
      written: (k * ((a - 1) * keyRate.value + 1)).heads(heads),
      logDecay: (w.whole.sigmoid() * -Functions.exp(-0.5)).heads(heads),
      erase: -direction, write: direction * strength.heads(heads))
  }

  /// Whether heads have sizes that fused kernels take.
  private var isWhole: Bool {
    let size = width / heads
    return engine.valueSize == size && (8...128).contains(size) && size & (size - 1) == 0
  }

  private func readout(
    _ y: Tensor, _ r: Tensor, _ written: Tensor, _ v: Tensor, gate: Tensor
  ) -> Tensor {
    let op = RWKV7Readout(epsilon: norm.epsilon)
    if let weight = norm.weight, let bias = norm.bias, isWhole, y.device.fuses(op) {
      return apply(op, [y, r, written, v, gate, bonus.value, weight.value, bias.value])[0]
    }
    let agreement = r * written * bonus.value
    let scores = agreement.summed(to: Shape(agreement.shape.dimensions.dropLast() + [1]))
    return (norm(y) + v * scores).mergedHeads() * gate
  }

  public func appendToken(
    _ input: TokenInput, to p: inout TokenProgram, state: State
  ) -> Bool {
    guard !flips, let last = state["last"], let matrix = state["S"] else { return false }
    let values = value.weight.shape[0]
    let maps = [decay, rate, gate] + (residualValue.map { [$0] } ?? [])
    let ranks = maps.map { $0.down.weight.shape[0] }
    let streams = p.scratch("rwkv7.streams", 2 * width + values)
    let down = p.scratch("rwkv7.down", ranks.reduce(0, +))
    // Decays, rates, gates, then how much of the first layer's values.
    let up = p.scratch("rwkv7.up", 2 * width + 2 * values)
    let isFirst = residualValue == nil || !p.hasScratch("rwkv7.first", values)
    let (y, mixed) = (p.scratch("rwkv7.y", values), p.scratch("rwkv7.value", values))
    let (first, score) = (p.scratch("rwkv7.first", values), p.scratch("rwkv7.score", heads))
    var products = [
      receptance.token(0, to: streams), key.token(2, to: streams.advanced(by: width)),
      value.token(3, to: streams.advanced(by: 2 * width)),
    ]
    var operands: [TokenProgram.Operand] = []
    var ups: [TokenProgram.Product] = []
    var (offset, target) = (0, 0)
    for (i, map) in maps.enumerated() {
      products.append(
        map.down.token([1, 4, 5, 3][i], to: down.advanced(by: offset), .set(map.activation)))
      operands.append(.init(down.advanced(by: offset), ranks[i]))
      ups.append(map.up.token(i, to: up.advanced(by: target)))
      offset += ranks[i]
      target += map.up.weight.shape[0]
    }
    p.phases.append(
      .products(
        .init([input.operand], products, shift: .init(mixes: mixes.map(\.value), last: last))))
    p.phases.append(.products(.init(operands, ups)))
    p.phases.append(
      .matrix(
        .init(
          .rwkv7(
            .init(
              decay: up, rate: up.advanced(by: width), mixed: up.advanced(by: 2 * width + values),
              first: first, value: mixed, score: score, keyScale: keyScale.value,
              keyRate: keyRate.value, bonus: bonus.value, isFirst: isFirst)),
          heads: heads, keyHeads: heads, keySize: width / heads, valueSize: values / heads,
          streams: streams, q: 0, k: width, v: 2 * width, scale: engine.scale,
          epsilon: keyEpsilon, state: matrix, output: y)))
    guard var after = norm.token(group: values / heads) else { return false }
    after.added = (mixed, score)
    after.gate = (up.advanced(by: 2 * width), nil, .after)
    p.phases.append(.products(.init([.init(y, values, norm: after)], [input.output(output)])))
    return true
  }
}

/// RWKV-7's channel mixing: y = W_v relu(W_k x')² with x' a learned mix of the token and the one
/// before.
public struct RWKV7ChannelMix: JoinsNorm {
  public static let kind = "rwkv7_channel_mix"
  public struct Configuration: MixerConfiguration {
    /// Width of the hidden layer; 0: four times the model's.
    public var hidden = 0
    public var activation = Unary.Kind.reluSquared.name
    public init() {}
    func hiddenSize(_ width: Int) -> Int { hidden > 0 ? hidden : 4 * width }
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

  private let mix: Parameter
  private let key, value: Linear
  private let activation: Unary.Kind
  private let width: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.width = width
    activation = Unary.Kind.named(c.activation) ?? .reluSquared
    let hidden = c.hiddenSize(width)
    let depth = Functions.pow(1 - Double(layer.index) / Double(layer.count), 4)
    mix = try p.parameter(
      "x_k", [width],
      .each { n in 1 - Functions.pow(Double(n) / Double(width), depth) }, decay: WeightDecay.none)
    key = try Linear(
      "key", inputs: width, outputs: hidden, initializer: .orthogonal(gain: 1), &p)
    value = try Linear("value", inputs: hidden, outputs: width, initializer: .zeros, &p)
  }

  public var stateSpec: StateSpec { StateSpec([.init("last", [width], .window)]) }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (mixed, last) = x.tokenShiftMix([mix.value], last: state["last"], reset: context.reset)
    state["last"] = last
    return value(key(mixed[0]).unary(activation))
  }

  public func joined(
    adding part: Tensor, to x: Tensor, norm: NormLayer, state: inout State,
    context: inout SequenceContext
  ) -> (sum: Tensor, y: Tensor)? {
    guard context.reset == nil, let last = state["last"],
      let next = norm.mixes(adding: part, to: x, [mix.value], last: last)
    else { return nil }
    state["last"] = next.last
    return (next.sum, value(key(next.mixed[0]).unary(activation)))
  }

  public func appendToken(
    _ input: TokenInput, to p: inout TokenProgram, state: State
  ) -> Bool {
    guard let last = state["last"] else { return false }
    let hidden = p.scratch("hidden", key.weight.shape[0])
    p.phases.append(
      .products(
        .init(
          [input.operand], [key.token(to: hidden, .set(activation))],
          shift: .init(mixes: [mix.value], last: last))))
    p.phases.append(
      .products(.init([.init(hidden, key.weight.shape[0])], [input.output(value)])))
    return true
  }
}
