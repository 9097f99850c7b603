// The checked head of a GGUF file: metadata and the table of tensors.
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Pure: bytes in, value out.

import GyreTensors

struct GGUFHeader {
  static let maximumRank = 4
  /// More tensors or keys than any model has are damage.
  static let maximumCount = 1 << 20
  static let maximumDepth = 4

  var metadata: [String: GGUFValue] = [:]
  /// Keys in the order of the file.
  var keys: [String] = []
  var tensors: [TensorInfo] = []
  var alignment = 32

  init(file bytes: UnsafeRawBufferPointer, name file: String) throws(CheckpointError) {
    var r = Reader(bytes: bytes, file: file)
    guard bytes.count >= 24, try r.number(UInt32.self) == 0x4655_4747 else {
      throw r.corrupt(at: 0, "not a GGUF file")
    }
    let version = try r.number(UInt32.self)
    guard version == 2 || version == 3 else {
      throw .unsupported(
        file: file, subject: "GGUF version \(version)", reason: "versions 2 and 3 are known")
    }
    let tensorCount = try r.count(UInt64(Self.maximumCount), of: "tensors", minimumByteCount: 24)
    let keyCount = try r.count(UInt64(Self.maximumCount), of: "keys", minimumByteCount: 13)
    for _ in 0..<keyCount {
      let place = r.offset
      let key = try r.string()
      let value = try r.value(depth: 0)
      guard metadata.updateValue(value, forKey: key) == nil else {
        throw r.corrupt(at: place, "key '\(key)' appears twice")
      }
      keys.append(key)
    }
    if let value = metadata["general.alignment"] {
      guard let n = value.int, (1...1 << 20).contains(n), n & (n - 1) == 0 else {
        throw r.corrupt(at: r.offset, "general.alignment must be a power of two")
      }
      alignment = n
    }
    var entries: [Entry] = []
    var names: Set<String> = []
    for _ in 0..<tensorCount {
      let entry = try Entry(&r)
      guard names.insert(entry.name).inserted else {
        throw r.corrupt(at: entry.place, "tensor '\(entry.name)' appears twice")
      }
      entries.append(entry)
    }
    let start = (r.offset + alignment - 1) / alignment * alignment
    tensors = try entries.map { (e) throws(CheckpointError) in
      try e.info(r, start: start, alignment: alignment)
    }
    try checkOverlaps(r, entries)
  }

  private func checkOverlaps(_ r: Reader, _ entries: [Entry]) throws(CheckpointError) {
    let order = tensors.indices.sorted {
      tensors[$0].byteRange.lowerBound < tensors[$1].byteRange.lowerBound
    }
    for (i, j) in zip(order, order.dropFirst())
    where tensors[i].byteRange.upperBound > tensors[j].byteRange.lowerBound {
      throw r.corrupt(
        at: entries[j].place, "tensors '\(tensors[i].name)' and '\(tensors[j].name)' overlap")
    }
  }

  /// One row of the table of tensors.
  private struct Entry {
    let name: String
    let place: Int
    let shape: Shape
    let type: UInt32
    let offset: UInt64

    init(_ r: inout Reader) throws(CheckpointError) {
      place = r.offset
      name = try r.string()
      let rank = try r.number(UInt32.self)
      guard rank <= UInt32(GGUFHeader.maximumRank) else {
        throw r.corrupt(at: place, "tensor '\(name)' has \(rank) axes")
      }
      var extents: [Int] = []
      for _ in 0..<rank {
        let extent = try r.number(UInt64.self)
        guard extent <= 1 << 40 else {
          throw r.corrupt(at: place, "tensor '\(name)' has an extent of \(extent)")
        }
        extents.append(Int(extent))
      }
      // The file names the innermost axis first.
      shape = Shape(extents.reversed())
      type = try r.number(UInt32.self)
      offset = try r.number(UInt64.self)
    }

    func info(_ r: Reader, start: Int, alignment: Int) throws(CheckpointError) -> TensorInfo {
      guard let type = BlockType(rawValue: type) else {
        throw .unsupported(
          file: r.file, subject: "tensor '\(name)'",
          reason: "element type \(type) is not among \(BlockType.allCases.map(\.name))")
      }
      guard let byteCount = type.byteCount(of: shape) else {
        throw r.corrupt(
          at: place,
          "tensor '\(name)': rows of \(shape) are not whole blocks of \(type.valuesPerBlock)")
      }
      guard offset % UInt64(alignment) == 0 else {
        throw r.corrupt(at: place, "tensor '\(name)' is not aligned to \(alignment) bytes")
      }
      let end = r.bytes.count
      guard start <= end, offset <= UInt64(end - start), byteCount <= end - start - Int(offset)
      else {
        throw r.corrupt(
          at: place,
          "tensor '\(name)' of \(byteCount) bytes ends after the file of \(end); truncated?")
      }
      let begin = start + Int(offset)
      return TensorInfo(
        name: name, typeName: type.name, shape: shape, file: r.file,
        byteRange: begin..<begin + byteCount)
    }
  }

  /// Little-endian values one after the other, each checked against the end.
  struct Reader {
    let bytes: UnsafeRawBufferPointer
    let file: String
    var offset = 0

    func corrupt(at place: Int, _ reason: String) -> CheckpointError {
      .corrupt(file: file, offset: place, reason: reason)
    }

    mutating func number<T: FixedWidthInteger & BitwiseCopyable>(
      _: T.Type
    ) throws(CheckpointError) -> T {
      let size = MemoryLayout<T>.size
      guard bytes.count - offset >= size else { throw corrupt(at: offset, "truncated") }
      defer { offset += size }
      return T(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
    }

    /// A count of things that each need some bytes of what is left.
    mutating func count(
      _ limit: UInt64, of what: String, minimumByteCount: Int
    ) throws(CheckpointError) -> Int {
      let place = offset
      let n = try number(UInt64.self)
      guard n <= limit, n <= UInt64((bytes.count - offset) / minimumByteCount) else {
        throw corrupt(at: place, "\(n) \(what) do not fit")
      }
      return Int(n)
    }

    mutating func string() throws(CheckpointError) -> String {
      let n = try count(.max, of: "bytes of text", minimumByteCount: 1)
      defer { offset += n }
      return String(decoding: bytes[offset..<offset + n], as: UTF8.self)
    }

    mutating func value(depth: Int) throws(CheckpointError) -> GGUFValue {
      let place = offset
      let raw = try number(UInt32.self)
      guard let type = GGUFValueType(rawValue: raw) else {
        throw corrupt(at: place, "value type \(raw) is unknown")
      }
      return try value(type, depth: depth)
    }

    private mutating func value(
      _ type: GGUFValueType, depth: Int
    ) throws(CheckpointError) -> GGUFValue {
      switch type {
      case .uint8: return .integer(Int64(try number(UInt8.self)))
      case .int8: return .integer(Int64(try number(Int8.self)))
      case .uint16: return .integer(Int64(try number(UInt16.self)))
      case .int16: return .integer(Int64(try number(Int16.self)))
      case .uint32: return .integer(Int64(try number(UInt32.self)))
      case .int32: return .integer(Int64(try number(Int32.self)))
      case .int64: return .integer(try number(Int64.self))
      case .uint64:
        let v = try number(UInt64.self)
        return Int64(exactly: v).map { .integer($0) } ?? .unsigned(v)
      case .float32: return .float(Double(Float(bitPattern: try number(UInt32.self))))
      case .float64: return .float(Double(bitPattern: try number(UInt64.self)))
      case .bool:
        let place = offset
        let v = try number(UInt8.self)
        guard v <= 1 else { throw corrupt(at: place, "a truth value of \(v)") }
        return .bool(v == 1)
      case .string: return .string(try string())
      case .array:
        let place = offset
        guard depth < GGUFHeader.maximumDepth else { throw corrupt(at: place, "arrays too deep") }
        let raw = try number(UInt32.self)
        guard let element = GGUFValueType(rawValue: raw) else {
          throw corrupt(at: place, "value type \(raw) is unknown")
        }
        let n = try count(1 << 26, of: "elements", minimumByteCount: element.minimumByteCount)
        var values: [GGUFValue] = []
        values.reserveCapacity(n)
        for _ in 0..<n { values.append(try value(element, depth: depth + 1)) }
        return .array(values)
      }
    }
  }
}
