import GyreLayers
import GyreRecurrence
import GyreTensors

/// MultiresConv: a tree of dilated causal convolutions, like a wavelet transform, with one pair of
/// filters a channel for all its levels.
///
///     aⁱ⁺¹ₜ = Σ_m h₀ₘ aⁱ_{t − m 2ⁱ}    bⁱₜ = Σ_m h₁ₘ aⁱ_{t − m 2ⁱ}    a⁰ = x
///     yₜ = w_x ∘ xₜ + Σᵢ wᵢ ∘ bⁱₜ + w_L ∘ a^L    out = GLU(gelu(y))
///
/// over L levels, which see (k − 1)(2^L − 1) tokens back. Shi, Wang and Fox, "Sequence modeling with
/// multiresolution convolutional memory", 2023. https://arxiv.org/abs/2305.01638
///
/// State: the last (k − 1) 2ⁱ values of each level i, and the token count.
public struct MultiresConv: SequenceMixer {
  public static let kind = "multires_conv"
  public struct Configuration: MixerConfiguration {
    /// k, taps of a filter.
    public var taps = 2
    /// L; 8 levels of two taps see 255 tokens back.
    public var levels = 8
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try require((2...16).contains(taps), "taps", "must be in 2...16, is \(taps)")
      try require((1...20).contains(levels), "levels", "must be in 1...20, is \(levels)")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.levels = 3 },
    with(Configuration()) {
      $0.taps = 3; $0.levels = 2
    },
  ]

  private let low, high, weights: Parameter
  private let out: GatedOutput
  private let counter = TokenCounter()
  private let taps, levels, width: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    (taps, levels, self.width) = (c.taps, c.levels, width)
    // Uniform ±1 times √2/√(2k), and √2/√(2L + 2).
    let filter = (1 / Double(taps)).squareRoot()
    low = try p.parameter("h0", [taps, width], .uniform(-filter, filter), decay: WeightDecay.none)
    high = try p.parameter("h1", [taps, width], .uniform(-filter, filter), decay: WeightDecay.none)
    let weight = (1 / Double(levels + 1)).squareRoot()
    weights = try p.parameter(
      "w", [levels + 2, width], .uniform(-weight, weight), decay: WeightDecay.none)
    out = try GatedOutput(inputs: width, width: width, &p)
  }

  public var stateSpec: StateSpec {
    StateSpec(
      (0..<levels).map { .init("level\($0)", [(taps - 1) << $0, width], .window) })
      + counter.stateSpec
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let counts = counter(like: x, state: &state, context: context)
    func rows(_ p: Parameter) -> [Tensor] {
      p.value.split([Int](repeating: 1, count: p.shape[0]), axis: 0).map { $0.reshaped([width]) }
    }
    let (low, high, weights) = (rows(low), rows(high), rows(weights))
    var (a, y) = (x, x * weights[levels + 1])
    for i in 0..<levels {
      let name = "level\(i)"
      let past = PastTokens(a, tail: state.value(name, on: x.device), counts: counts)
      state[name] = past.tail
      var next = a * low[0]
      var detail = a * high[0]
      for m in 1..<taps {
        let before = past.back(m << i)
        next = next + before * low[m]
        detail = detail + before * high[m]
      }
      y = y + detail * weights[i]
      a = next
    }
    return out(y + a * weights[levels])
  }
}
