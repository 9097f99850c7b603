/// What RWKV-7 makes of its projections before the recurrence, in one pass:
///
///     a = σ(rate + a₀)    κ = k ∘ ξ / √(Σ (k ∘ ξ)² + ε)    k̃ = k ∘ (1 + (a − 1) ∘ α)
///     ln w = −e^-½ σ(decay + w₀)    erase = −κ    write = κ ∘ a
///
/// the sum over each head. Peng et al., "RWKV-7 Goose", 2025. https://arxiv.org/abs/2503.14456
///
/// Inputs: k, rate, decay `[…, H·N]`; ξ, α, a₀, w₀ `[H·N]`. Outputs: k̃, ln w, erase, write
/// `[…, H, N]`.
public struct RWKV7Keys: Op, TakesOwnParameters, SumsCotangents {
  public static let name = "rwkv7_keys"
  public let heads: Int
  public let epsilon: Double

  public init(heads: Int, epsilon: Double) {
    self.heads = heads
    self.epsilon = epsilon
  }

  package func parameters(of count: Int) -> Range<Int> { 3..<7 }
  package func sums(output: Int) -> Bool { output == 0 }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let width = i[0].shape.last
    precondition(
      width % max(heads, 1) == 0 && i[1].shape == i[0].shape && i[2].shape == i[0].shape
        && i[3...].allSatisfy { [width, width * i[0].shape[0]].contains($0.shape.elementCount) },
      "rwkv7_keys: \(i.map(\.shape)) for \(heads) heads")
    let shape = Shape(i[0].shape.dimensions.dropLast() + [heads, width / heads])
    return (0..<4).map { _ in TensorSpec(shape, i[0].dtype) }
  }

  private static let decayRate = Functions.exp(-0.5)

  /// a, κ and 1 over the length of k ∘ ξ, of the head that starts at element `at`.
  private func terms(_ i: [[Double]], _ at: Int, _ n: Int, _ s: Shape) -> (
    a: [Double], kappa: [Double], scale: Double
  ) {
    let (c, b) = (own(i[3], at, s), own(i[5], at, s))
    let u = (0..<n).map { i[0][at + $0] * i[3][c + $0] }
    let scale = 1 / (u.reduce(0) { $0 + $1 * $1 } + epsilon).squareRoot()
    return (
      (0..<n).map { Functions.sigmoid(i[1][at + $0] + i[5][b + $0]) }, u.map { $0 * scale }, scale
    )
  }

  /// Where a parameter of element `at` lies.
  private func own(_ values: [Double], _ at: Int, _ s: Shape) -> Int {
    place(values, s.last, at, of: s.elementCount, s[0])
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    let n = s.last / heads
    for at in stride(from: 0, to: a.inputs[0].count, by: n) {
      let t = terms(a.inputs, at, n, s)
      let (rate, bias) = (own(a.inputs[4], at, s), own(a.inputs[6], at, s))
      for j in 0..<n {
        let i = at + j
        a.outputs[0][i] = a.inputs[0][i] * (1 + (t.a[j] - 1) * a.inputs[4][rate + j])
        a.outputs[1][i] =
          -Self.decayRate * Functions.sigmoid(a.inputs[2][i] + a.inputs[6][bias + j])
        a.outputs[2][i] = -t.kappa[j]
        a.outputs[3][i] = t.kappa[j] * t.a[j]
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let cotangents = c.cotangents + [c.more[0]]
    let op = Backward(forward: self, present: OptionalInputs(cotangents.map { $0 != nil }))
    let g = applyPresent(op, c.inputs.map { $0 } + cotangents)
    return Array(g[..<3]) + g[3].aliasedRows(as: c.inputs[3...].map(\.shape))
  }
  public var saved: SavedValues { .inputs }

  /// Inputs: the forward's, then the cotangents that there are, that of k̃ perhaps in two terms, of which the
  /// second comes last. Outputs: gradients of k, rate, decay,
  /// and of ξ, α, a₀, w₀ together, `[4, H·N]`.
  public struct Backward: Op {
    public static let name = "rwkv7_keys_backward"
    public let forward: RWKV7Keys
    public let present: OptionalInputs

    public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
      Array(i[..<3]) + [TensorSpec([4, i[3].shape.elementCount])]
    }
    public func reference(_ a: inout HostArguments) {
      let inputs = Array(a.inputs[..<7])
      let rest = Array(a.inputs[7...])
      let (width, n) = (inputs[3].count, inputs[3].count / forward.heads)
      func cotangent(_ which: Int, _ i: Int) -> Double { present.pick(which, rest)?[i] ?? 0 }
      for at in stride(from: 0, to: inputs[0].count, by: n) {
        let t = forward.terms(inputs, at, n, a.inputSpecs[0].shape)
        let dKappa = (0..<n).map { t.a[$0] * cotangent(3, at + $0) - cotangent(2, at + $0) }
        let dot = zip(dKappa, t.kappa).reduce(0) { $0 + $1.0 * $1.1 }
        for j in 0..<n {
          let (i, c) = (at + j, (at + j) % width)
          let (k, alpha, rate) = (inputs[0][i], inputs[4][c], t.a[j])
          let written = cotangent(0, i) + cotangent(4, i)
          let du = t.scale * (dKappa[j] - t.kappa[j] * dot)
          let dRate =
            (t.kappa[j] * cotangent(3, i) + written * k * alpha) * rate * (1 - rate)
          let s = Functions.sigmoid(inputs[2][i] + inputs[6][c])
          let dDecay = -RWKV7Keys.decayRate * s * (1 - s) * cotangent(1, i)
          a.outputs[0][i] = du * inputs[3][c] + written * (1 + (rate - 1) * alpha)
          a.outputs[1][i] = dRate
          a.outputs[2][i] = dDecay
          a.outputs[3][c] += du * k
          a.outputs[3][width + c] += written * k * (rate - 1)
          a.outputs[3][2 * width + c] += dRate
          a.outputs[3][3 * width + c] += dDecay
        }
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  public static let cases =
    [(2, 8), (3, 64), (2, 24)].map { heads, size in
      let (x, p): (Shape, Shape) = ([2, 7, heads * size], [heads * size])
      return OpCase(
        "\(heads) heads of \(size)", RWKV7Keys(heads: heads, epsilon: 1e-6),
        [x, x, x, p, p, p, p].map { TestInput($0) }, gradientTolerance: 2e-5)
    } + [
      OpCase(
        "own and shared", RWKV7Keys(heads: 2, epsilon: 1e-6),
        [[3, 7, 128], [3, 7, 128], [3, 7, 128], [3, 128], [3, 128], [128], [3, 128]].map {
          TestInput(Shape($0), differentiable: false)
        }),
      OpCase(
        "two cotangents",
        Backward(
          forward: RWKV7Keys(heads: 2, epsilon: 1e-6),
          present: OptionalInputs([true, true, false, true, true])),
        [[2, 7, 128], [2, 7, 128], [2, 7, 128], [128], [128], [128], [128]].map {
          TestInput(Shape($0), differentiable: false)
        }
          + (0..<4).map { _ in TestInput([2, 7, 2, 64], differentiable: false) },
        tolerance: 2e-5),
    ]
}

extension Tensor {
  /// Consecutive elements under these shapes, sharing storage; not seen by the tape.
  package func aliasedRows(as shapes: [Shape]) -> [Tensor] {
    var start = byteOffset
    return shapes.map { shape in
      defer { start += shape.elementCount * dtype.byteCount }
      return aliased(as: shape, byteOffset: start)
    }
  }
}
