import GyreTensors

/// Gradients of a recurrent weight and its bias. Where the last gate's product R h + b has a cotangent e
/// of its own, as the GRU's candidate: what concatenating the parts and multiplying would give, without
/// the copies.
///
///     dR = Σₜ dₜ hₜᵀ    db = Σₜ dₜ    with e in the place of d's last gate where it is given
///
/// Inputs: d `[B, T, G·H]`, perhaps e, and h `[B, T, H]`. Outputs: dR `[G·H, H]` and db `[G·H]`.
public struct RecurrentGradients: Op, SavesPasses {
  public static let name = "recurrent_gradients"
  public let precision: ComputePrecision

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (all, hidden) = (i[0].shape.last, i[1].shape.last)
    precondition(
      all % hidden == 0 && i[1].shape == i[i.count - 1].shape,
      "recurrent_gradients: \(i.map(\.shape))")
    return [TensorSpec([all, hidden]), TensorSpec([all])]
  }

  public func reference(_ a: inout HostArguments) {
    let (all, hidden) = (a.inputSpecs[0].shape.last, a.inputSpecs[1].shape.last)
    let h = a.inputs[a.inputs.count - 1]
    for r in 0..<a.inputSpecs[0].shape.rowCount {
      for j in 0..<all {
        let last = j - (all - hidden)
        let d =
          last < 0 || a.inputs.count < 3 ? a.inputs[0][r * all + j] : a.inputs[1][r * hidden + last]
        a.outputs[1][j] += d
        for k in 0..<hidden { a.outputs[0][j * hidden + k] += d * h[r * hidden + k] }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }

  public static let cases =
    [
      ([60, 20, 20], ComputePrecision.float32), ([20, 20, 20], .float32), ([80, 20], .float32),
      ([60, 20, 20], .bfloat16), ([80, 20], .bfloat16),
    ].map { widths, precision in
      let isExact = precision == .float32
      return OpCase(
        "\(widths) \(precision)", RecurrentGradients(precision: precision),
        widths.enumerated().map { i, width in
          let input = TestInput([2, 37, width], differentiable: false)
          return isExact || i > 0 ? input : input.stored(as: .bfloat16)
        }, tolerance: isExact ? 2e-5 : 6e-3)
    }
    + [[60, 20, 20], [80, 20], [144, 48, 48], [288, 72]].map { widths in
      OpCase(
        "\(widths) all bfloat16", RecurrentGradients(precision: .bfloat16),
        widths.map { TestInput([2, 37, $0], differentiable: false).stored(as: .bfloat16) },
        tolerance: 6e-3)
    }
}
