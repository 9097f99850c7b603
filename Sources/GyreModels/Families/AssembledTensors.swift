import GyreCheckpoints
import GyreTensors

/// Tensors made of rows of the tensors of another source, without holding any.
public struct AssembledTensors: TensorSource {
  struct Segment: Sendable, Hashable {
    /// The source's tensor.
    var name: String
    var sourceRow: Int
    var row: Int
    var count: Int
  }
  struct Entry: Sendable {
    var shape: Shape
    /// Rows that the elements are cut into; 1 for a whole tensor.
    var rows: Int
    /// Whether the one segment is the transposed matrix.
    var transposes: Bool
    var segments: [Segment]

    /// The source's tensor where it is taken as it is.
    var whole: String? {
      guard segments.count == 1, !transposes, segments[0].sourceRow == 0,
        segments[0].count == rows
      else { return nil }
      return segments[0].name
    }
  }

  let source: any TensorSource
  var entries: [String: Entry] = [:]

  init(_ source: any TensorSource) { self.source = source }

  public var names: [String] { entries.keys.sorted() }
  public var metadata: [String: String] { source.metadata }
  public func contains(_ name: String) -> Bool { entries[name] != nil }

  private func entry(_ name: String) throws(CheckpointError) -> Entry {
    guard let entry = entries[name] else { throw .notFound(path: "assembled#\(name)") }
    return entry
  }

  /// Which tensor of the source this one is without a change of bytes; nil where there is none.
  func alias(of name: String) throws(CheckpointError) -> String? {
    let entry = try entry(name)
    guard let whole = entry.whole else { return nil }
    return try source.info(whole).shape.elementCount == entry.shape.elementCount ? whole : nil
  }

  public func info(_ name: String) throws(CheckpointError) -> TensorInfo {
    let entry = try entry(name)
    if let alias = try alias(of: name) {
      let info = try source.info(alias)
      return TensorInfo(
        name: name, typeName: info.typeName, shape: entry.shape, file: info.file,
        byteRange: info.byteRange)
    }
    let type = try type(of: entry)
    let file = try entry.segments.first.map { segment throws(CheckpointError) in
      try source.info(segment.name).file
    }
    return TensorInfo(
      name: name, typeName: type.name, shape: entry.shape, file: file ?? "memory",
      byteRange: 0..<type.bytes(entry.shape.elementCount))
  }

  /// Element types by what a run of elements takes: plain ones, and blocks that rows are made of.
  private struct PartType: Hashable {
    var name: String
    var values = 1
    var size: Int

    static let float32 = PartType(name: StoredType.float32.rawValue, size: 4)
    func bytes(_ count: Int) -> Int { count / values * size }

    init(name: String, size: Int) { (self.name, self.size) = (name, size) }

    init?(_ info: TensorInfo) {
      name = info.typeName
      if let type = info.storedType, type.bitCount % 8 == 0 {
        size = type.bitCount / 8
      } else if let blocks = info.blockType, blocks.isQuantized {
        (values, size) = (blocks.valuesPerBlock, blocks.bytesPerBlock)
      } else {
        return nil
      }
    }
  }

  /// The common stored type of the parts; float32 where they differ, and where blocks would be cut.
  private func type(of entry: Entry) throws(CheckpointError) -> PartType {
    var types: Set<PartType> = []
    for segment in entry.segments {
      let info = try source.info(segment.name)
      guard let type = PartType(info) else {
        throw .unsupported(
          file: info.file, subject: "tensor '\(info.name)'",
          reason: "parts of type \(info.typeName) cannot be taken")
      }
      types.insert(type)
    }
    guard types.count == 1, let type = types.first else { return .float32 }
    let row = entry.shape.elementCount / max(entry.rows, 1)
    return type.values == 1 || (!entry.transposes && row % type.values == 0) ? type : .float32
  }

  public func withBytes<Result>(
    _ name: String, _ body: (UnsafeRawBufferPointer) throws(CheckpointError) -> Result
  ) throws(CheckpointError) -> Result {
    if let alias = try alias(of: name) { return try source.withBytes(alias, body) }
    let entry = try entry(name)
    let type = try type(of: entry)
    let count = entry.shape.elementCount
    var bytes = [UInt8](repeating: 0, count: type.bytes(count))
    let rowBytes = type.bytes(count / max(entry.rows, 1))
    for segment in entry.segments {
      let target = segment.row * rowBytes..<(segment.row + segment.count) * rowBytes
      let start = segment.sourceRow * rowBytes
      let part = try PartType(source.info(segment.name))
      try copy(
        from: segment.name, converting: part != type, start..<start + target.count,
        into: &bytes, at: target.lowerBound)
    }
    if entry.transposes, entry.shape.rank == 2 {
      bytes = Self.transposed(
        bytes, rows: entry.shape[1], columns: entry.shape[0], elementSize: type.size)
    }
    return try bytes.withUnsafeBufferPointer { (buffer) throws(CheckpointError) in
      try body(UnsafeRawBufferPointer(buffer))
    }
  }

  private func copy(
    from name: String, converting: Bool, _ range: Range<Int>, into bytes: inout [UInt8],
    at offset: Int
  ) throws(CheckpointError) {
    func take(_ all: UnsafeRawBufferPointer) throws(CheckpointError) {
      guard range.upperBound <= all.count else {
        throw .invalid(
          subject: "tensor '\(name)'", reason: "bytes \(range) of \(all.count) are asked for")
      }
      bytes.withUnsafeMutableBytes { target in
        UnsafeMutableRawBufferPointer(rebasing: target[offset..<offset + range.count])
          .copyMemory(from: UnsafeRawBufferPointer(rebasing: all[range]))
      }
    }
    if converting {
      let values = try source.readFloat32(name)
      try values.withUnsafeBufferPointer { (buffer) throws(CheckpointError) in
        try take(UnsafeRawBufferPointer(buffer))
      }
    } else {
      try source.withBytes(name, take)
    }
  }

  private static func transposed(
    _ bytes: [UInt8], rows: Int, columns: Int, elementSize size: Int
  ) -> [UInt8] {
    var result = bytes
    for r in 0..<rows {
      for c in 0..<columns {
        for b in 0..<size {
          result[(c * rows + r) * size + b] = bytes[(r * columns + c) * size + b]
        }
      }
    }
    return result
  }
}
