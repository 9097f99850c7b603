/// Token shift with learned mixes (RWKV): p[t] = x[t − 1] and
///
///     yⱼ = x + (p − x) ∘ μⱼ
///
/// Inputs: x `[B, T, D]`, μ `[M, D]` or of each sequence its own `[B, M, D]` (not for backpropagation), then where present the token before the first `[B, D]` (zeros
/// where absent) and reset int32 `[B, T]`, at which p is zero. Outputs: y `[M, B, T, D]`, the last
/// token `[B, D]`.
public struct TokenShift: Op, TakesOwnParameters {
  public static let name = "token_shift"
  /// x, μ, last, reset.
  public let optional: OptionalInputs

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (x, mix) = (i[0].shape, i[1].shape)
    precondition(
      x.rank == 3 && mix.last == x[2] && (mix.rank == 2 || mix.rank == 3 && mix[0] == x[0]),
      "token_shift: x \(x), μ \(mix)")
    return [TensorSpec(Shape([mixes(mix)] + x.dimensions), i[0].dtype), TensorSpec([x[0], x[2]])]
  }

  package func parameters(of count: Int) -> Range<Int> { 1..<2 }

  /// M of the shape of μ.
  public func mixes(_ mix: Shape) -> Int { mix[mix.rank - 2] }

  func previous(_ inputs: [[Double]], _ i: Int, _ s: Shape) -> Double {
    let (d, t, b) = (i % s[2], i / s[2] % s[1], i / s[2] / s[1])
    if let reset = optional.pick(3, inputs), reset[b * s[1] + t] != 0 { return 0 }
    return t > 0 ? inputs[0][i - s[2]] : optional.pick(2, inputs)?[b * s[2] + d] ?? 0
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    let n = s.elementCount
    let count = mixes(a.inputSpecs[1].shape)
    let isOwn = a.inputSpecs[1].shape.rank == 3
    for j in 0..<count {
      for i in 0..<n {
        let x = a.inputs[0][i]
        let row = (isOwn ? i / (s[1] * s[2]) * count : 0) + j
        a.outputs[0][j * n + i] =
          x + (previous(a.inputs, i, s) - x) * a.inputs[1][row * s[2] + i % s[2]]
      }
    }
    for b in 0..<s[0] {
      for d in 0..<s[2] {
        a.outputs[1][b * s[2] + d] =
          s[1] > 0
          ? a.inputs[0][(b * s[1] + s[1] - 1) * s[2] + d]
          : optional.pick(2, a.inputs)?[b * s[2] + d] ?? 0
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = Backward(forward: self, hasLastCotangent: c.cotangents[1] != nil)
    let g = applyPresent(op, c.inputs.map { $0 } + [c.cotangent(0), c.cotangents[1]])
    return optional.gather { i in i == 3 ? nil : g[optional[i] ?? 0] }
  }
  public var saved: SavedValues { .inputs }

  /// Inputs: the forward's, dy, and the last token's cotangent where present.
  /// Outputs: gradients of the forward's inputs but reset.
  public struct Backward: Op {
    public static let name = "token_shift_backward"
    public let forward: TokenShift
    public let hasLastCotangent: Bool
    public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
      Array(i[..<(forward.optional.has(2) ? 3 : 2)])
    }
    public func reference(_ a: inout HostArguments) {
      let s = a.inputSpecs[0].shape
      let n = s.elementCount
      let count = forward.optional.gather { $0 }.count
      let reset = forward.optional.pick(3, a.inputs)
      for j in 0..<a.inputSpecs[1].shape[0] {
        for i in 0..<n {
          let (d, t, b) = (i % s[2], i / s[2] % s[1], i / s[2] / s[1])
          let g = a.inputs[count][j * n + i]
          let mix = a.inputs[1][j * s[2] + d]
          let before = forward.previous(a.inputs, i, s)
          a.outputs[0][i] += g * (1 - mix)
          a.outputs[1][j * s[2] + d] += g * (before - a.inputs[0][i])
          if reset.map({ $0[b * s[1] + t] != 0 }) ?? false { continue }
          if t > 0 {
            a.outputs[0][i - s[2]] += g * mix
          } else if forward.optional.has(2) {
            a.outputs[2][b * s[2] + d] += g * mix
          }
        }
      }
      guard hasLastCotangent else { return }
      for b in 0..<s[0] {
        for d in 0..<s[2] {
          let g = a.inputs[count + 1][b * s[2] + d]
          if s[1] > 0 {
            a.outputs[0][(b * s[1] + s[1] - 1) * s[2] + d] += g
          } else if forward.optional.has(2) {
            a.outputs[2][b * s[2] + d] += g
          }
        }
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  public static let cases =
    sharedCases + [
      OpCase(
        "own mixes", TokenShift(optional: OptionalInputs([true, true, true, false])),
        [
          TestInput([3, 7, 20], differentiable: false),
          TestInput([3, 2, 20], .uniform(0, 1), differentiable: false),
          TestInput([3, 20], differentiable: false),
        ])
    ]
  private static let sharedCases = [true, false].map { full in
    var resets = TestInput(
      [2, 13], .elements((0..<26).map { [4, 5, 13].contains($0) ? 1 : 0 }), differentiable: false)
    resets.spec.dtype = .int32
    return OpCase(
      full ? "full" : "plain", TokenShift(optional: OptionalInputs([true, true, full, full])),
      [TestInput([2, 13, 20]), TestInput([3, 20], .uniform(0, 1))]
        + (full ? [TestInput([2, 20]), resets] : []))
  }
}

extension Tensor {
  /// Mixes of each token with the one before, one for each μ; see `TokenShift`. Returns them and
  /// the last token.
  public func tokenShiftMix(
    _ mixes: [Tensor], last: Tensor? = nil, reset: Tensor? = nil
  ) -> (mixed: [Tensor], last: Tensor) {
    let single = TokenMixes(mixes: mixes.count, hasLast: last != nil)
    if reset == nil, mixes.count <= TokenMixes.limit, device.fuses(single) {
      let outputs = applyPresent(single, [self] + mixes + [last])
      return (Array(outputs[..<mixes.count]), outputs[mixes.count])
    }
    let mu = concatenated(mixes.map { $0.reshaped([1, $0.elementCount]) }, axis: 0)
    let op = TokenShift(optional: OptionalInputs([true, true, last != nil, reset != nil]))
    let outputs = applyPresent(op, [self, mu, last, reset])
    let parts = outputs[0].split([Int](repeating: 1, count: mixes.count), axis: 0)
    return (parts.map { $0.reshaped(shape) }, outputs[1])
  }
}
