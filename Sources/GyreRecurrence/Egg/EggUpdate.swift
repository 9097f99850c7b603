import GyreTensors

/// The vote that moves EGG's weights: with F the signs of the pairs' fitness differences
///
///     Z = Σ_j F_j A_j B_jᵀ  (vectors: Σ_j F_j z₂ₖ z₂ₖ₊₁)
///
/// an entry with |Z| < 16 τ ⌊√pairs⌋ stays, others move one step towards the sign of Z (down where it is
/// 0) and stay within ±127. 256 is the standard deviation of one term, 16 τ that of a test of Z = 0.
///
/// Inputs: weights int8 `[parameterCount]`, signs int8 `[pairs]`, stored noise where the source says so.
/// Output: the new weights, which may be the old tensor.
public struct EggUpdate: Op {
  public static let name = "egg_update"
  public var shape: EggShape
  public var noise: EggNoise
  /// τ.
  public var threshold: Int

  public init(_ shape: EggShape, noise: EggNoise, threshold: Int) {
    self.shape = shape
    self.noise = noise
    self.threshold = threshold
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    shape.check(i[0], Self.name)
    precondition(
      i[1].dtype == .int8 && i[1].shape.rank == 1 && noise.source != .none,
      "egg_update: signs \(i[1]) for int8[pairs], and noise")
    precondition(
      noise.source != .stored
        || i.count == 3 && i[2] == TensorSpec([i[1].shape[0], shape.noiseCount], .int8),
      "egg_update: stored noise must be int8[\(i[1].shape[0]), \(shape.noiseCount)]")
    return [i[0]]
  }

  /// Smallest |Z| that moves an entry.
  public func limit(pairs: Int) -> Int { 16 * threshold * EggReference.root(pairs) }

  public func reference(_ a: inout HostArguments) {
    let model = EggReference(
      shape, noise, weights: a.inputs[0], stored: a.inputs.count > 2 ? a.inputs[2] : nil)
    let pairs = a.inputSpecs[1].shape[0]
    let limit = limit(pairs: pairs)
    for (index, leaf) in shape.leaves.enumerated() {
      var votes = [Int](repeating: 0, count: leaf.shape.elementCount)
      for j in 0..<pairs {
        let sign = Int(a.inputs[1][j])
        if sign == 0 { continue }
        let (b, factors) = model.numbers(pair: j, leaf: index)
        if leaf.isMatrix {
          for (r, factor) in factors.enumerated() {
            for k in b.indices { votes[r * b.count + k] += sign * factor * b[k] }
          }
        } else {
          for k in votes.indices { votes[k] += sign * b[2 * k] * b[2 * k + 1] }
        }
      }
      for (k, vote) in votes.enumerated() {
        let step = abs(vote) < limit ? 0 : vote > 0 ? 1 : -1
        a.outputs[0][leaf.weight + k] =
          Double(EggReference.clip(model.weights[leaf.weight + k] + step))
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public var saved: SavedValues { .none }

  public static let cases: [OpCase] = [
    item("stored noise", EggShape(width: 20, layers: 1), pairs: 9, EggNoise(.stored), threshold: 5),
    item(
      "generated noise", EggShape(width: 18, layers: 1), pairs: 270,
      EggNoise(.generated(seed: 3, epoch: 1, firstPair: 5)), threshold: 11),
    item(
      "no threshold", EggShape(width: 16, layers: 1), pairs: 2, EggNoise(.stored), threshold: 0),
  ]

  private static func item(
    _ label: String, _ shape: EggShape, pairs: Int, _ noise: EggNoise, threshold: Int
  ) -> OpCase {
    var inputs = [
      EggForward.bytes([shape.parameterCount], -127, 128), EggForward.bytes([pairs], -1, 2),
    ]
    if noise.source == .stored {
      inputs.append(EggForward.bytes([pairs, shape.noiseCount], -70, 71))
    }
    return OpCase(
      label, EggUpdate(shape, noise: noise, threshold: threshold), inputs, tolerance: 0)
  }
}
