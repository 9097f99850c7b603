/// Gates held to ±c: c·tanh((z + b) / c), in two halves.
///
/// Inputs: z `[…, 2 H]`, b `[2 H]`. Outputs: the halves, `[…, H]`. For inference: it has no derivative.
public struct CappedGates: Op {
  public static let name = "capped_gates"
  public let cap: Double
  public init(cap: Double) { self.cap = cap }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let width = i[0].shape.last
    precondition(
      width % 2 == 0 && i[1].shape.elementCount == width, "capped_gates: \(i.map(\.shape))")
    var half = i[0]
    half.shape[-1] = width / 2
    return [half, half]
  }
  public func reference(_ a: inout HostArguments) {
    let heads = a.outputSpecs[0].shape.last
    for e in a.outputs[0].indices {
      for part in 0..<2 {
        let j = part * heads + e % heads
        let z = a.inputs[0][e / heads * 2 * heads + j] + a.inputs[1][j]
        a.outputs[part][e] = cap * Unary.Kind.tanh.value(z / cap)
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }

  public static let cases = [4, 300].map { heads in
    OpCase(
      "\(heads) heads", CappedGates(cap: 15),
      [
        TestInput([2, 37, 2 * heads], .normal(scale: 9), differentiable: false),
        TestInput([2 * heads], .normal(scale: 5), differentiable: false),
      ])
  }
}
