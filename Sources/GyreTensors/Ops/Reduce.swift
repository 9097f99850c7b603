/// Softmax over the last axis.
public struct Softmax: Op {
  public static let name = "softmax"
  public init() {}
  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { inputs }
  public func reference(_ a: inout HostArguments) {
    let n = a.inputSpecs[0].shape.last
    for r in 0..<a.inputSpecs[0].shape.rowCount {
      let row = a.inputs[0][r * n..<(r + 1) * n]
      let top = row.max() ?? 0
      let total = row.reduce(0) { $0 + Functions.exp($1 - top) }
      for (j, x) in row.enumerated() { a.outputs[0][r * n + j] = Functions.exp(x - top) / total }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    [apply(SoftmaxBackward(), [c.outputs[0], c.cotangent(0)])[0]]
  }
  public var saved: SavedValues { .outputs }
  public static let cases = [OpCase("softmax", Softmax(), [TestInput([5, 37], .normal(scale: 3))])]
}

/// dx = y ∘ (dy − ⟨y, dy⟩).
package struct SoftmaxBackward: Op {
  package static let name = "softmax_backward"
  package func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { [inputs[0]] }
  package func reference(_ a: inout HostArguments) {
    let n = a.inputSpecs[0].shape.last
    for r in 0..<a.inputSpecs[0].shape.rowCount {
      var dot = 0.0
      for j in r * n..<(r + 1) * n { dot += a.inputs[0][j] * a.inputs[1][j] }
      for j in r * n..<(r + 1) * n { a.outputs[0][j] = a.inputs[0][j] * (a.inputs[1][j] - dot) }
    }
  }
  package func vjp(_ c: VJPContext) -> [Tensor?] { [nil, nil] }
  package static let cases: [OpCase] = []
}

/// The index of the largest element of the last axis, the first of equals; int32.
public struct ArgMax: Op {
  public static let name = "argmax"
  public init() {}
  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] {
    [TensorSpec(Shape(inputs[0].shape.dimensions.dropLast()), .int32)]
  }
  public func reference(_ a: inout HostArguments) {
    let n = a.inputSpecs[0].shape.last
    for r in a.outputs[0].indices {
      var best = 0
      for j in 1..<max(n, 1) where a.inputs[0][r * n + j] > a.inputs[0][r * n + best] { best = j }
      a.outputs[0][r] = Double(best)
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { [nil] }
  public static let cases = [
    OpCase("argmax", ArgMax(), [TestInput([5, 37], differentiable: false)])
  ]
}

/// Σx² of all inputs together, one element.
public struct SumOfSquares: Op {
  public static let name = "sum_of_squares"
  public init() {}
  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { [TensorSpec([1])] }
  public func reference(_ a: inout HostArguments) {
    a.outputs[0][0] = a.inputs.joined().reduce(0) { $0 + $1 * $1 }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    c.inputs.map { $0.affine(2) * c.cotangent(0) }
  }
  public static let cases = [
    OpCase("two", SumOfSquares(), [TestInput([5, 37]), TestInput([3000])])
  ]
}

extension Tensor {
  public func softmax() -> Tensor { apply(Softmax(), [self])[0] }
  public func argmax() -> Tensor { apply(ArgMax(), [self])[0] }
  /// The sum of all elements, shape `[1]`.
  public func sum() -> Tensor { summed(to: [1]) }
  /// The mean of all elements, shape `[1]`.
  public func mean() -> Tensor { sum() / Double(max(elementCount, 1)) }
}
