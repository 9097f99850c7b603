import GyreLayers
import GyreMixers
import GyreTensors

/// Attention over depth: what a sublayer reads in place of the sum of all before it.
///
///     o = Σ_l softmax_l(w · RMSNorm(v_l)) v_l
///
/// over the sums v_l of blocks of sublayers, the embedding first and the running sum last. "Attention
/// residuals", 2026. https://arxiv.org/abs/2603.15031
struct ResidualAttention: Sendable {
  private let query: Parameter
  private let norm: NormLayer

  init(
    _ name: String, width: Int, epsilon: Double, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    (query, norm) = try p.scoped(name) { p throws(ConfigurationError) in
      (
        try p.parameter("query", [1, width], .zeros, decay: WeightDecay.none),
        try NormLayer("norm", width, epsilon: epsilon, &p)
      )
    }
  }

  /// - Parameter sources: at least one, `[B, T, D]` each.
  func callAsFunction(_ sources: [Tensor]) -> Tensor {
    let scores = concatenated(sources.map { norm($0).linear(query.value) })
    let shares = scores.softmax().split(sources.map { _ in 1 })
    var sum = sources[0] * shares[0]
    for (source, share) in zip(sources, shares).dropFirst() { sum = sum + source * share }
    return sum
  }

  // MARK: - Sums of blocks

  private static let prefix = "residual."

  /// Sums of the blocks that are complete, in order.
  static func blocks(_ context: SequenceContext) -> [Tensor] {
    context.shared.filter { $0.key.hasPrefix(prefix) }.sorted { $0.key < $1.key }.map(\.value)
  }

  static func append(_ sum: Tensor, _ context: inout SequenceContext) {
    let count = context.shared.keys.count { $0.hasPrefix(prefix) }
    // Keys sort like their numbers.
    context.shared[prefix + String(10_000 + count)] = sum
  }
}
