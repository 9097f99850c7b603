/// An element-wise function of two tensors with NumPy's broadcasting.
///
/// Fast kernels exist for equal shapes, a right operand that is a suffix of the left shape (a row),
/// one with trailing axes of 1 (a column), and a single element.
public struct Binary: Op {
  public enum Kind: Int, Sendable, Hashable, CaseIterable {
    case add, subtract, multiply, divide, maximum, minimum
  }
  public static let name = "binary"
  public let kind: Kind

  public init(_ kind: Kind) { self.kind = kind }

  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] {
    [TensorSpec(Broadcast.shape(inputs[0].shape, inputs[1].shape, op: "\(kind)"), inputs[0].dtype)]
  }

  public func reference(_ a: inout HostArguments) {
    let out = a.outputSpecs[0].shape
    let left = Broadcast.indices(a.inputSpecs[0].shape, in: out)
    let right = Broadcast.indices(a.inputSpecs[1].shape, in: out)
    for i in a.outputs[0].indices {
      let x = a.inputs[0][left[i]]
      let y = a.inputs[1][right[i]]
      a.outputs[0][i] =
        switch kind {
        case .add: x + y
        case .subtract: x - y
        case .multiply: x * y
        case .divide: x / y
        case .maximum: x.isNaN || y.isNaN ? .nan : max(x, y)
        case .minimum: x.isNaN || y.isNaN ? .nan : min(x, y)
        }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let (x, y, d) = (c.inputs[0], c.inputs[1], c.cotangent(0))
    func left(_ g: @autoclosure () -> Tensor) -> Tensor? {
      c.needs[0] ? g().summed(to: x.shape) : nil
    }
    func right(_ g: @autoclosure () -> Tensor) -> Tensor? {
      c.needs[1] ? g().summed(to: y.shape) : nil
    }
    switch kind {
    case .add: return [left(d), right(d)]
    case .subtract: return [left(d), right(-d)]
    case .multiply: return [left(d * y), right(d * x)]
    case .divide: return [left(d / y), right(-(d * x) / (y * y))]
    case .maximum, .minimum:
      // The gradient goes to the operand that was chosen, to the left one of equals.
      let chosen = apply(Choose(takesLargest: kind == .maximum), [x, y, d])
      return [left(chosen[0]), right(chosen[1])]
    }
  }

  public var saved: SavedValues {
    switch kind {
    case .add, .subtract: .none
    default: .inputs
    }
  }

  public static let cases: [OpCase] = Kind.allCases.flatMap { kind -> [OpCase] in
    let shapes: [(String, Shape, Shape)] = [
      ("same", [5, 33], [5, 33]), ("row", [5, 3, 33], [3, 33]), ("column", [5, 33], [5, 1]),
      ("scalar", [5, 33], [1]), ("left column", [4, 1], [4, 19]), ("general", [2, 1, 5], [3, 1]),
      ("groups", [3, 4, 2, 19], [3, 1, 1, 19]), ("left groups", [3, 1, 19], [3, 5, 19]),
    ]
    return shapes.map { label, a, b in
      OpCase(
        "\(kind) \(label)", Binary(kind),
        [TestInput(a), TestInput(b, kind == .divide ? .uniform(0.5, 2) : .normal())])
    }
  }
}

/// Splits a cotangent between the operands of a maximum or minimum.
package struct Choose: Op {
  package static let name = "choose"
  package let takesLargest: Bool

  package func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { [inputs[2], inputs[2]] }
  package func reference(_ a: inout HostArguments) {
    let out = a.outputSpecs[0].shape
    let left = Broadcast.indices(a.inputSpecs[0].shape, in: out)
    let right = Broadcast.indices(a.inputSpecs[1].shape, in: out)
    for i in a.outputs[0].indices {
      let x = a.inputs[0][left[i]]
      let y = a.inputs[1][right[i]]
      let takesLeft = takesLargest ? x >= y : x <= y
      a.outputs[takesLeft ? 0 : 1][i] = a.inputs[2][i]
    }
  }
  package func vjp(_ c: VJPContext) -> [Tensor?] { [nil, nil, nil] }
  package static let cases: [OpCase] = []
}

/// The sum over the axes along which `shape` was broadcast.
public struct SumTo: Op {
  public static let name = "sum_to"
  public let shape: Shape

  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { [TensorSpec(shape, inputs[0].dtype)] }
  public func reference(_ a: inout HostArguments) {
    let target = Broadcast.indices(shape, in: a.inputSpecs[0].shape)
    for (i, x) in a.inputs[0].enumerated() { a.outputs[0][target[i]] += x }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    [Tensor.zeros(c.inputs[0].shape, on: c.inputs[0].device) + c.cotangent(0)]
  }
  public var saved: SavedValues { .none }
  public static let cases = [
    OpCase("rows", SumTo(shape: [33]), [TestInput([70, 33])]),
    OpCase("columns", SumTo(shape: [7, 1]), [TestInput([7, 133])]),
    OpCase("all", SumTo(shape: [1]), [TestInput([7, 133])]),
    OpCase("middle", SumTo(shape: [7, 1, 3]), [TestInput([7, 5, 3])]),
  ]
}

/// NumPy's broadcasting rule.
public enum Broadcast {
  static func shape(_ a: Shape, _ b: Shape, op: String) -> Shape {
    if a == b { return a }
    let rank = max(a.rank, b.rank)
    return Shape(
      (0..<rank).map { i in
        let x = i < rank - a.rank ? 1 : a.dimensions[i - (rank - a.rank)]
        let y = i < rank - b.rank ? 1 : b.dimensions[i - (rank - b.rank)]
        precondition(x == y || x == 1 || y == 1, "\(op): shapes \(a) and \(b) do not broadcast")
        return x == 1 ? y : x
      })
  }

  /// For each element of `out`, the element of a tensor of shape `s` that it reads.
  static func indices(_ s: Shape, in out: Shape) -> [Int] {
    if s == out { return Array(0..<out.elementCount) }
    var strides = [Int](repeating: 0, count: out.rank)
    var step = 1
    for i in stride(from: s.rank - 1, through: 0, by: -1) {
      if s.dimensions[i] != 1 { strides[i + out.rank - s.rank] = step }
      step *= s.dimensions[i]
    }
    return (0..<out.elementCount).map { flat in
      var rest = flat
      var index = 0
      for axis in stride(from: out.rank - 1, through: 0, by: -1) {
        index += rest % out.dimensions[axis] * strides[axis]
        rest /= out.dimensions[axis]
      }
      return index
    }
  }

  /// A small operand `[outer, 1, inner]` of a large one `[outer, group, inner]`, such as a row of each member
  /// for all tokens of the member; nil where it is not of this kind.
  public static func groups(_ small: Shape, in large: Shape) -> (
    outer: Int, group: Int, inner: Int
  )? {
    guard small.rank == large.rank, small != large else { return nil }
    let differing = small.dimensions.indices.filter { small[$0] != large[$0] }
    guard let first = differing.first, let last = differing.last, first > 0,
      last < small.rank - 1, (first...last).allSatisfy({ small[$0] == 1 })
    else { return nil }
    let d = large.dimensions
    let (outer, inner) = (d[..<first].reduce(1, *), d[(last + 1)...].reduce(1, *))
    guard outer > 1, inner > 1 else { return nil }
    return (outer, d[first...last].reduce(1, *), inner)
  }

  /// How a small operand lies in a large one, for kernels: element (o, m, i) of the large operand,
  /// seen as [outer, middle, inner], reads element m of the small one. Nil where it is neither.
  public static func pattern(_ small: Shape, in large: Shape) -> (
    outer: Int, middle: Int, inner: Int
  )? {
    if small.elementCount == 1 { return (1, 1, large.elementCount) }
    guard small.rank <= large.rank else { return nil }
    let padded = [Int](repeating: 1, count: large.rank - small.rank) + small.dimensions
    var first = 0
    while first < large.rank, padded[first] == 1 { first += 1 }
    var last = large.rank
    while last > first, padded[last - 1] == 1 { last -= 1 }
    guard padded[first..<last].elementsEqual(large.dimensions[first..<last]) else { return nil }
    return (
      large.dimensions[..<first].reduce(1, *), large.dimensions[first..<last].reduce(1, *),
      large.dimensions[last...].reduce(1, *)
    )
  }
}

extension Tensor {
  public static func + (x: Tensor, y: Tensor) -> Tensor { arithmetic(.add, x, y) }
  public static func - (x: Tensor, y: Tensor) -> Tensor { arithmetic(.subtract, x, y) }
  public static func * (x: Tensor, y: Tensor) -> Tensor { arithmetic(.multiply, x, y) }
  public static func / (x: Tensor, y: Tensor) -> Tensor { arithmetic(.divide, x, y) }

  private static func arithmetic(_ kind: Binary.Kind, _ x: Tensor, _ y: Tensor) -> Tensor {
    guard let population = Perturbation.current else { return apply(Binary(kind), [x, y])[0] }
    return apply(
      Binary(kind),
      [population.vector(x, like: y) ?? x, population.vector(y, like: x) ?? y])[0]
  }
  public func maximum(_ y: Tensor) -> Tensor { apply(Binary(.maximum), [self, y])[0] }
  public func minimum(_ y: Tensor) -> Tensor { apply(Binary(.minimum), [self, y])[0] }
  /// The sum over the axes along which a tensor of shape `shape` would be broadcast to this one.
  public func summed(to shape: Shape) -> Tensor {
    shape == self.shape ? self : apply(SumTo(shape: shape), [self])[0]
  }
  /// x·scale + shift.
  public func affine(_ scale: Double, _ shift: Double = 0) -> Tensor {
    apply(Affine(scale: scale, shift: shift), [self])[0]
  }
  public static func * (x: Tensor, y: Double) -> Tensor { x.affine(y) }
  public static func * (x: Double, y: Tensor) -> Tensor { y.affine(x) }
  public static func + (x: Tensor, y: Double) -> Tensor { x.affine(1, y) }
  public static func - (x: Tensor, y: Double) -> Tensor { x.affine(1, -y) }
  public static func - (x: Double, y: Tensor) -> Tensor { y.affine(-1, x) }
  public static func / (x: Tensor, y: Double) -> Tensor { x.affine(1 / y) }
}

/// x·scale + shift with constants.
public struct Affine: Op {
  public static let name = "affine"
  public let scale: Double
  public let shift: Double

  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { inputs }
  public func reference(_ a: inout HostArguments) {
    a.outputs[0] = a.inputs[0].map { $0 * scale + shift }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { [c.cotangent(0).affine(scale)] }
  public var saved: SavedValues { .none }
  public static let cases = [
    OpCase("affine", Affine(scale: -1.5, shift: 0.25), [TestInput([3, 41])])
  ]
}
