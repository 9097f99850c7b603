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
