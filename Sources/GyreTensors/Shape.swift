/// The extents of a tensor, outermost first. Row-major throughout.
public struct Shape: Sendable, Hashable, ExpressibleByArrayLiteral, CustomStringConvertible {
  public var dimensions: [Int]

  public init(_ dimensions: [Int]) { self.dimensions = dimensions }
  public init(arrayLiteral elements: Int...) { dimensions = elements }

  /// Number of axes.
  public var rank: Int { dimensions.count }

  /// Number of elements; 1 for a scalar.
  public var elementCount: Int {
    var n = 1
    for d in dimensions { n *= d }
    return n
  }

  /// Number of elements; nil where it does not fit an integer.
  public var checkedElementCount: Int? {
    var n = 1
    for d in dimensions {
      let (product, overflows) = n.multipliedReportingOverflow(by: d)
      if overflows { return nil }
      n = product
    }
    return n
  }

  /// Extent of an axis; negative axes count from the last.
  public subscript(axis: Int) -> Int {
    get { dimensions[axis < 0 ? axis + dimensions.count : axis] }
    set { dimensions[axis < 0 ? axis + dimensions.count : axis] = newValue }
  }

  /// Extent of the last axis; 1 for a scalar.
  public var last: Int { dimensions.last ?? 1 }

  /// Elements divided by the last axis: the rows of the flattened matrix.
  public var rowCount: Int { dimensions.dropLast().reduce(1, *) }

  public var description: String {
    "[" + dimensions.map(String.init).joined(separator: ", ") + "]"
  }
}
