// Where file contents go: buffered, hashed on the way, every error typed.

import Crypto

/// Size and SHA-256 of a file's contents.
public struct FileDigest: Sendable, Hashable {
  /// Bytes of the file.
  public let byteCount: Int
  /// 64 lower-case hexadecimal digits.
  public let sha256: String

  public init(byteCount: Int, sha256: String) {
    self.byteCount = byteCount
    self.sha256 = sha256
  }

  /// Reads a file once, in pieces of 1 MiB, and digests it.
  ///
  /// Reads instead of mapping: a damaged or truncated file is then an error and not a signal.
  public init(ofFile path: String) throws(CheckpointError) {
    let file = try Descriptor.open(path)
    var hash = SHA256()
    var total = 0
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
    defer { buffer.deallocate() }
    while true {
      let count = try file.read(into: buffer)
      if count == 0 { break }
      hash.update(bufferPointer: UnsafeRawBufferPointer(rebasing: buffer[..<count]))
      total += count
    }
    self.init(byteCount: total, hash)
  }

  init(byteCount: Int, _ hash: SHA256) {
    self.byteCount = byteCount
    let digits = Array("0123456789abcdef".utf8)
    sha256 = String(
      decoding: hash.finalize().flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] },
      as: UTF8.self)
  }
}

/// A file being written: collects small writes, digests everything, counts what it took.
public struct ByteSink: ~Copyable {
  private static let capacity = 1 << 18

  private let file: Descriptor
  private var pending: [UInt8] = []
  private var hash = SHA256()
  /// Bytes accepted so far.
  public private(set) var byteCount = 0

  init(_ file: consuming Descriptor) { self.file = file }

  /// Appends bytes.
  ///
  /// - Throws: `io`, for example when the volume is full.
  public mutating func write(_ bytes: UnsafeRawBufferPointer) throws(CheckpointError) {
    byteCount += bytes.count
    if pending.count + bytes.count <= Self.capacity {
      pending.append(contentsOf: bytes)
      return
    }
    try flush()
    // Pieces that stay in the cache between the digest and the system call.
    var rest = bytes[...]
    while !rest.isEmpty {
      let piece = UnsafeRawBufferPointer(rebasing: rest.prefix(Self.capacity))
      hash.update(bufferPointer: piece)
      try file.write(piece)
      rest = rest.dropFirst(piece.count)
    }
  }

  /// Appends the memory of plain values, little-endian.
  public mutating func write<Element: BitwiseCopyable>(
    _ elements: [Element]
  ) throws(CheckpointError) {
    let count = elements.count * MemoryLayout<Element>.stride
    var failure: CheckpointError?
    elements.withUnsafeBufferPointer { buffer in
      do throws(CheckpointError) {
        try write(UnsafeRawBufferPointer(start: buffer.baseAddress, count: count))
      } catch {
        failure = error
      }
    }
    if let failure { throw failure }
  }

  /// Appends text as UTF-8.
  public mutating func write(_ text: String) throws(CheckpointError) { try write(Array(text.utf8)) }

  private mutating func flush() throws(CheckpointError) {
    // Moved out and back, so that the buffer is neither copied nor aliased during the call.
    var bytes: [UInt8] = []
    swap(&bytes, &pending)
    var failure: CheckpointError?
    bytes.withUnsafeBytes { buffer in
      hash.update(bufferPointer: buffer)
      do throws(CheckpointError) {
        try file.write(buffer)
      } catch {
        failure = error
      }
    }
    if let failure { throw failure }
    bytes.removeAll(keepingCapacity: true)
    pending = bytes
  }

  /// Writes what is pending and waits until all of it is on the medium. The file stays open, and so locked.
  mutating func finish() throws(CheckpointError) -> FileDigest {
    try flush()
    try file.synchronize()
    return FileDigest(byteCount: byteCount, hash)
  }
}
