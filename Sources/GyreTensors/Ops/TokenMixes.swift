/// `TokenShift` without resets that gives each mix as a tensor: p[t] = x[t − 1] and
///
///     y_m = x + (p − x) ∘ μ_m
///
/// Inputs: x `[B, T, D]`, μ₁ … μ_M `[D]`, and where present the token before the first `[B, D]`, zeros
/// where absent. Outputs: y₁ … y_M, the last token `[B, D]`.
public struct TokenMixes: Op, TakesOwnParameters, SumsCotangents {
  public static let name = "token_mixes"
  /// Most mixes that kernels take.
  public static let limit = 8
  public let mixes: Int
  public let hasLast: Bool

  package func parameters(of count: Int) -> Range<Int> { 1..<mixes + 1 }
  package var mostSums: Int { 1 }
  package func sums(output: Int) -> Bool { output < mixes }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let x = i[0].shape
    precondition(
      x.rank == 3
        && i[1...mixes].allSatisfy { [x[2], x[0] * x[2]].contains($0.shape.elementCount) },
      "token_mixes: \(i.map(\.shape))")
    return (0..<mixes).map { _ in i[0] } + [TensorSpec([x[0], x[2]])]
  }

  private func before(_ i: [[Double]], _ e: Int, _ s: Shape) -> Double {
    let (d, t, b) = (e % s[2], e / s[2] % s[1], e / s[2] / s[1])
    if t > 0 { return i[0][e - s[2]] }
    return hasLast ? i[mixes + 1][b * s[2] + d] : 0
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    let i = a.inputs
    for e in i[0].indices {
      let step = before(i, e, s) - i[0][e]
      for m in 0..<mixes {
        let own = place(i[1 + m], s[2], e, of: s.elementCount, s[0])
        a.outputs[m][e] = i[0][e] + step * i[1 + m][own]
      }
      if e / s[2] % s[1] == s[1] - 1 {
        a.outputs[mixes][e / s[2] / s[1] * s[2] + e % s[2]] = i[0][e]
      }
    }
    if s[1] == 0, hasLast { a.outputs[mixes] = i[mixes + 1] }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let last = c.cotangents[mixes]
    let second = c.more.firstIndex { $0 != nil }
    let g = applyPresent(
      Backward(forward: self, hasLastCotangent: last != nil, second: second),
      c.inputs.map { $0 } + (0..<mixes).map { c.cotangent($0) } + [
        last, second.flatMap { c.more[$0] },
      ])
    let gradients = g[1].aliasedRows(as: c.inputs[1...mixes].map(\.shape))
    return [g[0]] + gradients + (hasLast ? [g[2]] : [])
  }
  public var saved: SavedValues { .inputs }

  /// Inputs: the forward's, the cotangents of the mixes, of the last token where present, and a second term
  /// of the cotangent of mix `second`. Outputs:
  /// gradients of x, of the μ together `[M, D]`, and of the token before where the forward had it.
  public struct Backward: Op {
    public static let name = "token_mixes_backward"
    public let forward: TokenMixes
    public let hasLastCotangent: Bool
    public var second: Int?
    /// Position of the first cotangent.
    public var first: Int { forward.mixes + (forward.hasLast ? 2 : 1) }

    public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
      [i[0], TensorSpec([forward.mixes, i[0].shape.last])]
        + (forward.hasLast ? [i[forward.mixes + 1]] : [])
    }
    public func reference(_ a: inout HostArguments) {
      let s = a.inputSpecs[0].shape
      let (i, width) = (a.inputs, s[2])
      for e in i[0].indices {
        let (d, t, b) = (e % width, e / width % s[1], e / width / s[1])
        let step = forward.before(i, e, s) - i[0][e]
        for m in 0..<forward.mixes {
          let g = i[first + m][e] + (m == second ? i[i.count - 1][e] : 0)
          let mix = i[1 + m][d]
          a.outputs[0][e] += g * (1 - mix)
          a.outputs[1][m * width + d] += g * step
          if t > 0 {
            a.outputs[0][e - width] += g * mix
          } else if forward.hasLast {
            a.outputs[2][b * width + d] += g * mix
          }
        }
        if hasLastCotangent, t == s[1] - 1 {
          a.outputs[0][e] += i[first + forward.mixes][b * width + d]
        }
      }
      if hasLastCotangent, s[1] == 0, forward.hasLast {
        a.outputs[2] = i[first + forward.mixes]
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  public static let cases =
    [(3, true, 20), (1, false, 20), (6, true, 72)].map {
      count, last, width in
      OpCase(
        "\(count) mixes\(last ? ", last" : "")", TokenMixes(mixes: count, hasLast: last),
        [TestInput([2, 70, width])]
          + (0..<count).map { _ in TestInput([width], .uniform(0, 1)) }
          + (last ? [TestInput([2, width])] : []))
    } + [
      OpCase(
        "own and shared", TokenMixes(mixes: 2, hasLast: true),
        [[3, 20, 24], [3, 24], [24], [3, 24]].map { TestInput(Shape($0), differentiable: false) }),
      OpCase(
        "two cotangents",
        Backward(forward: TokenMixes(mixes: 3, hasLast: true), hasLastCotangent: true, second: 1),
        ([[2, 70, 20], [20], [20], [20], [2, 20]] + (0..<3).map { _ in [2, 70, 20] }
          + [[2, 20], [2, 70, 20]]).map { TestInput(Shape($0), differentiable: false) },
        tolerance: 2e-5),
    ]
}
