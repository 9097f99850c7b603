// Writing one GGUF file (version 3).

import GyreTensors

/// Collects metadata and tensors and writes them as a GGUF file, atomically.
public struct GGUFWriter {
  /// Writes the values of one tensor: exactly its bytes.
  public typealias Content = (inout ByteSink) throws(CheckpointError) -> Void

  private struct Entry {
    var name: String
    var type: BlockType
    var shape: Shape
    var byteCount: Int
    var content: Content
  }

  private static let alignment = 32
  private var values: [(key: String, value: GGUFValue)] = []
  private var entries: [Entry] = []
  private var taken: Set<String> = []

  public init(architecture: String) { set("general.architecture", .string(architecture)) }

  /// Adds or replaces a piece of metadata; integers are written as uint32 where they fit, else as
  /// (u)int64, floats as float32.
  public mutating func set(_ key: String, _ value: GGUFValue) {
    if let i = values.firstIndex(where: { $0.key == key }) {
      values[i].value = value
    } else {
      values.append((key, value))
    }
  }

  /// Adds a tensor whose bytes `content` writes later.
  ///
  /// - Throws: `invalid` for a name that is taken and for shapes that the type cannot hold.
  public mutating func add(
    _ name: String, type: BlockType, shape: Shape, content: @escaping Content
  ) throws(CheckpointError) {
    let subject = "tensor '\(name)'"
    guard shape.rank <= GGUFHeader.maximumRank, shape.dimensions.allSatisfy({ $0 >= 0 }),
      let byteCount = type.byteCount(of: shape)
    else { throw .invalid(subject: subject, reason: "impossible shape \(type.name) \(shape)") }
    guard taken.insert(name).inserted else {
      throw .invalid(subject: subject, reason: "the name is taken")
    }
    entries.append(
      Entry(name: name, type: type, shape: shape, byteCount: byteCount, content: content))
  }

  /// Adds values converted to `type`; rows that are no whole blocks are kept as float32, vectors
  /// always.
  ///
  /// - Throws: as ``add(_:type:shape:content:)``.
  public mutating func add(
    _ name: String, _ values: @escaping @Sendable () throws(CheckpointError) -> [Float],
    shape: Shape, as type: BlockType
  ) throws(CheckpointError) {
    let fits = shape.rank >= 2 && shape.last % type.valuesPerBlock == 0 && type.canPack
    let type = fits ? type : .float32
    try add(name, type: type, shape: shape) { (sink) throws(CheckpointError) in
      let floats = try values()
      try sink.write(floats.withUnsafeBufferPointer { type.pack($0) })
    }
  }

  /// Replaces or creates the file at `path`.
  ///
  /// - Throws: `io`; `invalid` if a tensor's closure wrote another number of bytes.
  @discardableResult
  public func write(to path: String) throws(CheckpointError) -> FileDigest {
    try AtomicFile.write(to: path) { (sink) throws(CheckpointError) in
      let head = try head()
      try sink.write(head)
      try sink.write(padding(head.count))
      for entry in entries {
        let start = sink.byteCount
        try entry.content(&sink)
        guard sink.byteCount - start == entry.byteCount else {
          throw .invalid(
            subject: "tensor '\(entry.name)'",
            reason: "\(entry.byteCount) bytes are due, \(sink.byteCount - start) were written")
        }
        try sink.write(padding(entry.byteCount))
      }
    }
  }

  private func padding(_ count: Int) -> [UInt8] {
    [UInt8](repeating: 0, count: (Self.alignment - count % Self.alignment) % Self.alignment)
  }

  private func head() throws(CheckpointError) -> [UInt8] {
    var out = Bytes()
    out.raw.append(contentsOf: "GGUF".utf8)
    out.number(UInt32(3))
    out.number(UInt64(entries.count))
    out.number(UInt64(values.count))
    for (key, value) in values {
      out.string(key)
      out.number(Bytes.type(of: value).rawValue)
      try out.value(value, key: key)
    }
    var offset = 0
    for entry in entries {
      out.string(entry.name)
      out.number(UInt32(entry.shape.rank))
      for extent in entry.shape.dimensions.reversed() { out.number(UInt64(extent)) }
      out.number(entry.type.rawValue)
      out.number(UInt64(offset))
      offset += entry.byteCount + padding(entry.byteCount).count
    }
    return out.raw
  }

  private struct Bytes {
    var raw: [UInt8] = []

    static func type(of value: GGUFValue) -> GGUFValueType {
      switch value {
      case .integer(let v):
        UInt32(exactly: v) != nil ? .uint32 : Int32(exactly: v) != nil ? .int32 : .int64
      case .unsigned: .uint64
      case .float: .float32
      case .bool: .bool
      case .string: .string
      case .array: .array
      }
    }

    mutating func number<T: FixedWidthInteger>(_ value: T) {
      withUnsafeBytes(of: value.littleEndian) { raw.append(contentsOf: $0) }
    }

    mutating func string(_ text: String) {
      number(UInt64(text.utf8.count))
      raw.append(contentsOf: text.utf8)
    }

    mutating func value(_ value: GGUFValue, key: String) throws(CheckpointError) {
      switch value {
      case .integer(let v):
        switch Bytes.type(of: value) {
        case .uint32: number(UInt32(truncatingIfNeeded: v))
        case .int32: number(Int32(truncatingIfNeeded: v))
        default: number(v)
        }
      case .unsigned(let v): number(v)
      case .float(let v): number(Float(v).bitPattern)
      case .bool(let v): raw.append(v ? 1 : 0)
      case .string(let v): string(v)
      case .array(let elements):
        // Arrays have one type. Readers insist on int32 where integers fit in it (token_type), and on
        // strings where a list of them is empty (merges).
        let types = Set(elements.map(Bytes.type(of:)))
        let areIntegers = types.isSubset(of: [.uint32, .int32, .int64])
        guard types.count <= 1 || areIntegers else {
          throw .invalid(subject: "metadata '\(key)'", reason: "an array of several types")
        }
        let areSmall = elements.allSatisfy { $0.int.flatMap(Int32.init(exactly:)) != nil }
        let type: GGUFValueType =
          elements.isEmpty
          ? .string
          : areIntegers ? (areSmall ? .int32 : .int64) : types.first ?? .string
        number(type.rawValue)
        number(UInt64(elements.count))
        for element in elements {
          if case .integer(let v) = element {
            if type == .int32 { number(Int32(truncatingIfNeeded: v)) } else { number(v) }
          } else {
            try self.value(element, key: key)
          }
        }
      }
    }
  }
}
