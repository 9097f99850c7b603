import GyreLayers
import GyreRecurrence
import GyreTensors

/// CHELA: linear attention whose queries, keys and gates have seen a short and a long convolution, which
/// take the place of a state space layer.
///
///     c = long(silu(short(x)))    z = silu(W_z c)    q = γ_q ∘ z + β_q    k = γ_k ∘ z + β_k
///     o = RMSNorm(Σ_{j≤t} (φ(qₜ)·φ(kⱼ)) vⱼ)    φ = elu + 1    v = silu(W_v x)    r = silu(W_r c)    i = σ(W_i c)
///     out = i ∘ silu(W_h c + U_h (r ∘ o)) + (1 − i) ∘ x
///
/// The long kernel is the sum of branches of L taps each at distances 1, L, L², …: three of eight taps
/// reach 448 tokens back.
/// Liu, Sun, Ma and Wang, "Short-long convolutions help hardware-efficient linear attention to focus on
/// long sequences", 2024. https://arxiv.org/abs/2406.08128
///
/// State: `[K, V]` and the two convolutions' tails. Engine: `LinearAttention`, no decay.
public struct CHELA: SequenceMixer {
  public static let kind = "chela"
  public struct Configuration: MixerConfiguration {
    /// Taps of the short convolution.
    public var convolution = 4
    /// L, taps of a branch of the long one.
    public var longTaps = 8
    /// Branches that make the long kernel.
    public var branches = 3
    /// K, channels of z.
    public var keySize = 64
    /// Channels of v; 0: twice the width.
    public var hidden = 0
    public init() {}
    public func resolved(width: Int) -> Self {
      with(self) { $0.hidden = hidden > 0 ? hidden : 2 * width }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.convolution(convolution)
      try HeadSizes.positive(convolution, "convolution")
      try require((2...16).contains(longTaps), "longTaps", "must be in 2...16, is \(longTaps)")
      try require((1...4).contains(branches), "branches", "must be in 1...4, is \(branches)")
      try require(
        (1...1 << 16).contains(keySize), "keySize", "must be in 1...\(1 << 16), is \(keySize)")
      try require(
        (0...1 << 24).contains(hidden), "hidden", "must be in 0...\(1 << 24), is \(hidden)")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.longTaps = 3; $0.keySize = 8
    },
    with(Configuration()) {
      $0.convolution = 2; $0.longTaps = 4; $0.branches = 2; $0.keySize = 5; $0.hidden = 20
    },
  ]

  private let short: ShortConvolutionLayer
  private let kernels: [Parameter]
  private let counter = TokenCounter()
  private let unit: GatedUpdate
  private let value: Linear
  private let features: FeatureMap
  private let engine: LinearAttention
  private let taps, width: Int

  public init(
    _ configuration: Configuration, width: Int, layer: LayerPosition,
    parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let c = configuration.resolved(width: width)
    (taps, self.width) = (c.longTaps, width)
    short = try ShortConvolutionLayer("short", channels: width, width: c.convolution, &p)
    var kernels: [Parameter] = []
    for i in 0..<c.branches {
      kernels.append(
        try p.parameter(
          "long.\(i)", [taps, width], .fanIn(taps * c.branches), decay: WeightDecay.none))
    }
    self.kernels = kernels
    value = try Linear("v", inputs: width, outputs: c.hidden, &p)
    unit = try GatedUpdate(width: width, keySize: c.keySize, hidden: c.hidden, &p)
    features = try FeatureMap(.elu, size: c.keySize, "features", &p)
    engine = LinearAttention(heads: 1, keySize: c.keySize, valueSize: c.hidden)
  }

  /// Distance of neighbouring taps of a branch.
  private func distance(_ branch: Int) -> Int { (0..<branch).reduce(1) { n, _ in n * taps } }

  public var stateSpec: StateSpec {
    let reach = (taps - 1) * distance(kernels.count - 1)
    return engine.stateSpec + short.stateSpec + counter.stateSpec
      + StateSpec([.init("long", [reach, width], .window)])
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let near = short(x, state: &state, reset: context.reset)
    let past = PastTokens(
      near, tail: state.value("long", on: x.device),
      counts: counter(like: x, state: &state, context: context))
    state["long"] = past.tail
    var c = near * 0
    for (i, kernel) in kernels.enumerated() {
      let rows = kernel.value.split([Int](repeating: 1, count: taps), axis: 0)
      for (m, row) in rows.enumerated() {
        c = c + past.back(m * distance(i)) * row.reshaped([width])
      }
    }
    let keys = unit.keys(c).map { features($0).heads(1) }
    let o = engine.scoped(
      .init(q: keys[0], k: keys[1], v: value(x).silu().heads(1), decay: .none),
      "", &state, context)
    return unit(x, c, o.mergedHeads().rmsNormalized(epsilon: 1e-6))
  }
}

/// The gates of MEGA around an attention o over contextual inputs c:
///
///     z = silu(W_z c)    q, k = γ ∘ z + β    r = silu(W_r c)    i = σ(W_i c)
///     y = i ∘ silu(W_h c + U_h (r ∘ o)) + (1 − i) ∘ x
///
/// Ma et al., "MEGA: moving average equipped gated attention", 2022. https://arxiv.org/abs/2209.10655
struct GatedUpdate: Sendable {
  private let shared, gates, inner: Linear
  private let heads: OffsetHeads
  private let hidden, width: Int

  init(
    width: Int, keySize: Int, hidden: Int, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    (self.width, self.hidden) = (width, hidden)
    shared = try Linear("z", inputs: width, outputs: keySize, bias: .zeros, &p)
    heads = try OffsetHeads(keySize, count: 2, &p)
    gates = try Linear("gates", inputs: width, outputs: hidden + 2 * width, bias: .zeros, &p)
    inner = try Linear("inner", inputs: hidden, outputs: width, &p)
  }

  /// q and k.
  func keys(_ c: Tensor) -> [Tensor] { heads(shared(c).silu()) }

  func callAsFunction(_ x: Tensor, _ c: Tensor, _ o: Tensor) -> Tensor {
    let parts = gates(c).split([hidden, width, width])
    let candidate = (parts[2] + inner(parts[0].silu() * o)).silu()
    let update = parts[1].sigmoid()
    return update * candidate + (1 - update) * x
  }
}
