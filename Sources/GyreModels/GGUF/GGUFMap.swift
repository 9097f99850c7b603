import GyreCheckpoints
import GyreLayers
import GyreTensors

/// How the tensors of a public layout lie in a GGUF file.
struct GGUFMap: Sendable {
  enum Change: Sendable {
    case none
    /// Row i of ours is row order[i] of the file's tensor.
    case rows([Int])
    /// Numbers that the file keeps in another form.
    case values(@Sendable (Float) -> Float)
  }
  struct Rule: Sendable {
    var name: String
    var change: Change
    /// The shape under the public name, where it is not the file's.
    var shape: Shape?
  }

  private(set) var rules: [String: Rule] = [:]
  /// Tensors of the file that nobody needs.
  private(set) var ignored: Set<String> = []

  mutating func add(
    _ theirs: String, _ name: String, _ change: Change = .none, shape: Shape? = nil
  ) {
    rules[theirs] = Rule(name: name, change: change, shape: shape)
  }

  /// Drops the two matrices and the bias of a low-rank map.
  mutating func removeLowRank(_ theirs: String) {
    for part in ["0.weight", "2.weight", "2.bias"] { rules["\(theirs).lora.\(part)"] = nil }
  }

  mutating func ignore(_ name: String) { ignored.insert(name) }
}

/// A GGUF file's tensors under the names of a public layout. What needs no change stays mapped, and
/// quantised rows are moved as blocks.
struct GGUFTensors: TensorSource {
  let file: GGUFFile
  private let rules: [String: GGUFMap.Rule]

  init(_ file: GGUFFile, _ map: GGUFMap) {
    self.file = file
    // What no rule reads keeps its own name, so that it is reported as unexpected.
    var rules = map.rules.filter { file.contains($0.value.name) }
    let read = Set(rules.values.map(\.name)).union(map.ignored)
    for name in file.names where !read.contains(name) {
      rules[name] = .init(name: name, change: .none, shape: nil)
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

  func info(_ name: String) throws(CheckpointError) -> TensorInfo {
    let rule = try rule(name)
    let stored = try file.info(rule.name)
    switch rule.change {
    case .none:
      return TensorInfo(
        name: name, typeName: stored.typeName, shape: rule.shape ?? stored.shape, file: file.name,
        byteRange: stored.byteRange)
    case .rows(let order):
      let shape = Shape([order.count] + stored.shape.dimensions.dropFirst())
      let rows = max(stored.shape.dimensions.first ?? 1, 1)
      return TensorInfo(
        name: name, typeName: stored.typeName, shape: rule.shape ?? shape, file: file.name,
        byteRange: 0..<stored.byteCount / rows * order.count)
    case .values:
      return TensorInfo(
        name: name, typeName: StoredType.float32.rawValue, shape: rule.shape ?? stored.shape,
        file: file.name, byteRange: 0..<4 * stored.shape.elementCount)
    }
  }

  func withBytes<Result>(
    _ name: String, _ body: (UnsafeRawBufferPointer) throws(CheckpointError) -> Result
  ) throws(CheckpointError) -> Result {
    let rule = try rule(name)
    switch rule.change {
    case .none: return try file.withBytes(rule.name, body)
    case .rows(let order):
      let rows = try file.info(rule.name).shape.dimensions.first ?? 0
      guard let last = order.max(), last < rows else {
        throw .mismatch(
          missing: ["row \(order.max() ?? 0) of \(rule.name)"], unexpected: [], reshaped: [])
      }
      let gathered: [UInt8] = try file.withBytes(rule.name) { bytes in
        let size = bytes.count / rows
        var out: [UInt8] = []
        out.reserveCapacity(size * order.count)
        for row in order { out.append(contentsOf: bytes[row * size..<(row + 1) * size]) }
        return out
      }
      return try gathered.withUnsafeBufferPointer { (buffer) throws(CheckpointError) in
        try body(UnsafeRawBufferPointer(buffer))
      }
    case .values(let change):
      let values = try file.readFloat32(rule.name).map(change)
      return try values.withUnsafeBufferPointer { (buffer) throws(CheckpointError) in
        try body(UnsafeRawBufferPointer(buffer))
      }
    }
  }
}

/// Metadata of a GGUF file with keys below its architecture.
struct GGUFMetadata {
  let file: GGUFFile
  let architecture: String

  /// The value of "llama.block_count" for `block_count`.
  subscript(_ key: String) -> GGUFValue? { file.values["\(architecture).\(key)"] }

  func int(_ key: String, default fallback: Int? = nil) throws(ConfigurationError) -> Int {
    guard let value = self[key] else { return try absent(key, fallback) }
    guard let n = value.int, (0...1 << 24).contains(n) else {
      throw ConfigurationError("\(architecture).\(key)", "must be an integer in 0...2²⁴")
    }
    return n
  }

  func double(_ key: String, default fallback: Double? = nil) throws(ConfigurationError) -> Double {
    guard let value = self[key] else { return try absent(key, fallback) }
    guard let n = value.double, n.isFinite else {
      throw ConfigurationError("\(architecture).\(key)", "must be a number")
    }
    return n
  }

  private func absent<T>(_ key: String, _ fallback: T?) throws(ConfigurationError) -> T {
    guard let fallback else { throw ConfigurationError("\(architecture).\(key)", "is missing") }
    return fallback
  }

  /// Rows of a matrix of the file.
  func rows(_ tensor: String) throws(ConfigurationError) -> Int {
    guard let shape = try? file.info(tensor).shape, shape.rank == 2, shape[0] > 0 else {
      throw ConfigurationError(tensor, "must be a stored matrix")
    }
    return shape[0]
  }

  func has(_ tensor: String) -> Bool { file.contains(tensor) }

  var layerCount: Int {
    get throws(ConfigurationError) {
      let count = try int("block_count")
      try require(
        (1...4096).contains(count), "\(architecture).block_count", "must be in 1...4096")
      return count
    }
  }
}
