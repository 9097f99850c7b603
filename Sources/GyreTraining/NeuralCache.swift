import GyreLayers
import GyreModels
import GyreRecurrence
import GyreTensors

/// The continuous cache pointer: a model mixed with what followed similar hidden states lately (Grave,
/// Joulin and Usunier, "Improving neural language models with a continuous cache", 2017,
/// https://arxiv.org/abs/1612.04426),
///
///     p(w) = (1 − λ) p_model(w) + λ Σ_{j: xⱼ₊₁ = w} e^{θ hⱼ·hₜ} / Σⱼ e^{θ hⱼ·hₜ}
///
/// over the last `size` positions j < t. Nothing is trained.
public struct NeuralCache: Sendable, Hashable {
  public var size: Int
  public var theta: Double
  public var lambda: Double

  /// - Throws: the field that cannot be.
  public init(size: Int, theta: Double, lambda: Double) throws(ConfigurationError) {
    try require((1...1 << 24).contains(size), "cache", "must be in 1...2^24, is \(size)")
    try require((0...1e6).contains(theta), "theta", "must be in 0...1e6, is \(theta)")
    try require((0...1).contains(lambda), "lambda", "must be in 0...1, is \(lambda)")
    (self.size, self.theta, self.lambda) = (size, theta, lambda)
  }
}

/// The pointer while a text is read.
struct CachePointer {
  let settings: NeuralCache
  /// Hidden states of the last positions `[M, D]` and the tokens after them.
  private var keys: Tensor?
  private var tokens: [Int32] = []

  init(_ settings: NeuralCache) { self.settings = settings }

  /// The cross-entropy in nats of every target after mixing.
  ///
  /// - Parameters:
  ///   - hidden: `[1, n, D]`.
  ///   - nats: the model's own cross-entropy of each target.
  mutating func mix(_ hidden: Tensor, _ targets: [Int32], nats: [Double]) throws -> [Double] {
    let rows = hidden.reshaped([hidden.shape[1], hidden.shape[2]])
    let all = keys.map { concatenated([$0, rows], axis: 0) } ?? rows
    let known = tokens + targets
    let first = tokens.count
    let scores = try rows.matmul(all, transposingRight: true, precision: .float32).floats()
    var result: [Double] = []
    result.reserveCapacity(targets.count)
    for (i, target) in targets.enumerated() {
      let window = max(0, first + i - settings.size)..<(first + i)
      let model = Functions.exp(-nats[i])
      guard !window.isEmpty else {
        result.append(nats[i])
        continue
      }
      let row = i * known.count
      var highest = -Float.infinity
      for j in window { highest = max(highest, scores[row + j]) }
      var (sum, hits) = (0.0, 0.0)
      for j in window {
        let weight = Functions.exp(settings.theta * Double(scores[row + j] - highest))
        sum += weight
        if known[j] == target { hits += weight }
      }
      let mixed = (1 - settings.lambda) * model + settings.lambda * hits / sum
      result.append(-logarithm(mixed))
    }
    let kept = max(0, known.count - settings.size)
    keys = all.sliced(kept..<known.count, axis: 0)
    tokens = Array(known[kept...])
    return result
  }
}
