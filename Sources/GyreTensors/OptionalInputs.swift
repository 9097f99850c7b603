/// The inputs of an op some of which may be absent: which are there, and where.
///
/// An engine's op lists its possible inputs in a fixed order; those present are passed in that order.
public struct OptionalInputs: Sendable, Hashable {
  private let places: [Int?]

  public init(_ present: [Bool]) {
    var next = 0
    places = present.map { isPresent in
      guard isPresent else { return nil }
      defer { next += 1 }
      return next
    }
  }

  /// Position among the inputs of possible input `i`; nil where it is absent.
  public subscript(i: Int) -> Int? { places[i] }
  public func has(_ i: Int) -> Bool { places[i] != nil }

  /// Possible input `i` among `inputs`.
  public func pick<T>(_ i: Int, _ inputs: [T]) -> T? { places[i].map { inputs[$0] } }

  /// One value for each present input.
  public func gather<T>(_ value: (Int) -> T) -> [T] {
    places.indices.compactMap { places[$0] == nil ? nil : value($0) }
  }
}

/// Applies an op to those of the inputs that are there.
public func applyPresent(_ op: some Op, _ inputs: [Tensor?]) -> [Tensor] {
  apply(op, inputs.compactMap { $0 })
}
