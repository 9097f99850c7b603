import GyreTensors

/// Gradients of a recurrent weight and its bias where the last gate's product R h + b has a cotangent of
/// its own, as the GRU's candidate: what concatenating the parts and multiplying would give, without the
/// copies.
///
///     dR = Σₜ [dₜ of the gates but the last, eₜ] hₜᵀ    db = Σₜ [dₜ of the gates but the last, eₜ]
///
/// Inputs: d `[B, T, G·H]`, e and h `[B, T, H]`. Outputs: dR `[G·H, H]` and db `[G·H]`.
public struct RecurrentGradients: Op, SavesPasses {
  public static let name = "recurrent_gradients"
  public let precision: ComputePrecision

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (all, hidden) = (i[0].shape.last, i[1].shape.last)
    precondition(
      all % hidden == 0 && i[1].shape == i[2].shape,
      "recurrent_gradients: \(i.map(\.shape))")
    return [TensorSpec([all, hidden]), TensorSpec([all])]
  }

  public func reference(_ a: inout HostArguments) {
    let (all, hidden) = (a.inputSpecs[0].shape.last, a.inputSpecs[1].shape.last)
    for r in 0..<a.inputSpecs[0].shape.rowCount {
      for j in 0..<all {
        let last = j - (all - hidden)
        let d = last < 0 ? a.inputs[0][r * all + j] : a.inputs[1][r * hidden + last]
        a.outputs[1][j] += d
        for k in 0..<hidden { a.outputs[0][j * hidden + k] += d * a.inputs[2][r * hidden + k] }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }

  public static let cases = [(1, ComputePrecision.float32), (3, .float32), (3, .bfloat16)].map {
    gates, precision in
    let isExact = precision == .float32
    return OpCase(
      "\(gates) gates \(precision)", RecurrentGradients(precision: precision),
      [gates * 20, 20, 20].map { TestInput([2, 37, $0], differentiable: false) },
      tolerance: isExact ? 2e-5 : 6e-3)
  }
}
