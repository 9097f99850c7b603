// The safetensors header: 8 bytes of length, a JSON object, then the data without holes.
// Format: https://github.com/huggingface/safetensors (README, "Format"). Pure: bytes in, value out.

import GyreTensors

/// The checked table of contents of a safetensors file.
struct SafetensorsHeader {
  /// The public library's limit, so that files stay portable.
  static let maximumByteCount = 100_000_000
  /// A tensor of more axes than any array library can hold is damage.
  static let maximumRank = 64
  static let metadataKey = "__metadata__"

  var metadata: [String: String] = [:]
  /// In the order of their data.
  var tensors: [TensorInfo] = []
  /// Where the data begins.
  var dataOffset = 0

  private struct Entry {
    var name: String
    var headerOffset: Int
    var typeName = ""
    var shape = Shape([])
    var begin = 0
    var end = 0
  }

  /// Parses and checks the header of a whole file.
  init(file bytes: UnsafeRawBufferPointer, name file: String) throws(CheckpointError) {
    guard bytes.count >= 8 else {
      throw .corrupt(
        file: file, offset: 0, reason: "\(bytes.count) bytes are too few for a safetensors file")
    }
    let length = UInt64(littleEndian: bytes.loadUnaligned(as: UInt64.self))
    guard length <= UInt64(Self.maximumByteCount) else {
      throw .corrupt(
        file: file, offset: 0,
        reason: "header length \(length) exceeds \(Self.maximumByteCount); not a safetensors file?")
    }
    guard Int(length) <= bytes.count - 8 else {
      throw .corrupt(
        file: file, offset: 0,
        reason: "header length \(length) exceeds the file of \(bytes.count) bytes; truncated?")
    }
    dataOffset = 8 + Int(length)
    let text = UnsafeRawBufferPointer(rebasing: bytes[8..<dataOffset])
    guard text.first == UInt8(ascii: "{") else {
      throw .corrupt(file: file, offset: 8, reason: "the header does not begin with '{'")
    }
    var reader = JSONReader(text, file: file, baseOffset: 8)
    let entries = try Self.entries(&reader, metadata: &metadata)
    tensors = try Self.layOut(entries, reader, file: file, dataOffset: dataOffset, end: bytes.count)
  }

  private static func entries(
    _ reader: inout JSONReader, metadata: inout [String: String]
  ) throws(CheckpointError) -> [Entry] {
    var entries: [Entry] = []
    var texts: [String: String] = [:]
    try reader.object { (reader, name, offset) throws(CheckpointError) in
      if name == metadataKey {
        try reader.object { (reader, key, _) throws(CheckpointError) in
          texts[key] = try reader.string()
        }
      } else {
        entries.append(try entry(&reader, name: name, offset: offset))
      }
    }
    try reader.end()
    metadata = texts
    return entries
  }

  private static func entry(
    _ reader: inout JSONReader, name: String, offset: Int
  ) throws(CheckpointError) -> Entry {
    var typeName: String?
    var extents: [Int]?
    var offsets: [Int]?
    try reader.object { (reader, key, _) throws(CheckpointError) in
      switch key {
      case "dtype": typeName = try reader.string()
      case "shape": extents = try numbers(&reader, atMost: maximumRank, "shape")
      case "data_offsets": offsets = try numbers(&reader, atMost: 2, "data_offsets")
      default: try reader.skipValue()
      }
    }
    guard let typeName, let extents, let offsets, offsets.count == 2 else {
      let missing =
        typeName == nil
        ? "dtype" : extents == nil ? "shape" : "data_offsets of two numbers"
      throw reader.corrupt("tensor '\(name)' has no \(missing)", at: offset)
    }
    return Entry(
      name: name, headerOffset: offset, typeName: typeName, shape: Shape(extents),
      begin: offsets[0], end: offsets[1])
  }

  private static func numbers(
    _ reader: inout JSONReader, atMost limit: Int, _ what: String
  ) throws(CheckpointError) -> [Int] {
    var numbers: [Int] = []
    try reader.array { (reader) throws(CheckpointError) in
      guard numbers.count < limit else {
        throw reader.corrupt("\(what) has more than \(limit) numbers")
      }
      numbers.append(try reader.nonNegativeInteger())
    }
    return numbers
  }

  /// Checks that the tensors cover the data exactly, without overlap or hole.
  private static func layOut(
    _ entries: [Entry], _ reader: JSONReader, file: String, dataOffset: Int, end: Int
  ) throws(CheckpointError) -> [TensorInfo] {
    let dataByteCount = end - dataOffset
    var tensors: [TensorInfo] = []
    tensors.reserveCapacity(entries.count)
    var covered = 0
    for entry in entries.sorted(by: { ($0.begin, $0.end) < ($1.begin, $1.end) }) {
      func problem(_ reason: String) -> CheckpointError {
        reader.corrupt("tensor '\(entry.name)' \(reason)", at: entry.headerOffset)
      }
      guard entry.begin <= entry.end else {
        throw problem("ends (\(entry.end)) before it begins (\(entry.begin))")
      }
      guard entry.end <= dataByteCount else {
        throw problem("ends at data byte \(entry.end), but there are \(dataByteCount); truncated?")
      }
      guard entry.begin >= covered else {
        throw problem("overlaps the tensor before it by \(covered - entry.begin) bytes")
      }
      guard entry.begin == covered else {
        throw problem("leaves a hole of \(entry.begin - covered) bytes before it")
      }
      try checkSize(entry, problem)
      covered = entry.end
      tensors.append(
        TensorInfo(
          name: entry.name, typeName: entry.typeName, shape: entry.shape, file: file,
          byteRange: dataOffset + entry.begin..<dataOffset + entry.end))
    }
    guard covered == dataByteCount else {
      throw .corrupt(
        file: file, offset: dataOffset + covered,
        reason: "\(dataByteCount - covered) bytes behind the last tensor")
    }
    return tensors
  }

  private static func checkSize(
    _ entry: Entry, _ problem: (String) -> CheckpointError
  ) throws(CheckpointError) {
    let type = StoredType(rawValue: entry.typeName)
    // The size of unknown elements cannot be checked, the product of the extents can.
    guard let expected = (type ?? .uint8).byteCount(of: entry.shape) else {
      throw problem("has the impossible size \(entry.typeName) \(entry.shape)")
    }
    guard type == nil || expected == entry.end - entry.begin else {
      throw problem(
        "is \(entry.typeName) \(entry.shape), \(expected) bytes, but has \(entry.end - entry.begin)"
      )
    }
  }
}
