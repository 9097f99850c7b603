import GyreLayers
import GyreRecurrence
import GyreTensors

/// The gated attention unit of FLASH: one cheap head of attention inside a gated linear unit, which needs
/// no feed-forward block beside it.
///
///     u = silu(W_u x)    v = silu(W_v x)    z = silu(W_z x)    q = γ_q ∘ z + β_q    k = γ_k ∘ z + β_k
///     out = W_o (u ∘ A(q, k, v))
///
/// A is softmax attention over a window or all tokens, linear attention with an RMSNorm, or the sum of
/// a window and linear attention: FLASH's local and global parts. Hua, Dai, Liu and Le, "Transformer
/// quality in linear time", 2022. https://arxiv.org/abs/2202.10447
///
/// State: keys and values, `[K, V]`, or both. Engines: `SoftmaxAttention`, `LinearAttention`.
public struct GatedAttentionUnit: SequenceMixer {
  public static let kind = "gated_attention_unit"
  public struct Configuration: MixerConfiguration {
    public enum Attention: String, Codable, Hashable, Sendable { case softmax, linear, mixed }
    public var attention = Attention.mixed
    /// K, channels of z.
    public var keySize = 128
    /// Channels of u and v; 0: twice the width.
    public var hidden = 0
    /// Tokens that a query of the softmax sees; 0: all.
    public var window = 256
    public var rotary = true
    public var rotaryBase = 10_000.0
    public static var largeFields: Set<String> { ["rotaryBase"] }
    public init() {}
    public func resolved(width: Int) -> Self {
      with(self) { $0.hidden = hidden > 0 ? hidden : 2 * width }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try require(
        (1...1 << 16).contains(keySize), "keySize", "must be in 1...\(1 << 16), is \(keySize)")
      try require(
        (0...1 << 24).contains(hidden), "hidden", "must be in 0...\(1 << 24), is \(hidden)")
      try require(window >= 0, "window", "must not be negative, is \(window)")
      guard rotary else { return }
      try require(keySize % 2 == 0, "keySize", "must be even to rotate, is \(keySize)")
      try require(
        rotaryBase > 0 && rotaryBase <= 1e12, "rotaryBase", "must be in (0, 1e12], is \(rotaryBase)"
      )
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.keySize = 8; $0.window = 9
    },
    with(Configuration()) {
      $0.keySize = 6; $0.hidden = 20; $0.attention = .softmax; $0.window = 0; $0.rotaryBase = 50
    },
    with(Configuration()) {
      $0.keySize = 7; $0.attention = .linear; $0.rotary = false
    },
  ]

  private let projection, output: Linear
  private let heads: OffsetHeads
  private let local: SoftmaxAttention?
  private let global: LinearAttention?
  private let c: Configuration

  public init(
    _ configuration: Configuration, width: Int, layer: LayerPosition,
    parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let c = configuration.resolved(width: width)
    self.c = c
    projection = try Linear("uvz", inputs: width, outputs: 2 * c.hidden + c.keySize, &p)
    heads = try OffsetHeads(c.keySize, count: 2, &p)
    output = try Linear("output", inputs: c.hidden, outputs: width, &p)
    local =
      c.attention == .linear
      ? nil
      : SoftmaxAttention(
        heads: 1, keySize: c.keySize, valueSize: c.hidden,
        window: c.window > 0 ? c.window : nil)
    global =
      c.attention == .softmax
      ? nil : LinearAttention(heads: 1, keySize: c.keySize, valueSize: c.hidden)
  }

  public var stateSpec: StateSpec {
    (local?.stateSpec ?? StateSpec()) + (global?.stateSpec ?? StateSpec())
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = projection(x).silu().split([c.hidden, c.hidden, c.keySize])
    let position = state.tokenCount
    let placed = heads(parts[2]).map { t in
      c.rotary ? t.heads(1).rotated(base: c.rotaryBase, positionOffset: position) : t.heads(1)
    }
    let v = parts[1].heads(1)
    var y = local?.scoped(.init(q: placed[0], k: placed[1], v: v), "", &state, context)
    if let global {
      let far = global.scoped(
        .init(q: placed[0], k: placed[1], v: v, decay: .none), "", &state, context
      ).rmsNormalized(epsilon: 1e-6)
      y = y.map { $0 + far } ?? far
    }
    return output(parts[0] * (y ?? v).mergedHeads())
  }
}

/// Several queries or keys made of one vector: γᵢ ∘ z + βᵢ.
struct OffsetHeads: Sendable {
  private let scales, offsets: Parameter
  private let count, size: Int

  init(_ size: Int, count: Int, _ p: inout ParameterBuilder) throws(ConfigurationError) {
    (self.size, self.count) = (size, count)
    scales = try p.parameter(
      "scales", [count, size], .normal(standardDeviation: 0.02, mean: 1), decay: WeightDecay.none)
    offsets = try p.parameter("offsets", [count, size], .zeros, decay: WeightDecay.none)
  }

  func callAsFunction(_ z: Tensor) -> [Tensor] {
    let ones = [Int](repeating: 1, count: count)
    return zip(scales.value.split(ones, axis: 0), offsets.value.split(ones, axis: 0)).map {
      z * $0.reshaped([size]) + $1.reshaped([size])
    }
  }
}
