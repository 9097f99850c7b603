import GyreCheckpoints
import GyreTensors

/// How each of our parameters is made from the tensors of a public layout, and back.
///
/// Every rule copies elements, never computes: both directions are bit-exact, and gradients map by
/// the same rules.
public struct TensorMap: Sendable {
  /// Which rows of a stored tensor, in which order.
  public enum Rows: Sendable, Hashable {
    /// The whole tensor.
    case all
    case range(Range<Int>)
    /// Row i of the piece is row order[i].
    case order([Int])
  }

  /// Rows of one stored tensor.
  public struct Piece: Sendable, Hashable {
    public var theirs: String
    public var rows: Rows
    /// Rows of the whole stored tensor; not used with `all`.
    public var total: Int
    public init(_ theirs: String, _ rows: Rows, of total: Int) {
      self.theirs = theirs
      self.rows = rows
      self.total = total
    }
  }

  struct Rule: Sendable {
    var pieces: [Piece]
    var transposes = false
  }

  /// Our names in the order in which rules were given.
  private(set) var names: [String] = []
  private(set) var rules: [String: Rule] = [:]
  private(set) var shapes: [String: Shape] = [:]
  private var ignoredNames: Set<String> = []
  private var ignoredPrefixes: [String] = []

  public init() {}

  /// Ours is theirs. A reshape is fine where axes are merged, split or of extent 1.
  ///
  /// - Parameter shape: that of theirs where it is not ours; exports write it.
  public mutating func same(_ ours: String, _ theirs: String, shape: Shape? = nil) {
    set(ours, Rule(pieces: [Piece(theirs, .all, of: 1)]))
    if let shape { shapes[theirs] = shape }
  }

  /// Ours `[n, m]` is the transpose of theirs `[m, n]`.
  public mutating func transposed(_ ours: String, _ theirs: String) {
    set(ours, Rule(pieces: [Piece(theirs, .all, of: 1)], transposes: true))
  }

  /// Ours is several of theirs, one after another along axis 0.
  ///
  /// - Parameter rows: rows of each.
  public mutating func concatenated(_ ours: String, _ theirs: [String], rows: [Int]) {
    set(
      ours,
      Rule(pieces: zip(theirs, rows).map { Piece($0, .range(0..<$1), of: $1) }))
  }

  /// Ours is a part of theirs along axis 0.
  public mutating func sliced(_ ours: String, _ theirs: String, rows: Range<Int>, of total: Int) {
    set(ours, Rule(pieces: [Piece(theirs, .range(rows), of: total)]))
  }

  /// Row i of ours is row order[i] of theirs.
  public mutating func permutedRows(_ ours: String, _ theirs: String, _ order: [Int]) {
    set(ours, Rule(pieces: [Piece(theirs, .order(order), of: order.count)]))
  }

  /// Ours is any rows of any of theirs, one piece after another along axis 0.
  public mutating func pieces(_ ours: String, _ pieces: [Piece]) { set(ours, Rule(pieces: pieces)) }

  /// The shape of one of theirs, where it does not follow from ours: `[D, 1, 4]`.
  public mutating func shape(_ theirs: String, _ shape: Shape) { shapes[theirs] = shape }

  /// A tensor that files may hold and nobody needs; a final `*` stands for any ending.
  public mutating func ignored(_ theirs: String) {
    if theirs.hasSuffix("*") {
      ignoredPrefixes.append(String(theirs.dropLast()))
    } else {
      ignoredNames.insert(theirs)
    }
  }

  private mutating func set(_ ours: String, _ rule: Rule) {
    if rules.updateValue(rule, forKey: ours) == nil { names.append(ours) }
  }

  /// Drops the rule of one of ours.
  mutating func remove(_ ours: String) {
    rules[ours] = nil
    names.removeAll { $0 == ours }
  }

  func ignores(_ theirs: String) -> Bool {
    ignoredNames.contains(theirs) || ignoredPrefixes.contains { theirs.hasPrefix($0) }
  }

  /// All stored names that rules read.
  public var theirs: Set<String> {
    Set(rules.values.flatMap { $0.pieces.map(\.theirs) })
  }
}

// MARK: - Both directions

extension TensorMap {
  /// The rows that a rule moves: runs of consecutive rows on both sides.
  private struct Run {
    var theirs: String
    var theirRow, ourRow, count: Int
  }

  private func runs(_ rule: Rule) -> [Run] {
    var runs: [Run] = []
    var ourRow = 0
    func add(_ theirs: String, _ row: Int, _ count: Int) {
      if let last = runs.last, last.theirs == theirs, last.theirRow + last.count == row {
        runs[runs.count - 1].count += count
      } else {
        runs.append(Run(theirs: theirs, theirRow: row, ourRow: ourRow, count: count))
      }
      ourRow += count
    }
    for piece in rule.pieces {
      switch piece.rows {
      case .all: add(piece.theirs, 0, 1)
      case .range(let range): add(piece.theirs, range.lowerBound, range.count)
      case .order(let order): for row in order { add(piece.theirs, row, 1) }
      }
    }
    return runs
  }

  private func rowCount(_ rule: Rule) -> Int { runs(rule).reduce(0) { $0 + $1.count } }

  /// Stored shapes that the rules expect, given the shapes of our parameters.
  ///
  /// - Throws: `mismatch` where our parameters and the rules do not name the same tensors.
  public func storedShapes(_ ours: [String: Shape]) throws(CheckpointError) -> [String: Shape] {
    let missing = ours.keys.filter { rules[$0] == nil }.sorted()
    let extra = names.filter { ours[$0] == nil }
    guard missing.isEmpty, extra.isEmpty else {
      throw .mismatch(missing: missing, unexpected: extra, reshaped: [])
    }
    var result: [String: Shape] = [:]
    for (name, shape) in ours {
      guard let rule = rules[name] else { continue }
      let rows = rowCount(rule)
      for piece in rule.pieces where result[piece.theirs] == nil {
        if let declared = shapes[piece.theirs] {
          result[piece.theirs] = declared
        } else if rule.transposes {
          result[piece.theirs] = Shape(shape.dimensions.reversed())
        } else if case .all = piece.rows {
          result[piece.theirs] = shape
        } else if shape.rank > 0, shape[0] == rows {
          result[piece.theirs] = Shape([piece.total] + shape.dimensions.dropFirst())
        } else {
          result[piece.theirs] = [piece.total, shape.elementCount / max(rows, 1)]
        }
      }
    }
    return result
  }

  /// Our parameters, read from the tensors of a public checkpoint.
  ///
  /// - Throws: `mismatch` with all stored tensors that are missing, unexpected or of another shape.
  public func imported(
    _ source: any TensorSource, shapes ours: [String: Shape]
  ) throws(CheckpointError) -> AssembledTensors {
    let expected = try storedShapes(ours)
    var missing: [String] = []
    var reshaped: [ShapeMismatch] = []
    for (name, shape) in expected {
      guard source.contains(name) else {
        missing.append(name)
        continue
      }
      let found = try source.info(name).shape
      if !found.regroups(shape) {
        reshaped.append(ShapeMismatch(name: name, expected: shape, found: found))
      }
    }
    let unexpected = source.names.filter { expected[$0] == nil && !ignores($0) }
    guard missing.isEmpty, unexpected.isEmpty, reshaped.isEmpty else {
      throw .mismatch(
        missing: missing.sorted(), unexpected: unexpected,
        reshaped: reshaped.sorted { $0.name < $1.name })
    }
    var result = AssembledTensors(source)
    for (name, shape) in ours {
      guard let rule = rules[name] else { continue }
      result.entries[name] = .init(
        shape: shape, rows: max(rowCount(rule), 1), transposes: rule.transposes,
        segments: runs(rule).map {
          .init(name: $0.theirs, sourceRow: $0.theirRow, row: $0.ourRow, count: $0.count)
        })
    }
    return result
  }

  /// The tensors of the public layout, read from ours. Also maps gradients.
  ///
  /// - Throws: `mismatch` where ours lack a parameter; `invalid` where no rule gives a row.
  public func exported(
    _ source: any TensorSource, shapes ours: [String: Shape]
  ) throws(CheckpointError) -> AssembledTensors {
    var result = AssembledTensors(source)
    for (name, shape) in try storedShapes(ours) {
      result.entries[name] = .init(shape: shape, rows: 1, transposes: false, segments: [])
    }
    for name in names {
      guard let rule = rules[name] else { continue }
      for piece in rule.pieces {
        if case .all = piece.rows { continue }
        result.entries[piece.theirs]?.rows = piece.total
      }
      for run in runs(rule) {
        result.entries[run.theirs]?.segments.append(
          .init(name: name, sourceRow: run.ourRow, row: run.theirRow, count: run.count))
        result.entries[run.theirs]?.transposes = rule.transposes
      }
    }
    for (name, var entry) in result.entries {
      entry.segments.sort { $0.row < $1.row }
      var next = 0
      for segment in entry.segments {
        guard segment.row == next else { break }
        next += segment.count
      }
      guard next == entry.rows else {
        throw .invalid(
          subject: "tensor '\(name)'", reason: "row \(next) of \(entry.rows) has no or two sources")
      }
      result.entries[name] = entry
    }
    return result
  }
}

extension Shape {
  /// Whether one shape becomes the other by merging or splitting neighbouring axes.
  func regroups(_ other: Shape) -> Bool {
    func products(_ shape: Shape) -> [Int] {
      var product = 1
      return shape.dimensions.filter { $0 != 1 }.map {
        product *= $0
        return product
      }
    }
    let (a, b) = (products(self), products(other))
    guard a.last == b.last else { return false }
    return Set(a).isSubset(of: b) || Set(b).isSubset(of: a)
  }
}
