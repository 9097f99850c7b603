import GyreLayers
import GyreRecurrence
import GyreTensors

/// Gated slot attention: a bounded memory of slots whose forget gates also say how much is written.
///
///     ln fₜ = logσ(W_f xₜ) / 8    Kₜ = Kₜ₋₁ diag(fₜ) + φ(kₜ)(1 − fₜ)ᵀ    Vₜ = diag(fₜ) Vₜ₋₁ + (1 − fₜ) vₜᵀ
///     yₜ = Vₜᵀ softmax(Kₜᵀ φ(qₜ))    out = W_o RMSNorm(silu(yₜ))
///
/// v = silu(W_v x). Optionally q, k and v pass a short convolution with SiLU, and keys, values and
/// gates are shared by groups of query heads. Zhang et al., "Gated slot attention for efficient
/// linear-time sequence modeling", 2024. https://arxiv.org/abs/2409.07146
///
/// State: that of `SlotMemory` and the convolution's tail.
public struct GatedSlotAttention: SequenceMixer {
  public static let kind = "gated_slot_attention"
  public struct Configuration: GroupedHeads {
    public var heads = 4
    /// Heads of k, v and the gates; 0: as many as query heads.
    public var keyHeads = 0
    /// Total key and value widths over the model's width.
    public var keyExpansion = 1.0
    public var valueExpansion = 1.0
    /// Slots a head; 0: as many as key channels.
    public var slots = 64
    /// φ.
    public var featureMap = "silu"
    /// Divisor of the log decay.
    public var gateDivisor = 8.0
    /// Taps of the short convolution; 0 for none.
    public var convolution = 0
    /// Whether the output norm has a weight.
    public var normWeight = true
    public var normEpsilon = 1e-5
    public init() {}
    public func resolved(width: Int) -> Self {
      with(self) {
        $0.keyHeads = keyHeadCount
        $0.slots = slots > 0 ? slots : sizes(width).key
      }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try validateGroups(width)
      try require(slots >= 0, "slots", "must not be negative, is \(slots)")
      let kind = try FeatureMap.Kind(featureMap)
      let keySize = sizes(width).key
      try require(
        kind.features(keySize) == keySize, "featureMap", "must keep the size of a head's keys")
      try require(gateDivisor > 0, "gateDivisor", "must be positive, is \(gateDivisor)")
      try HeadSizes.convolution(convolution)
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.slots = 12 },
    with(Configuration()) {
      $0.keyHeads = 2; $0.keyExpansion = 0.5; $0.valueExpansion = 2; $0.slots = 0
      $0.featureMap = "t2r"; $0.gateDivisor = 1; $0.convolution = 3; $0.normWeight = false
    },
    with(Configuration()) {
      $0.heads = 2; $0.slots = 5; $0.featureMap = "relu"; $0.normEpsilon = 1e-6
    },
  ]

  private let streams: Streams
  private let output: Linear
  private let norm: OutputNorm
  private let features: FeatureMap
  private let engine: SlotMemory
  private let keyHeads: Int
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    keyHeads = c.keyHeadCount
    let (keySize, valueSize) = c.sizes(width)
    let slots = c.slots > 0 ? c.slots : keySize
    streams = try Streams(
      "qkvf", inputs: width,
      mixed: c.mixed(width),
      plain: [keyHeads * slots], convolution: c.convolution,
      activations: [c.convolution > 0 ? .silu : nil], &p)
    features = try FeatureMap(.init(c.featureMap), size: keySize, "features", &p)
    output = try Linear("output", inputs: c.heads * valueSize, outputs: width, &p)
    norm = try OutputNorm(
      c.heads * valueSize, hasWeight: c.normWeight, epsilon: c.normEpsilon, &p)
    engine = SlotMemory(
      heads: c.heads, keySize: keySize, valueSize: valueSize, slots: slots, scale: 1)
  }

  public var stateSpec: StateSpec { engine.stateSpec + streams.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = streams(x, state: &state, reset: context.reset)
    let groups = c.heads / keyHeads
    func shared(_ t: Tensor) -> Tensor { t.heads(keyHeads).repeatedHeads(groups) }
    let logDecay = parts[3].logSigmoid() / c.gateDivisor
    let y = engine(
      .init(
        q: features(parts[0].heads(c.heads)),
        k: features(parts[1].heads(keyHeads)).repeatedHeads(groups), v: shared(parts[2].silu()),
        weight: shared(-logDecay.unary(.expm1)), logDecay: shared(logDecay)),
      state: &state, form: context.form, reset: context.reset)
    return output(norm(y.mergedHeads().silu()))
  }
}

/// Attention with bounded-memory control: slots that hold softmax-weighted averages of all keys and
/// values so far.
///
///     sₜ = clamp(W_s xₜ, ±32)    Kₜ = Σⱼ kⱼ e^sⱼᵀ / Σⱼ e^sⱼ    Vₜ = Σⱼ e^sⱼ vⱼᵀ / Σⱼ e^sⱼ
///     yₜ = Vₜᵀ softmax(K^-½ Kₜᵀ qₜ)    out = W_o (RMSNorm(yₜ) ∘ silu(W_g xₜ))
///
/// q and k rotate with their positions; optionally q, k and v pass a short convolution with SiLU.
/// Peng et al., "ABC: attention with bounded-memory control", 2022. https://arxiv.org/abs/2110.02488
///
/// State: that of `SlotMemory` and `AdditiveGate`, and the convolution's tail.
public struct BoundedMemoryAttention: SequenceMixer {
  public static let kind = "bounded_memory_attention"
  public struct Configuration: ExpandedHeads {
    public var heads = 4
    /// Total key and value widths over the model's width.
    public var keyExpansion = 0.5
    public var valueExpansion = 1.0
    /// Slots a head; 0: as many as key channels.
    public var slots = 64
    /// Bounds of s; nil for none.
    public var logitFloor: Double? = -32
    public var logitCeiling: Double? = 32
    public var rotates = true
    public var rotaryBase = 10_000.0
    /// Taps of the short convolution; 0 for none.
    public var convolution = 0
    public var gatesOutput = true
    /// Whether the output norm has a weight.
    public var normWeight = true
    public var normEpsilon = 1e-5
    public init() {}
    public static let optionalFields: Set<String> = ["logitFloor", "logitCeiling"]
    public func resolved(width: Int) -> Self {
      with(self) {
        $0.slots = slots > 0 ? slots : sizes(width).key
      }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try validateHeads(width)
      try require(slots >= 0, "slots", "must not be negative, is \(slots)")
      try require(
        (logitFloor ?? -1) < (logitCeiling ?? (logitFloor ?? 0) + 1), "logitFloor",
        "must be below logitCeiling")
      let keySize = sizes(width).key
      try require(
        !rotates || keySize % 2 == 0, "heads", "must give an even key size, gives \(keySize)")
      try require(rotaryBase > 0, "rotaryBase", "must be positive, is \(rotaryBase)")
      try HeadSizes.convolution(convolution)
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.slots = 12 },
    with(Configuration()) {
      $0.heads = 2; $0.keyExpansion = 1; $0.valueExpansion = 0.5; $0.slots = 0; $0.rotates = false
      $0.convolution = 3; $0.gatesOutput = false; $0.normWeight = false
    },
    with(Configuration()) {
      $0.slots = 5; $0.logitFloor = -0.5; $0.logitCeiling = 0.5; $0.normEpsilon = 1e-6
    },
  ]

  private let streams: Streams
  private let output: Linear
  private let norm: OutputNorm
  private let gate: AdditiveGate
  private let engine: SlotMemory
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    let (keySize, valueSize) = c.sizes(width)
    let slots = c.slots > 0 ? c.slots : keySize
    streams = try Streams(
      "qkvsg", inputs: width,
      mixed: [c.heads * keySize, c.heads * keySize, c.heads * valueSize],
      plain: [c.heads * slots] + (c.gatesOutput ? [c.heads * valueSize] : []),
      convolution: c.convolution, activations: [c.convolution > 0 ? .silu : nil], &p)
    output = try Linear("output", inputs: c.heads * valueSize, outputs: width, &p)
    norm = try OutputNorm(valueSize, hasWeight: c.normWeight, epsilon: c.normEpsilon, &p)
    gate = AdditiveGate(channels: c.heads * slots)
    engine = SlotMemory(heads: c.heads, keySize: keySize, valueSize: valueSize, slots: slots)
  }

  public var stateSpec: StateSpec { engine.stateSpec + gate.stateSpec + streams.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = streams(x, state: &state, reset: context.reset)
    let heads = parts.map { $0.heads(c.heads) }
    let position = state.tokenCount
    func placed(_ t: Tensor) -> Tensor {
      c.rotates ? t.rotated(base: c.rotaryBase, positionOffset: position) : t
    }
    let written = gate(
      parts[3].clamped(c.logitFloor, c.logitCeiling), state: &state, reset: context.reset)
    let y = engine(
      .init(
        q: placed(heads[0]), k: placed(heads[1]), v: heads[2],
        weight: written.weight.heads(c.heads), logDecay: written.logDecay.heads(c.heads)),
      state: &state, form: context.form, reset: context.reset)
    return output(norm(y, gate: c.gatesOutput ? heads[4] : nil).mergedHeads())
  }
}
