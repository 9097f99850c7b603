/// What RWKV-7 makes of the recurrence's output, in one pass: a norm over each head, the current
/// token's own value by its agreement with the query, the output gate:
///
///     out = ((y − mean) / √(var + ε) ∘ w + b + (Σ r ∘ k̃ ∘ ρ) v) ∘ g
///
/// Peng et al., "RWKV-7 Goose", 2025. https://arxiv.org/abs/2503.14456
///
/// Inputs: y, r, k̃, v `[…, H, N]`, g `[…, H·N]`; ρ `[H, N]`, w, b `[H·N]`. Output as g.
public struct RWKV7Readout: Op, TakesOwnParameters {
  public static let name = "rwkv7_readout"
  public let epsilon: Double
  public init(epsilon: Double) { self.epsilon = epsilon }

  package func parameters(of count: Int) -> Range<Int> { 5..<8 }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let width = i[4].shape.last
    precondition(
      i[1...3].allSatisfy { $0.shape == i[0].shape }
        && i[4].shape.elementCount == i[0].shape.elementCount
        && i[5...].allSatisfy { [width, width * i[0].shape[0]].contains($0.shape.elementCount) },
      "rwkv7_readout: \(i.map(\.shape))")
    return [i[4]]
  }

  private struct Head {
    var x: [Double]
    var scale: Double
    var score: Double
  }
  /// The normalised row that starts at `at`, 1 / deviation, and the agreement.
  private func head(_ i: [[Double]], _ at: Int, _ n: Int, _ s: Shape) -> Head {
    let row = i[0][at..<at + n]
    let mean = row.reduce(0, +) / Double(n)
    let square = row.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(n)
    let scale = 1 / (square + epsilon).squareRoot()
    let c = own(i[5], at, s)
    let score = (0..<n).reduce(0) { $0 + i[1][at + $1] * i[2][at + $1] * i[5][c + $1] }
    return Head(x: row.map { ($0 - mean) * scale }, scale: scale, score: score)
  }

  /// Where a parameter of element `at` lies, for outputs of shape `s`.
  private func own(_ values: [Double], _ at: Int, _ s: Shape) -> Int {
    place(values, s.last, at, of: s.elementCount, s[0])
  }

  public func reference(_ a: inout HostArguments) {
    let (n, s) = (a.inputSpecs[0].shape.last, a.inputSpecs[4].shape)
    for at in stride(from: 0, to: a.inputs[0].count, by: n) {
      let h = head(a.inputs, at, n, s)
      let (weight, bias) = (own(a.inputs[6], at, s), own(a.inputs[7], at, s))
      for j in 0..<n {
        let i = at + j
        let z =
          h.x[j] * a.inputs[6][weight + j] + a.inputs[7][bias + j] + h.score * a.inputs[3][i]
        a.outputs[0][i] = z * a.inputs[4][i]
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let g = apply(Backward(forward: self), c.inputs + [c.cotangent(0)])
    return Array(g[..<5]) + g[5].aliasedRows(as: c.inputs[5...].map(\.shape))
  }
  public var saved: SavedValues { .inputs }

  /// Inputs: the forward's, then the cotangent. Outputs: gradients of y, r, k̃, v, g, and of ρ, w, b
  /// together, `[3, H·N]`.
  public struct Backward: Op {
    public static let name = "rwkv7_readout_backward"
    public let forward: RWKV7Readout
    public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
      Array(i[..<5]) + [TensorSpec([3, i[6].shape.elementCount])]
    }
    public func reference(_ a: inout HostArguments) {
      let (n, width) = (a.inputSpecs[0].shape.last, a.inputs[6].count)
      let i = a.inputs
      for at in stride(from: 0, to: i[0].count, by: n) {
        let h = forward.head(i, at, n, a.inputSpecs[4].shape)
        let c = at % width
        let dz = (0..<n).map { i[8][at + $0] * i[4][at + $0] }
        let dx = (0..<n).map { dz[$0] * i[6][c + $0] }
        let mean = dx.reduce(0, +) / Double(n)
        let dot = zip(dx, h.x).reduce(0) { $0 + $1.0 * $1.1 } / Double(n)
        let dScore = (0..<n).reduce(0) { $0 + dz[$1] * i[3][at + $1] }
        for j in 0..<n {
          let (e, p) = (at + j, c + j)
          let z = h.x[j] * i[6][p] + i[7][p] + h.score * i[3][e]
          a.outputs[0][e] = h.scale * (dx[j] - mean - h.x[j] * dot)
          a.outputs[1][e] = dScore * i[2][e] * i[5][p]
          a.outputs[2][e] = dScore * i[1][e] * i[5][p]
          a.outputs[3][e] = h.score * dz[j]
          a.outputs[4][e] = i[8][e] * z
          a.outputs[5][p] += dScore * i[1][e] * i[2][e]
          a.outputs[5][width + p] += dz[j] * h.x[j]
          a.outputs[5][2 * width + p] += dz[j]
        }
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  public static let cases =
    [(2, 8), (3, 64), (2, 24)].map { heads, size in
      let (x, g): (Shape, Shape) = ([2, 7, heads, size], [2, 7, heads * size])
      let p: Shape = [heads * size]
      return OpCase(
        "\(heads) heads of \(size)", RWKV7Readout(epsilon: 1e-5),
        [x, x, x, x, g, [heads, size], p, p].map { TestInput($0) }, gradientTolerance: 2e-5)
    } + [
      OpCase(
        "own and shared", RWKV7Readout(epsilon: 1e-5),
        [[3, 7, 2, 64], [3, 7, 2, 64], [3, 7, 2, 64], [3, 7, 2, 64], [3, 7, 128]].map {
          TestInput(Shape($0), differentiable: false)
        } + [[3, 2, 64], [128], [3, 128]].map { TestInput(Shape($0), differentiable: false) })
    ]
}
