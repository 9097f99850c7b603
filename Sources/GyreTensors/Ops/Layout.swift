/// The same elements under another shape. Shares storage.
public struct Reshape: Op {
  public static let name = "reshape"
  public let shape: Shape

  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { [TensorSpec(shape, inputs[0].dtype)] }
  public func reference(_ a: inout HostArguments) { a.outputs[0] = a.inputs[0] }
  public func vjp(_ c: VJPContext) -> [Tensor?] { [c.cotangent(0).reshaped(c.inputs[0].shape)] }
  public var saved: SavedValues { .none }
  public static let cases = [OpCase("reshape", Reshape(shape: [6, 4]), [TestInput([2, 12])])]
}

/// Ranges of one axis, one output each.
public struct Slice: Op {
  public static let name = "slice"
  public let axis: Int
  public let ranges: [Range<Int>]

  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] {
    ranges.map { range in
      var spec = inputs[0]
      precondition(
        range.lowerBound >= 0 && range.upperBound <= spec.shape[axis],
        "slice: \(range) of axis \(axis) of \(spec.shape)")
      spec.shape[axis] = range.count
      return spec
    }
  }
  public func reference(_ a: inout HostArguments) {
    let (outer, extent, inner) = a.inputSpecs[0].shape.around(axis)
    for (piece, range) in ranges.enumerated() {
      for o in 0..<outer {
        for j in 0..<range.count * inner {
          a.outputs[piece][o * range.count * inner + j] =
            a.inputs[0][(o * extent + range.lowerBound) * inner + j]
        }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let extent = c.inputs[0].shape[axis]
    // Ranges that tile the axis are joined with zeros where nothing came back: kernels join tiles.
    let all = Assemble(axis: axis, extent: extent, ranges: ranges)
    if all.tiles { return [apply(all, ranges.indices.map(c.cotangent))[0]] }
    let present = ranges.indices.filter { c.cotangents[$0] != nil }
    let op = Assemble(axis: axis, extent: extent, ranges: present.map { ranges[$0] })
    return [apply(op, present.compactMap { c.cotangents[$0] })[0]]
  }
  public var saved: SavedValues { .none }
  public static let cases = [
    OpCase("last", Slice(axis: 2, ranges: [0..<5, 5..<12]), [TestInput([2, 3, 12])]),
    OpCase("middle", Slice(axis: 1, ranges: [1..<3]), [TestInput([2, 4, 5])]),
    OpCase("overlapping", Slice(axis: 0, ranges: [0..<2, 1..<3]), [TestInput([3, 5])]),
  ]
}

/// Puts tensors at ranges of one axis, adding where ranges overlap, zero where there is none.
public struct Assemble: Op {
  public static let name = "assemble"
  public let axis: Int
  public let extent: Int
  public let ranges: [Range<Int>]

  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] {
    var spec = inputs[0]
    spec.shape[axis] = extent
    for (input, range) in zip(inputs, ranges) {
      var expected = spec.shape
      expected[axis] = range.count
      precondition(
        input.shape == expected, "assemble: \(input.shape) where \(expected) belongs")
    }
    return [spec]
  }
  public func reference(_ a: inout HostArguments) {
    let (outer, extent, inner) = a.outputSpecs[0].shape.around(axis)
    for (piece, range) in ranges.enumerated() {
      for o in 0..<outer {
        for j in 0..<range.count * inner {
          a.outputs[0][(o * extent + range.lowerBound) * inner + j] +=
            a.inputs[piece][o * range.count * inner + j]
        }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    apply(Slice(axis: axis, ranges: ranges), [c.cotangent(0)])
  }
  public var saved: SavedValues { .none }
  /// Whether the ranges cover the axis once, so that nothing has to be zeroed or added.
  public var tiles: Bool {
    var next = 0
    for range in ranges {
      if range.lowerBound != next { return false }
      next = range.upperBound
    }
    return next == extent
  }
  public static let cases = [
    OpCase(
      "concatenate", Assemble(axis: 1, extent: 12, ranges: [0..<5, 5..<12]),
      [TestInput([3, 5]), TestInput([3, 7])]),
    OpCase(
      "gap and overlap", Assemble(axis: 0, extent: 6, ranges: [1..<3, 2..<5]),
      [TestInput([2, 4]), TestInput([3, 4])]),
  ]
}

/// Axes in another order.
public struct Permute: Op {
  public static let name = "permute"
  public let axes: [Int]

  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] {
    precondition(
      axes.sorted() == Array(0..<inputs[0].shape.rank),
      "permute: axes \(axes) of \(inputs[0].shape)")
    return [TensorSpec(Shape(axes.map { inputs[0].shape[$0] }), inputs[0].dtype)]
  }
  public func reference(_ a: inout HostArguments) {
    let source = a.inputSpecs[0].shape
    let target = a.outputSpecs[0].shape
    var strides = [Int](repeating: 1, count: source.rank)
    for i in stride(from: source.rank - 2, through: 0, by: -1) {
      strides[i] = strides[i + 1] * source[i + 1]
    }
    for flat in a.outputs[0].indices {
      var rest = flat
      var index = 0
      for i in stride(from: target.rank - 1, through: 0, by: -1) {
        index += rest % target[i] * strides[axes[i]]
        rest /= target[i]
      }
      a.outputs[0][flat] = a.inputs[0][index]
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    var inverse = axes
    for (i, axis) in axes.enumerated() { inverse[axis] = i }
    return [c.cotangent(0).permuted(inverse)]
  }
  public var saved: SavedValues { .none }
  public static let cases = [
    OpCase("matrix", Permute(axes: [1, 0]), [TestInput([33, 18])]),
    OpCase("heads", Permute(axes: [0, 2, 1, 3]), [TestInput([2, 5, 3, 7])]),
    OpCase("general", Permute(axes: [2, 0, 3, 1]), [TestInput([2, 5, 3, 7])]),
  ]
}

extension Shape {
  /// (product before, extent, product after) of an axis.
  public func around(_ axis: Int) -> (outer: Int, extent: Int, inner: Int) {
    (
      dimensions[..<axis].reduce(1, *), dimensions[axis],
      dimensions[(axis + 1)...].reduce(1, *)
    )
  }
}

extension Tensor {
  /// The same elements under another shape; one extent may be −1.
  public func reshaped(_ shape: Shape) -> Tensor {
    var shape = shape
    if let free = shape.dimensions.firstIndex(of: -1) {
      let known = shape.dimensions.reduce(-1, *)
      shape[free] = known == 0 ? 0 : elementCount / known
    }
    precondition(
      shape.elementCount == elementCount, "reshape: \(self.shape) to \(shape)")
    if shape == self.shape { return self }
    let result = aliased(as: shape)
    Tape.current?.record(Reshape(shape: shape), inputs: [self], outputs: [result])
    return result
  }

  /// A range of one axis. Shares storage along axis 0.
  public func sliced(_ range: Range<Int>, axis: Int) -> Tensor {
    let axis = axis < 0 ? axis + rank : axis
    if range == 0..<shape[axis] { return self }
    return apply(Slice(axis: axis, ranges: [range]), [self])[0]
  }

  /// Consecutive pieces of one axis.
  public func split(_ sizes: [Int], axis: Int = -1) -> [Tensor] {
    let axis = axis < 0 ? axis + rank : axis
    precondition(
      sizes.reduce(0, +) == shape[axis], "split: \(sizes) of axis \(axis) of \(shape)")
    var start = 0
    let ranges = sizes.map { size in
      defer { start += size }
      return start..<start + size
    }
    return apply(Slice(axis: axis, ranges: ranges), [self])
  }

  public func permuted(_ axes: [Int]) -> Tensor { apply(Permute(axes: axes), [self])[0] }
}

/// Joins tensors along an axis.
public func concatenated(_ tensors: [Tensor], axis: Int = -1) -> Tensor {
  let axis = axis < 0 ? axis + tensors[0].rank : axis
  if tensors.count == 1 { return tensors[0] }
  var start = 0
  let ranges = tensors.map { t in
    defer { start += t.shape[axis] }
    return start..<start + t.shape[axis]
  }
  return apply(Assemble(axis: axis, extent: start, ranges: ranges), tensors)[0]
}
