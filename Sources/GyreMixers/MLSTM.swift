import GyreLayers
import GyreRecurrence
import GyreTensors

/// mLSTM of xLSTM: a matrix memory with exponential gates, a normaliser and a stabiliser.
///
///     Cₜ = f Cₜ₋₁ + i kₜ vₜᵀ    nₜ = f nₜ₋₁ + i kₜ    yₜ = Cₜᵀ q / max(|nₜᵀ q|, e^(−m))
///     out = W_o (LayerNorm per head (yₜ) ∘ σ(W_g xₜ))
///
/// with f = σ(f̃), i = e^ĩ, both pre-activations capped at ±15. Beck et al., "xLSTM: extended long
/// short-term memory", 2024. https://arxiv.org/abs/2405.04517
///
/// With `inputGate` "sigmoid" i = σ(ĩ), y = Cₜᵀ q / (max(|nₜᵀ q|, 1) + ε) and there is no m
/// (Beck et al., "Tiled flash linear attention", 2025, https://arxiv.org/abs/2503.14376).
///
/// State: C `[H, K, V]`, n `[H, K]`, m `[H]`; with sigmoid gates S and z. Engine: `MatrixLSTM` or
/// `LinearAttention`.
public struct MLSTM: SequenceMixer {
  public static let kind = "mlstm"
  public struct Configuration: ExpandedHeads {
    public enum InputGate: String, Codable, Hashable, Sendable { case exponential, sigmoid }
    public var heads = 4
    /// Total key and value widths over the model's, rounded down.
    public var keyExpansion = 0.5
    public var valueExpansion = 1.0
    public var inputGate = InputGate.exponential
    /// Gate pre-activations are c·tanh(x/c).
    public var gateCap = 15.0
    /// Biases of q, k, v, output gate, norm and output; the gates have theirs always.
    public var bias = false
    /// ε of the divisor.
    public var epsilon = 1e-6
    public var normEpsilon = 1e-6
    /// Projections as matrices of their own rather than one: loading them copies nothing.
    public var separate = false
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try validateFlooredHeads(width)
      try require(gateCap > 0 && gateCap.isFinite, "gateCap", "must be positive, is \(gateCap)")
      try require(epsilon >= 0 && epsilon < 1, "epsilon", "must be in [0, 1), is \(epsilon)")
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.heads = 1; $0.keyExpansion = 1
    },
    with(Configuration()) {
      $0.heads = 2; $0.valueExpansion = 1.5; $0.bias = true; $0.gateCap = 5; $0.epsilon = 1e-5
      $0.normEpsilon = 1e-5; $0.separate = true
    },
    with(Configuration()) { $0.inputGate = .sigmoid },
  ]

  private let projections: [Linear]
  private let gates: Linear
  private let output: Linear
  private let norm: NormLayer
  private let exponential: MatrixLSTM
  private let bounded: LinearAttention
  private let c: Configuration
  private let sizes: (keys: Int, values: Int)

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    sizes = c.flooredChannels(width)
    let (heads, keys, values) = (c.heads, sizes.keys, sizes.values)
    let bias: Initializer? = c.bias ? .zeros : nil
    var projections: [Linear] = []
    if c.separate {
      for (name, size) in [("q", keys), ("k", keys), ("v", values), ("o", values)] {
        projections.append(try Linear(name, inputs: width, outputs: size, bias: bias, &p))
      }
    } else {
      projections.append(
        try Linear("qkvo", inputs: width, outputs: 2 * keys + 2 * values, bias: bias, &p))
    }
    self.projections = projections
    // Input gates start closed (−10), forget gates open (3 to 6); their weights start at zero.
    gates = try Linear(
      "gates", inputs: width, outputs: 2 * heads,
      bias: .each { i in i < heads ? -10 : 3 + 3 * Double(i - heads) / Double(max(heads - 1, 1)) },
      initializer: .zeros, &p)
    output = try Linear("output", inputs: values, outputs: width, bias: bias, &p)
    norm = try NormLayer(
      "norm", values, kind: .layer, epsilon: c.normEpsilon, bias: c.bias, &p)
    exponential = MatrixLSTM(
      heads: heads, keySize: keys / heads, valueSize: values / heads, epsilon: c.epsilon)
    bounded = LinearAttention(
      heads: heads, keySize: keys / heads, valueSize: values / heads,
      normalizer: .floor(1, epsilon: c.epsilon))
  }

  public var stateSpec: StateSpec {
    c.inputGate == .exponential ? exponential.stateSpec : bounded.stateSpec
  }

  /// q, k, v and the open share of the output gate, and, where they are one launch with it, the gates' map
  /// without its bias.
  private func maps(_ x: Tensor) -> (streams: [Tensor], gates: Tensor?) {
    let pieces = [sizes.keys, sizes.keys, sizes.values, sizes.values]
    if !c.separate, projections[0].bias == nil, gates.bias != nil,
      let together = x.linear(
        projections[0].weight.value, openedPieces: pieces, besideUnbiased: gates)
    {
      return (together.pieces, together.other)
    }
    var parts = c.separate ? projections.map { $0(x) } : projections[0](x, pieces: pieces)
    parts[3] = parts[3].sigmoid()
    return (parts, nil)
  }

  /// Input and forget gates, capped, of x or of their map without its bias.
  private func capped(_ x: Tensor, _ z: Tensor?) -> [Tensor] {
    let op = CappedGates(cap: c.gateCap)
    if let z, let bias = gates.bias?.value {
      if x.device.fuses(op) { return apply(op, [z, bias]) }
      return (((z + bias) / c.gateCap).tanh() * c.gateCap).split([c.heads, c.heads])
    }
    return ((gates(x) / c.gateCap).tanh() * c.gateCap).split([c.heads, c.heads])
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (parts, z) = maps(x)
    let (q, k, v) = (parts[0].heads(c.heads), parts[1].heads(c.heads), parts[2].heads(c.heads))
    let open = parts[3].heads(c.heads)
    if c.inputGate == .exponential, context.reset == nil, let z, let bias = gates.bias?.value,
      let y = exponential.step(
        q: q, k: k, v: v, gates: z, bias: bias, cap: c.gateCap, state: &state)
    {
      return output(norm(y, times: open).mergedHeads())
    }
    let capped = capped(x, z)
    let y: Tensor
    switch c.inputGate {
    case .exponential:
      y = exponential(
        .init(q: q, k: k, v: v, inputGate: capped[0], forgetGate: capped[1]),
        state: &state, form: context.form, reset: context.reset)
    case .sigmoid:
      let input = capped[0].sigmoid()
      y = bounded(
        .init(
          q: q, k: k * input.reshaped(Shape(input.shape.dimensions + [1])), v: v,
          decay: .scalar(capped[1].logSigmoid())),
        state: &state, form: context.form, reset: context.reset)
    }
    return output(norm(y, times: open).mergedHeads())
  }
}
