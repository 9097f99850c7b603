import GyreLayers
import GyreRecurrence
import GyreTensors

/// Hrrformer, causal: attention by holographic reduced representations. Pairs are bound by circular
/// convolution into one vector, from which the query recalls a value; tokens weigh by how much of their
/// own value they recall.
///
///     βₜ = Σ_{j≤t} kⱼ ⊛ vⱼ    v̂ₜ = qₜ† ⊛ βₜ    wₜ = e^cₜ / Σ_{j≤t} e^cⱼ    cₜ = cos(vₜ, v̂ₜ)
///     out = W_o (t · wₜ ∘ vₜ)
///
/// q† is the inverse of q under ⊛, in frequencies conj(F q)/|F q|². The published sums run over the
/// whole sequence; here they run up to the token, and t stands for its length, which the weights
/// divide by. Alam et al., "Recasting self-attention with holographic reduced representations", 2023.
/// https://arxiv.org/abs/2305.19534
///
/// State: β in frequencies, complex `[H, K/2 + 1]`, the log of the weights' sum `[H]`, the token count.
/// Engines: `DiagonalScan` without decay, `AdditiveGate`; ⊛ by products with Fourier matrices.
public struct Hrrformer: SequenceMixer {
  public static let kind = "hrrformer"
  public struct Configuration: MixerConfiguration {
    public var heads = 4
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: heads, field: "heads", of: "width")
      try require(
        width / heads <= 1 << 12, "heads", "must leave at most \(1 << 12) channels, is \(heads)")
    }
  }
  public static let testConfigurations = [
    Configuration(), with(Configuration()) { $0.heads = 2 },
  ]

  private let projection, output: Linear
  private let sum: DiagonalScan
  private let weigh: AdditiveGate
  private let counter = TokenCounter()
  private let heads, size, bins: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    (heads, size) = (c.heads, width / c.heads)
    bins = size / 2 + 1
    projection = try Linear("qkv", inputs: width, outputs: 3 * width, &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
    sum = DiagonalScan(channels: 2 * heads * bins)
    weigh = AdditiveGate(channels: heads)
  }

  public var stateSpec: StateSpec { sum.stateSpec + weigh.stateSpec + counter.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (batch, tokens, width) = (x.shape[0], x.shape[1], x.shape.last)
    let parts = projection(x).split([width, width, width]).map { $0.heads(heads) }
    let (q, k, v) = (spectrum(parts[0]), spectrum(parts[1]), spectrum(parts[2]))
    let pair = k * v
    let flat: Shape = [batch, tokens, heads * bins]
    let beta = sum.scoped(
      .init(
        decay: .full(1, [2 * heads * bins], on: x.device), decayIsLog: false,
        input: concatenated([pair.re.reshaped(flat), pair.im.reshaped(flat)])), "", &state, context
    ).split([heads * bins, heads * bins]).map { $0.reshaped([batch, tokens, heads, bins]) }
    let energy = q.re * q.re + q.im * q.im + 1e-6
    let inverse = ComplexTensor(re: q.re / energy, im: -q.im / energy)
    let recalled = signal(inverse * ComplexTensor(re: beta[0], im: beta[1]))
    let cosine = (parts[2].l2Normalized() * recalled.l2Normalized())
      .summed(to: [batch, tokens, heads, 1]).reshaped([batch, tokens, heads])
    var gate = State(weigh.stateSpec, batch: batch)
    gate["z"] = state["z"]
    let (weight, _) = weigh(cosine, state: &gate, reset: context.reset)
    state["z"] = gate["z"]
    let scale = weight * counter(like: x, state: &state, context: context)
    return output(
      (parts[2] * scale.reshaped([batch, tokens, heads, 1])).mergedHeads())
  }

  /// The Fourier transform of the last axis, its first K/2 + 1 frequencies.
  private func spectrum(_ t: Tensor) -> ComplexTensor {
    ComplexTensor(
      re: t.linear(matrix(t.device) { Functions.cos($0) }),
      im: t.linear(matrix(t.device) { -Functions.sin($0) }))
  }

  private func matrix(_ device: any Device, _ f: (Double) -> Double) -> Tensor {
    let (K, n) = (size, bins)
    return Tensor(
      (0..<n * K).map { Float(f(2 * .pi * Double($0 / K * ($0 % K) % K) / Double(K))) },
      shape: [n, K], on: device)
  }

  /// The real signal of a spectrum: frequencies but the first and, of an even number, the last count
  /// twice.
  private func signal(_ s: ComplexTensor) -> Tensor {
    let (K, n) = (size, bins)
    func back(_ f: (Double) -> Double) -> Tensor {
      Tensor(
        (0..<K * n).map { i in
          let (t, m) = (i / n, i % n)
          let weight = m == 0 || 2 * m == K ? 1.0 : 2.0
          return Float(weight / Double(K) * f(2 * .pi * Double(t * m % K) / Double(K)))
        }, shape: [K, n], on: s.re.device)
    }
    return s.re.linear(back { Functions.cos($0) }) - s.im.linear(back { Functions.sin($0) })
  }
}
