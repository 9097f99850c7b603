import GyreTensors

/// The vote that moves EGG's weights: with F the signs of the pairs' fitness differences
///
///     Z = Σ_j F_j A_j B_jᵀ  (vectors: Σ_j F_j z₂ₖ z₂ₖ₊₁)
///
/// an entry with |Z| < 16 τ ⌊√pairs⌋ stays, others move one step towards the sign of Z (down where it is
/// 0) and stay within ±127. 256 is the standard deviation of one term, 16 τ that of a test of Z = 0.
///
/// That forgets every vote which stays below the limit. With `carriedLimit` none is lost: Z is added to what
/// earlier generations left, an entry moves by the whole limits in the sum, and the rest is carried on.
///
/// Inputs: weights int8 `[parameterCount]`, signs int8 `[pairs]`, carried votes int32 `[parameterCount]` where
/// there is a limit of them, stored noise where the source says so.
/// Outputs: the new weights, then the new carried votes; both may be the old tensors.
public struct EggUpdate: Op {
  public static let name = "egg_update"
  public var shape: EggShape
  public var noise: EggNoise
  /// τ.
  public var threshold: Int
  /// The votes of one step where they are carried; nil: the published rule with `threshold`.
  public var carriedLimit: Int?

  public init(_ shape: EggShape, noise: EggNoise, threshold: Int = 0, carriedLimit: Int? = nil) {
    precondition(carriedLimit ?? 1 >= 1, "egg_update: carriedLimit must be at least 1")
    self.shape = shape
    self.noise = noise
    self.threshold = threshold
    self.carriedLimit = carriedLimit
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    shape.check(i[0], Self.name)
    precondition(
      i[1].dtype == .int8 && i[1].shape.rank == 1 && noise.source != .none,
      "egg_update: signs \(i[1]) for int8[pairs], and noise")
    let first = carriedLimit == nil ? 2 : 3
    precondition(
      carriedLimit == nil || i.count > 2 && i[2] == TensorSpec([shape.parameterCount], .int32),
      "egg_update: carried votes must be int32[\(shape.parameterCount)]")
    precondition(
      noise.source != .stored
        || i.count == first + 1
          && i[first] == TensorSpec([i[1].shape[0], shape.noiseCount], .int8),
      "egg_update: stored noise must be int8[\(i[1].shape[0]), \(shape.noiseCount)]")
    return carriedLimit == nil ? [i[0]] : [i[0], i[2]]
  }

  /// Smallest |Z|, or carried sum, that moves an entry.
  public func limit(pairs: Int) -> Int {
    carriedLimit ?? 16 * threshold * EggReference.root(pairs)
  }

  public func reference(_ a: inout HostArguments) {
    let model = EggReference(
      shape, noise, weights: a.inputs[0],
      stored: noise.source == .stored ? a.inputs[carriedLimit == nil ? 2 : 3] : nil)
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
        let at = leaf.weight + k
        var step = abs(vote) < limit ? 0 : vote > 0 ? 1 : -1
        if carriedLimit != nil {
          let sum = Int(a.inputs[2][at]) + vote
          step = sum / limit
          a.outputs[1][at] = Double(sum - step * limit)
        }
        a.outputs[0][at] = Double(EggReference.clip(model.weights[at] + step))
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
    item(
      "carried votes", EggShape(width: 18, layers: 1), pairs: 270,
      EggNoise(.generated(seed: 3, epoch: 1, firstPair: 5)), threshold: 0, carriedLimit: 2000),
    item(
      "width 321", EggShape(width: 321, layers: 1), pairs: 40,
      EggNoise(.generated(seed: 3, epoch: 1, firstPair: 5)), threshold: 11),
  ]

  private static func item(
    _ label: String, _ shape: EggShape, pairs: Int, _ noise: EggNoise, threshold: Int,
    carriedLimit: Int? = nil
  ) -> OpCase {
    var inputs = [
      EggForward.bytes([shape.parameterCount], -127, 128), EggForward.bytes([pairs], -1, 2),
    ]
    if let carriedLimit {
      inputs.append(.integers([shape.parameterCount], 1 - carriedLimit, carriedLimit))
    }
    if noise.source == .stored {
      inputs.append(EggForward.bytes([pairs, shape.noiseCount], -70, 71))
    }
    return OpCase(
      label,
      EggUpdate(shape, noise: noise, threshold: threshold, carriedLimit: carriedLimit), inputs,
      tolerance: 0)
  }
}
