import GyreTensors

extension Tensor {
  /// `[B, T, H·K]` as `[B, T, H, K]`.
  func heads(_ count: Int) -> Tensor {
    reshaped(Shape(shape.dimensions.dropLast() + [count, shape.last / count]))
  }

  /// `[B, T, H, K]` as `[B, T, H·K]`.
  func mergedHeads() -> Tensor {
    reshaped(Shape(shape.dimensions.dropLast(2) + [shape[-2] * shape[-1]]))
  }

  /// `[B, T, H, K]` with each head `count` times in a row.
  func repeatedHeads(_ count: Int) -> Tensor {
    guard count > 1 else { return self }
    let s = shape
    return concatenated(
      Array(repeating: reshaped([s[0], s[1], s[2], 1, s[3]]), count: count), axis: 3
    ).reshaped([s[0], s[1], s[2] * count, s[3]])
  }

  /// x / (Σx + ε) over the last axis.
  func sumNormalized(epsilon: Double) -> Tensor {
    self / (summed(to: Shape(shape.dimensions.dropLast() + [1])) + epsilon)
  }

  /// x / max(Σ|x|, floor) over the last axis.
  func absoluteNormalized(floor: Double) -> Tensor {
    self
      / unary(.absolute).summed(to: Shape(shape.dimensions.dropLast() + [1]))
      .maximum(.full(floor, [1], on: device))
  }

  /// Each element at least `low` and at most `high`, where they are given.
  func clamped(_ low: Double?, _ high: Double?) -> Tensor {
    var x = self
    if let low { x = x.maximum(.full(low, [1], on: device)) }
    if let high { x = x.minimum(.full(high, [1], on: device)) }
    return x
  }

  /// RMSNorm over the last axis with an output gate; see `GatedNorm`.
  func gatedNorm(
    _ gate: Tensor, weight: Tensor, epsilon: Double, gatesFirst: Bool = false,
    by activation: GatedNorm.Gate = .silu
  ) -> Tensor {
    apply(
      GatedNorm(epsilon: epsilon, gatesFirst: gatesFirst, gate: activation), [self, gate, weight])[
        0]
  }
}
