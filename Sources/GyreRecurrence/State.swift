import GyreTensors
import Synchronization

/// What a layer remembers of one sequence: named tensors without the batch axis.
public struct StateSpec: Sendable, Hashable {
  public enum Kind: Sendable, Hashable {
    /// A fixed-size recurrent state.
    case recurrent
    /// The last few inputs of a short convolution or token shift.
    case window
    /// Keys or values of attention: the first axis grows by one with every so many tokens seen, up to
    /// `limit`.
    case cache(limit: Int?, every: Int = 1)
  }
  public struct Entry: Sendable, Hashable {
    public var name: String
    public var shape: Shape
    public var kind: Kind
    /// What the entry holds before the first token.
    public var initial: Double
    public init(_ name: String, _ shape: Shape, _ kind: Kind = .recurrent, initial: Double = 0) {
      self.name = name
      self.shape = shape
      self.kind = kind
      self.initial = initial
    }
  }
  public var entries: [Entry]
  public init(_ entries: [Entry] = []) { self.entries = entries }

  public static func + (a: StateSpec, b: StateSpec) -> StateSpec {
    StateSpec(a.entries + b.entries)
  }

  /// The entries under a prefix, as when a mixer holds two engines.
  public func prefixed(_ prefix: String) -> StateSpec {
    StateSpec(
      entries.map {
        var entry = $0
        entry.name = prefix + "." + $0.name
        return entry
      })
  }

  /// Whether the state grows with the tokens seen and has no limit: attention over all of them.
  public var isUnbounded: Bool {
    entries.contains { if case .cache(limit: nil, _) = $0.kind { true } else { false } }
  }

  /// Bytes of float32 state per sequence; caches are counted at their limit, or at `tokenCount`
  /// tokens where they have none.
  public func byteCount(tokenCount: Int) -> Int {
    entries.reduce(0) { sum, entry in
      switch entry.kind {
      case .recurrent, .window: sum + 4 * entry.shape.elementCount
      case .cache(let limit, let every):
        sum + 4 * entry.shape.dimensions.dropFirst().reduce(1, *)
          * min(limit ?? tokenCount, tokenCount / every)
      }
    }
  }
}

/// The state of a batch of sequences: a value. Copying forks, assigning restores.
///
/// Every entry is float32 with the batch as its first axis. An entry that was never written is
/// absent (`nil`), which every engine reads as its initial value: fresh sequences cost nothing.
public struct State: Sendable {
  public let spec: StateSpec
  public let batch: Int
  /// Tokens consumed so far, the same for all rows: the position of the next token.
  public var tokenCount: Int {
    get {
      PositionReads.current?.note()
      return position
    }
    set { position = newValue }
  }
  private var position: Int
  /// Nothing follows the next call's tokens: it need not leave what only later tokens would read.
  package var isLast = false
  private var values: [String: Tensor]

  public init(_ spec: StateSpec, batch: Int) {
    self.spec = spec
    self.batch = batch
    position = 0
    values = [:]
  }

  /// Counts tokens that were consumed.
  public mutating func advance(by count: Int) { position += count }

  /// An empty state at this one's position.
  package func sibling(_ spec: StateSpec) -> State {
    var part = State(spec, batch: batch)
    part.position = position
    return part
  }

  /// Several batches as one, row after row.
  ///
  /// - Precondition: at least one, all of one spec, with the same entries written.
  public init(joining parts: [State]) {
    self.init(parts[0].spec, batch: parts.reduce(0) { $0 + $1.batch })
    position = parts[0].position
    for name in parts[0].values.keys {
      values[name] = concatenated(parts.compactMap { $0.values[name] }, axis: 0)
    }
  }

  /// The tensor of an entry, `[batch] + shape`; nil before anything was written.
  ///
  /// - Precondition: the spec has the entry, and an assigned tensor has its shape (caches: any
  ///   first extent).
  public subscript(name: String) -> Tensor? {
    get { values[name] }
    set {
      guard let entry = spec.entries.first(where: { $0.name == name }) else {
        preconditionFailure("state: no entry \(name) among \(spec.entries.map(\.name))")
      }
      if let newValue {
        var expected = [batch] + entry.shape.dimensions
        if case .cache = entry.kind { expected[1] = newValue.shape[1] }
        precondition(
          newValue.shape.dimensions == expected,
          "state \(name): \(newValue.shape) where \(expected) belongs")
      }
      values[name] = newValue
    }
  }

  /// The tensor of an entry, or its initial value on `device`.
  public func value(_ name: String, on device: any Device) -> Tensor {
    if let present = values[name] { return present }
    guard let entry = spec.entries.first(where: { $0.name == name }) else {
      preconditionFailure("state: no entry \(name) among \(spec.entries.map(\.name))")
    }
    var shape = [batch] + entry.shape.dimensions
    if case .cache = entry.kind { shape[1] = 0 }
    return .full(entry.initial, Shape(shape), on: device)
  }

  /// A copy in memory of its own: entries of a fixed size are present, caches as they are.
  package func owned(on device: any Device) -> State {
    var result = self
    for entry in spec.entries {
      if case .cache = entry.kind { continue }
      result.values[entry.name] =
        values[entry.name]?.affine(1) ?? value(entry.name, on: device)
    }
    return result
  }

  /// The part of the state under a prefix, as a state of its own.
  public func scoped(_ prefix: String, _ spec: StateSpec) -> State {
    var part = sibling(spec)
    for entry in spec.entries { part.values[entry.name] = values[prefix + "." + entry.name] }
    return part
  }

  /// Writes a part back.
  public mutating func merge(_ part: State, prefix: String) {
    for entry in part.spec.entries { self[prefix + "." + entry.name] = part.values[entry.name] }
  }

  /// The state of some rows.
  public func rows(_ indices: [Int]) -> State {
    var result = State(spec, batch: indices.count)
    result.position = position
    for (name, t) in values {
      let flat = t.reshaped([batch, t.elementCount / max(batch, 1)])
      let index = Tensor(indices.map(Int32.init), shape: [indices.count], on: t.device)
      result.values[name] = flat.rows(index).reshaped(
        Shape([indices.count] + t.shape.dimensions.dropFirst()))
    }
    return result
  }

  /// All written entries by name.
  public var tensors: [(name: String, tensor: Tensor)] {
    spec.entries.compactMap { entry in values[entry.name].map { (entry.name, $0) } }
  }

  /// The same values cut off from the tape: truncated backpropagation.
  public func detached() -> State {
    var result = self
    for (name, t) in values { result.values[name] = t.detached() }
    return result
  }
}

/// Notes, while it is bound to the current task, whether anything asks for the position in a sequence:
/// what does not is the same work at every step.
package final class PositionReads: Sendable {
  @TaskLocal package static var current: PositionReads?
  private let flag = Atomic(false)

  package init() {}
  package var isAny: Bool { flag.load(ordering: .relaxed) }
  fileprivate func note() { flag.store(true, ordering: .relaxed) }
}
