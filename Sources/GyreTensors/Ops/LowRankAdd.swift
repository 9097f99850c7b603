/// y + Σ_l z_l up_l with factors of each row's own: z_l = x · down_l, or down_l[token] for tokens.
///
/// Inputs: y `[R, …, N]`, x `[R, …, K]` or tokens int32 `[R, …]`, down `[R, r, K]`, up `[R, r, N]`. Output like y,
/// which it may be. With down and up the factors of a perturbation of rank r this is what each row's
/// member adds to x Wᵀ or to rows of a table (arXiv 2511.16652).
public struct LowRankAdd: Op {
  public static let name = "low_rank_add"
  public init() {}

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (y, x, down, up) = (i[0].shape, i[1].shape, i[2].shape, i[3].shape)
    let takesTokens = i[1].dtype == .int32
    precondition(
      down.rank == 3 && up.rank == 3 && down[0] == y[0] && up[0] == y[0] && down[1] == up[1]
        && up[2] == y.last && (takesTokens || x.last == down[2])
        && x.elementCount / (takesTokens ? 1 : max(x.last, 1)) == y.rowCount,
      "low_rank_add: y \(y), x \(x), down \(down), up \(up)")
    return [i[0]]
  }

  public func reference(_ a: inout HostArguments) {
    let (down, up) = (a.inputSpecs[2].shape, a.inputSpecs[3].shape)
    let (rank, inputs, outputs) = (down[1], down[2], up[2])
    let rows = a.inputSpecs[0].shape.rowCount
    let each = rows / max(down[0], 1)
    a.outputs[0] = a.inputs[0]
    for i in 0..<rows {
      for l in 0..<rank {
        let first = (i / each * rank + l) * inputs
        var z = 0.0
        if a.inputSpecs[1].dtype == .int32 {
          z = a.inputs[2][first + Int(a.inputs[1][i])]
        } else {
          for k in 0..<inputs { z += a.inputs[1][i * inputs + k] * a.inputs[2][first + k] }
        }
        let second = (i / each * rank + l) * outputs
        for j in 0..<outputs { a.outputs[0][i * outputs + j] += z * a.inputs[3][second + j] }
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public var saved: SavedValues { .none }
  public static let cases: [OpCase] = [
    item("rank 1", .init([6, 5, 33]), rank: 1), item("rank 3", .init([4, 9, 16]), rank: 3),
    item("no tokens axis", .init([7, 20]), rank: 2),
    OpCase(
      "tokens", LowRankAdd(),
      [
        fixed([4, 6, 24]), .integers([4, 6], 0, 11), fixed([4, 2, 11]), fixed([4, 2, 24]),
      ]),
  ]
  private static func fixed(_ shape: Shape) -> TestInput {
    TestInput(shape, differentiable: false)
  }
  private static func item(_ label: String, _ x: Shape, rank: Int) -> OpCase {
    var y = x
    y[-1] = 19
    return OpCase(
      label, LowRankAdd(),
      [fixed(y), fixed(x), fixed([x[0], rank, x.last]), fixed([x[0], rank, 19])])
  }
}
