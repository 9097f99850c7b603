// Writing one safetensors file: a table of tensors whose values are made when their turn comes.

import GyreTensors

/// Collects tensors and writes them as a safetensors file.
///
/// With `.byType` the bytes are those of the public library for the same tensors. Values stream from closures, so that
/// only the tensor at hand needs to be in memory.
public struct SafetensorsWriter {
  /// In which order the data is laid out.
  public enum Order: Sendable {
    /// Element types from the widest to the narrowest, names within; keeps every tensor aligned.
    case byType
    /// As added; tensors behind narrower ones may be unaligned.
    case asAdded
  }

  /// Writes the values of one tensor: exactly its bytes, little-endian, row-major.
  public typealias Content = (inout ByteSink) throws(CheckpointError) -> Void

  /// Free texts for the header's `__metadata__`.
  public var metadata: [String: String]
  /// In which order the data is laid out.
  public var order: Order

  private struct Entry {
    var name: String
    var type: StoredType
    var shape: Shape
    var byteCount: Int
    var content: Content
  }

  private var entries: [Entry] = []
  private var taken: Set<String> = []

  public init(metadata: [String: String] = [:], order: Order = .byType) {
    self.metadata = metadata
    self.order = order
  }

  /// Adds a tensor whose values `content` writes later, once per file written.
  ///
  /// - Throws: `invalid` for a name that is taken or reserved and for sizes that overflow.
  public mutating func add(
    _ name: String, type: StoredType, shape: Shape, content: @escaping Content
  ) throws(CheckpointError) {
    let subject = "tensor '\(name)'"
    guard name != SafetensorsHeader.metadataKey else {
      throw .invalid(subject: subject, reason: "the name is reserved for metadata")
    }
    guard shape.rank <= SafetensorsHeader.maximumRank, shape.dimensions.allSatisfy({ $0 >= 0 }),
      let byteCount = type.byteCount(of: shape)
    else {
      throw .invalid(subject: subject, reason: "impossible shape \(type.rawValue) \(shape)")
    }
    guard taken.insert(name).inserted else {
      throw .invalid(subject: subject, reason: "the name is taken")
    }
    entries.append(
      Entry(name: name, type: type, shape: shape, byteCount: byteCount, content: content))
  }

  /// Adds a tensor whose values `content` writes later.
  ///
  /// - Throws: as ``add(_:type:shape:content:)``.
  public mutating func add(
    _ name: String, dtype: DType, shape: Shape, content: @escaping Content
  ) throws(CheckpointError) {
    try add(name, type: try Self.stored(dtype, name), shape: shape, content: content)
  }

  /// Adds a tensor of plain values, such as `[Float]` for float32 or `[UInt16]` for the bits of bfloat16.
  ///
  /// - Throws: as ``add(_:type:shape:content:)``; `invalid` if the values do not fill the shape.
  public mutating func add<Element: BitwiseCopyable>(
    _ name: String, dtype: DType, shape: Shape, values: [Element]
  ) throws(CheckpointError) {
    let given = values.count * MemoryLayout<Element>.stride
    guard try Self.stored(dtype, name).byteCount(of: shape) == given else {
      throw .invalid(
        subject: "tensor '\(name)'", reason: "\(given) bytes do not make \(dtype) \(shape)")
    }
    try add(name, dtype: dtype, shape: shape) { (sink) throws(CheckpointError) in
      try sink.write(values)
    }
  }

  private static func stored(
    _ dtype: DType, _ name: String
  ) throws(CheckpointError) -> StoredType {
    guard let type = StoredType(dtype) else {
      throw .invalid(
        subject: "tensor '\(name)'", reason: "safetensors files have no \(dtype.rawValue)")
    }
    return type
  }

  /// Adds a tensor of another source, read when it is written.
  ///
  /// - Throws: `notFound`; `unsupported` for an element type of unknown size; as ``add(_:type:shape:content:)``.
  public mutating func add(
    _ name: String, from source: some TensorSource, as newName: String? = nil
  ) throws(CheckpointError) {
    let info = try source.info(name)
    guard let type = info.storedType else {
      throw .unsupported(
        file: info.file, subject: "copying tensor '\(name)'",
        reason: "element type \(info.typeName) is unknown")
    }
    try add(newName ?? name, type: type, shape: info.shape) { (sink) throws(CheckpointError) in
      try source.withBytes(name) { (bytes) throws(CheckpointError) in try sink.write(bytes) }
    }
  }

  /// Replaces or creates the file at `path`; see ``AtomicFile`` for what failures leave.
  ///
  /// - Returns: size and SHA-256 of the file.
  /// - Throws: `io`; `invalid` if a tensor's closure wrote another number of bytes; what the closures throw.
  @discardableResult
  public func write(to path: String) throws(CheckpointError) -> FileDigest {
    try AtomicFile.write(to: path) { (sink) throws(CheckpointError) in try write(into: &sink) }
  }

  /// Appends the whole file to a sink.
  func write(into sink: inout ByteSink) throws(CheckpointError) {
    let ordered = ordered()
    try sink.write(try header(of: ordered))
    for entry in ordered {
      let start = sink.byteCount
      try entry.content(&sink)
      guard sink.byteCount - start == entry.byteCount else {
        throw .invalid(
          subject: "tensor '\(entry.name)'",
          reason: "\(entry.type.rawValue) \(entry.shape) has \(entry.byteCount) bytes, but "
            + "\(sink.byteCount - start) were written")
      }
    }
  }

  private func ordered() -> [Entry] {
    guard order == .byType else { return entries }
    let rank = Dictionary(uniqueKeysWithValues: zip(StoredType.allCases, 0...))
    return entries.sorted { first, second in
      if first.type != second.type {
        return rank[first.type, default: 0] > rank[second.type, default: 0]
      }
      return Self.precedes(first.name, second.name)
    }
  }

  /// Order of the bytes of UTF-8, which `String` does not have for all scripts.
  private static func precedes(_ first: String, _ second: String) -> Bool {
    first.utf8.lexicographicallyPrecedes(second.utf8)
  }

  /// Length and JSON text, padded with spaces so that the data begins at a multiple of 8.
  private func header(of ordered: [Entry]) throws(CheckpointError) -> [UInt8] {
    var parts: [String] = []
    if !metadata.isEmpty {
      let texts = metadata.sorted { Self.precedes($0.key, $1.key) }
        .map { "\(JSONText.quoted($0.key)):\(JSONText.quoted($0.value))" }
      parts.append("\"\(SafetensorsHeader.metadataKey)\":{\(texts.joined(separator: ","))}")
    }
    var offset = 0
    for entry in ordered {
      let (end, overflow) = offset.addingReportingOverflow(entry.byteCount)
      guard !overflow else {
        throw .invalid(subject: "tensor '\(entry.name)'", reason: "the file would exceed 2⁶³ bytes")
      }
      let extents = entry.shape.dimensions.map(String.init).joined(separator: ",")
      parts.append(
        "\(JSONText.quoted(entry.name)):{\"dtype\":\"\(entry.type.rawValue)\",\"shape\":[\(extents)],"
          + "\"data_offsets\":[\(offset),\(end)]}")
      offset = end
    }
    var text = Array("{\(parts.joined(separator: ","))}".utf8)
    text.append(contentsOf: repeatElement(0x20, count: (8 - text.count % 8) % 8))
    guard text.count <= SafetensorsHeader.maximumByteCount else {
      throw .invalid(
        subject: "safetensors header",
        reason: "\(text.count) bytes exceed the format's \(SafetensorsHeader.maximumByteCount)")
    }
    let length = withUnsafeBytes(of: UInt64(text.count).littleEndian, Array.init)
    return length + text
  }
}
