// The bytes of a file: mapped, or in memory.

/// Where an open file's values lie.
enum FileContents: Sendable {
  case mapped(MappedFile)
  case bytes([UInt8])

  /// Whether addresses hold while the value lives.
  var isMapped: Bool {
    if case .mapped = self { return true }
    return false
  }

  /// Calls `body` with some of the bytes; the pointer is valid during the call only.
  func withBytes<Result>(
    _ range: Range<Int>, _ body: (UnsafeRawBufferPointer) throws(CheckpointError) -> Result
  ) throws(CheckpointError) -> Result {
    switch self {
    case .mapped(let file):
      try file.withUnsafeBytes { (bytes) throws(CheckpointError) in
        try body(UnsafeRawBufferPointer(rebasing: bytes[range]))
      }
    case .bytes(let bytes):
      try bytes.withUnsafeBufferPointer { (bytes) throws(CheckpointError) in
        try body(UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(bytes)[range]))
      }
    }
  }
}
