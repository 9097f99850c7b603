import GyreCheckpoints
import GyreLayers
import GyreTensors

/// How the tensors of a public layout lie in a GGUF file; both directions follow from it.
struct GGUFMap: Sendable {
  enum Change: Sendable {
    case none
    /// Numbers that the file keeps in another form.
    case values(read: @Sendable (Float) -> Float, write: @Sendable (Float) -> Float)
    /// Element i of the public tensor is element order[i] of the file's.
    case elements([Int])
  }
  /// Rows of one tensor of the file. Rows run along the last axis; a vector's are its elements.
  struct Part: Sendable {
    var name: String
    var rows: TensorMap.Rows
    init(_ name: String, _ rows: TensorMap.Rows = .all) { (self.name, self.rows) = (name, rows) }
  }
  struct Rule: Sendable {
    var parts: [Part]
    var change: Change
    /// The public shape, where it is not the file's.
    var shape: Shape?
  }

  private(set) var rules: [String: Rule] = [:]
  /// The public names in the order in which rules were given.
  private(set) var order: [String] = []
  /// Shapes that files have where they do not follow from the public ones.
  private(set) var stored: [String: Shape] = [:]
  /// Tensors of files that nobody needs, with the tensor that files repeat in their place.
  private(set) var fillers: [String: String] = [:]

  /// - Parameters:
  ///   - shape: the public shape, where it is not the file's.
  ///   - stored: the file's shape, where it is not the public one.
  mutating func add(
    _ theirs: String, _ name: String, _ rows: TensorMap.Rows = .all, _ change: Change = .none,
    shape: Shape? = nil, stored: Shape? = nil
  ) {
    add(theirs, [Part(name, rows)], change, shape: shape)
    if let stored { self.stored[name] = stored }
  }

  /// Several parts of the file, one after another along the rows.
  mutating func add(
    _ theirs: String, _ parts: [Part], _ change: Change = .none, shape: Shape? = nil
  ) {
    if rules.updateValue(Rule(parts: parts, change: change, shape: shape), forKey: theirs) == nil {
      order.append(theirs)
    }
  }

  /// The shape of one of the file's tensors.
  mutating func store(_ name: String, as shape: Shape) { stored[name] = shape }

  /// A tensor that files hold and nobody needs.
  ///
  /// - Parameter source: what is written in its place; nil: nothing.
  mutating func ignore(_ name: String, writing source: String? = nil) {
    fillers[name] = source ?? ""
  }

  func ignores(_ name: String) -> Bool { fillers[name] != nil }
}

extension TensorInfo {
  /// Rows along the last axis; the elements of a vector.
  var ggufRows: Int {
    shape.rank < 2 ? shape.elementCount : shape.elementCount / max(shape.last, 1)
  }
}

/// A GGUF file's tensors under the names of a public layout. What needs no change stays mapped, and
/// quantised rows are moved as blocks.
struct GGUFTensors: TensorSource {
  let file: GGUFFile
  private let rules: [String: GGUFMap.Rule]

  init(_ file: GGUFFile, _ map: GGUFMap) {
    self.file = file
    // What no rule reads keeps its own name, so that it is reported as unexpected.
    var rules = map.rules.filter { $0.value.parts.allSatisfy { file.contains($0.name) } }
    let read = Set(rules.values.flatMap { $0.parts.map(\.name) })
    for name in file.names where !read.contains(name) && !map.ignores(name) {
      rules[name] = .init(parts: [.init(name)], change: .none, shape: nil)
    }
    self.rules = rules
  }

  var names: [String] { rules.keys.sorted() }
  var metadata: [String: String] { file.metadata }
  func contains(_ name: String) -> Bool { rules[name] != nil }

  private func rule(_ name: String) throws(CheckpointError) -> GGUFMap.Rule {
    guard let rule = rules[name] else { throw .notFound(path: "\(file.name)#\(name)") }
    return rule
  }

  /// The run of the file's bytes that a tensor is; nil where it is made of several or changed.
  private func run(_ rule: GGUFMap.Rule) throws(CheckpointError) -> (name: String, Range<Int>)? {
    guard case .none = rule.change, rule.parts.count == 1, let part = rule.parts.first else {
      return nil
    }
    let info = try file.info(part.name)
    switch part.rows {
    case .all: return (part.name, 0..<info.byteCount)
    case .order: return nil
    case .range(let rows):
      let size = info.byteCount / max(info.ggufRows, 1)
      guard rows.upperBound <= info.ggufRows else {
        throw Self.short(part.name, rows.upperBound - 1)
      }
      return (part.name, rows.lowerBound * size..<rows.upperBound * size)
    }
  }

  private static func short(_ name: String, _ row: Int) -> CheckpointError {
    .mismatch(missing: ["row \(row) of \(name)"], unexpected: [], reshaped: [])
  }

  /// Whether a tensor's bytes are the file's.
  func isUnchanged(_ name: String) -> Bool {
    guard let rule = rules[name] else { return false }
    return (try? run(rule)) != nil
  }

  func info(_ name: String) throws(CheckpointError) -> TensorInfo {
    let rule = try rule(name)
    var rows = 0
    var first: TensorInfo?
    for part in rule.parts {
      let info = try file.info(part.name)
      rows += part.count(of: info.ggufRows)
      guard first.map({ $0.typeName == info.typeName && $0.shape.last == info.shape.last }) ?? true
      else {
        throw .unsupported(
          file: file.name, subject: "tensor '\(name)'",
          reason: "its parts \(rule.parts.map(\.name)) differ in type or width")
      }
      first = first ?? info
    }
    guard let first else { throw .notFound(path: "\(file.name)#\(name)") }
    let isWhole = rule.parts.count == 1 && rows == first.ggufRows
    let taken: Shape =
      isWhole ? first.shape : first.shape.rank < 2 ? [rows] : [rows, first.shape.last]
    let shape = rule.shape ?? taken
    if case .none = rule.change {
      let range =
        try run(rule)?.1 ?? 0..<first.byteCount / max(first.ggufRows, 1) * rows
      return TensorInfo(
        name: name, typeName: first.typeName, shape: shape, file: file.name, byteRange: range)
    }
    return TensorInfo(
      name: name, typeName: StoredType.float32.rawValue, shape: shape, file: file.name,
      byteRange: 0..<4 * taken.elementCount)
  }

  func withBytes<Result>(
    _ name: String, _ body: (UnsafeRawBufferPointer) throws(CheckpointError) -> Result
  ) throws(CheckpointError) -> Result {
    let rule = try rule(name)
    if let (part, range) = try run(rule) {
      return try file.withBytes(part) { (bytes) throws(CheckpointError) in
        try body(UnsafeRawBufferPointer(rebasing: bytes[range]))
      }
    }
    guard let part = rule.parts.first?.name else { throw .notFound(path: "\(file.name)#\(name)") }
    switch rule.change {
    case .none:
      let gathered = try gather(rule)
      return try gathered.withUnsafeBufferPointer { (buffer) throws(CheckpointError) in
        try body(UnsafeRawBufferPointer(buffer))
      }
    case .values(let read, _):
      return try with(try file.readFloat32(part).map(read), body)
    case .elements(let order):
      let values = try file.readFloat32(part)
      guard order.count == values.count, (order.max() ?? 0) < values.count else {
        throw Self.short(part, order.max() ?? 0)
      }
      return try with(order.map { values[$0] }, body)
    }
  }

  private func with<Result>(
    _ values: [Float],
    _ body: (UnsafeRawBufferPointer) throws(CheckpointError) -> Result
  ) throws(CheckpointError) -> Result {
    try values.withUnsafeBufferPointer { (buffer) throws(CheckpointError) in
      try body(UnsafeRawBufferPointer(buffer))
    }
  }

  private func gather(_ rule: GGUFMap.Rule) throws(CheckpointError) -> [UInt8] {
    var out: [UInt8] = []
    for part in rule.parts {
      let rows = try file.info(part.name).ggufRows
      if let last = part.largest(of: rows), last >= rows { throw Self.short(part.name, last) }
      try file.withBytes(part.name) { bytes in
        let size = bytes.count / max(rows, 1)
        part.forEach(of: rows) { out.append(contentsOf: bytes[$0 * size..<($0 + 1) * size]) }
      }
    }
    return out
  }
}

extension GGUFMap.Part {
  func count(of total: Int) -> Int {
    switch rows {
    case .all: total
    case .range(let range): range.count
    case .order(let order): order.count
    }
  }

  func largest(of total: Int) -> Int? {
    switch rows {
    case .all: total - 1
    case .range(let range): range.upperBound - 1
    case .order(let order): order.max()
    }
  }

  func forEach(of total: Int, _ body: (Int) -> Void) {
    switch rows {
    case .all: (0..<total).forEach(body)
    case .range(let range): range.forEach(body)
    case .order(let order): order.forEach(body)
    }
  }
}
