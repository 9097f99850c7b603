/// One token's residual sum, its norm and RWKV's mixes of that with the token before, in one pass:
///
///     s = x + y    n = norm(s)    outₘ = n + (last − n) ∘ μₘ
///
/// Inputs: x, y `[B, 1, D]`; w and, where `hasBias`, b `[D]`; the μ `[D]`; last `[B, D]`. Outputs: s, the mixes,
/// n as the last token `[B, D]`. For inference: it has no derivative.
public struct NormedMixes: Op {
  public static let name = "normed_mixes"
  public let norm: Norm
  public let hasBias: Bool
  public let mixes: Int
  /// Place of the first μ among the inputs.
  public var first: Int { hasBias ? 4 : 3 }
  /// Channels that kernels take, multiples of eight.
  public static let widest = 4096

  public init(_ norm: Norm, hasBias: Bool, mixes: Int) {
    (self.norm, self.hasBias, self.mixes) = (norm, hasBias, mixes)
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let s = i[0].shape
    precondition(
      s.rank == 3 && s[1] == 1 && i.count == first + mixes + 1 && i[1].shape == s
        && i[2..<first + mixes].allSatisfy { $0.shape.elementCount == s[2] }
        && i[first + mixes].shape == [s[0], s[2]],
      "normed_mixes: \(i.map(\.shape))")
    return [TensorSpec](repeating: i[0], count: mixes + 1) + [i[first + mixes]]
  }

  public func reference(_ a: inout HostArguments) {
    var sum = HostArguments(
      inputs: Array(a.inputs[..<first]), inputSpecs: Array(a.inputSpecs[..<first]),
      outputSpecs: [a.inputSpecs[0], a.inputSpecs[0]])
    NormedSum(norm).reference(&sum)
    a.outputs[0] = sum.outputs[0]
    let (n, last) = (sum.outputs[1], a.inputs[first + mixes])
    for m in 0..<mixes {
      let mix = a.inputs[first + m]
      a.outputs[1 + m] = n.indices.map { n[$0] + (last[$0] - n[$0]) * mix[$0 % mix.count] }
    }
    a.outputs[mixes + 1] = n
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }

  public static let cases = [
    (1, 64, true, false), (6, 2048, true, false), (8, 24, false, false), (6, 4096, true, false),
    (1, 2048, true, true), (6, 2048, true, true), (4, 4096, false, true),
  ].map { mixes, width, centers, isHalf in
    let shapes: [Shape] =
      [[5, 1, width], [5, 1, width], [width]] + (centers ? [[width]] : [])
      + [Shape](repeating: [width], count: mixes) + [[5, width]]
    return OpCase(
      "\(mixes) of \(width)\(isHalf ? " bfloat16" : "")",
      NormedMixes(Norm(epsilon: 1e-5, centers: centers), hasBias: centers, mixes: mixes),
      shapes.enumerated().map { i, shape in
        let input = TestInput(shape, differentiable: false)
        return isHalf && i < 2 ? input.stored(as: .bfloat16) : input
      }, tolerance: isHalf ? 4e-3 : 5e-6)
  }
}
