// Read-only view of a whole file in memory.

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#elseif canImport(Darwin)
  import Darwin
#endif

/// A file mapped read-only into memory; pages are loaded when they are first touched.
///
/// The mapping outlives the file's name: a file that is deleted or replaced by a rename, as all writers of this
/// module do, stays readable here in its old contents.
///
/// - Warning: If another process *truncates the same file in place* (`> file`, `cp` over it), touching pages behind
///   the new end raises SIGBUS, which no check here can prevent. Files that others may rewrite in place are to be read
///   with ``SafetensorsFile/init(bytes:name:)`` or copied first.
public final class MappedFile: Sendable {
  /// The path that was opened.
  public let path: String
  /// Size of the file when it was mapped.
  public let byteCount: Int
  // Immutable for the lifetime of the object; PROT_READ keeps every thread from writing.
  nonisolated(unsafe) private let base: UnsafeRawPointer?

  /// Maps the file at `path`; an empty file gives an empty buffer.
  ///
  /// - Throws: `notFound`; `unsupported` for folders and devices; `io` otherwise.
  public init(path: String) throws(CheckpointError) {
    let file = try Descriptor.open(path)
    let status = try file.status()
    guard System.kind(status) == .file else {
      throw .unsupported(file: path, subject: "mapping", reason: "it is not a regular file")
    }
    guard let byteCount = Int(exactly: status.st_size), byteCount >= 0 else {
      throw .io(operation: "map", path: path, errno: EFBIG)
    }
    self.path = path
    self.byteCount = byteCount
    if byteCount == 0 {
      base = nil
      return
    }
    let address = mmap(nil, byteCount, PROT_READ, MAP_PRIVATE, file.raw, 0)
    guard let address, address != MAP_FAILED else {
      throw .io(operation: "map", path: path, errno: errno)
    }
    base = UnsafeRawPointer(address)
  }

  deinit {
    if let base { munmap(UnsafeMutableRawPointer(mutating: base), byteCount) }
  }

  /// Calls `body` with the contents; the pointer is valid during the call only.
  public func withUnsafeBytes<Result, Failure: Error>(
    _ body: (UnsafeRawBufferPointer) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try body(UnsafeRawBufferPointer(start: base, count: byteCount))
  }

  /// Asks the kernel to load a range ahead of use, for sequential loading of weights.
  ///
  /// - Parameter range: byte offsets inside the file; clamped to it.
  public func prefetch(_ range: Range<Int>) {
    guard let base else { return }
    let pageMask = Int(getpagesize()) - 1
    let range = range.clamped(to: 0..<byteCount)
    let start = range.lowerBound & ~pageMask
    guard range.upperBound > start else { return }
    madvise(
      UnsafeMutableRawPointer(mutating: base + start), range.upperBound - start, MADV_WILLNEED)
  }
}
