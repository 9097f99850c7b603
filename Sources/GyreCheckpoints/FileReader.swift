// Parts of a file, read where they are wanted.

/// A file that is read in parts. Unlike a mapping it needs memory for the part at hand only, and a file that is
/// truncated under it is an error and not a signal.
public final class FileReader: Sendable {
  public let path: String
  /// Size of the file when it was opened.
  public let byteCount: Int
  private let file: Descriptor

  /// Opens the file at `path`.
  ///
  /// - Throws: `notFound`; `unsupported` for folders and devices; `io` otherwise.
  public init(path: String) throws(CheckpointError) {
    file = try Descriptor.open(path)
    let status = try file.status()
    guard System.kind(status) == .file else {
      throw .unsupported(file: path, subject: "reading", reason: "it is not a regular file")
    }
    self.path = path
    byteCount = try file.size()
  }

  /// The bytes of a range.
  ///
  /// - Throws: `io`; `unsupported` where the file has become shorter.
  public func read(_ range: Range<Int>) throws(CheckpointError) -> [UInt8] {
    var failure: CheckpointError?
    let bytes = [UInt8](unsafeUninitializedCapacity: range.count) { buffer, count in
      do throws(CheckpointError) {
        while count < range.count {
          let rest = UnsafeMutableRawBufferPointer(
            rebasing: UnsafeMutableRawBufferPointer(buffer)[count...])
          let got = try file.read(into: rest, at: range.lowerBound + count)
          guard got > 0 else {
            throw .unsupported(
              file: path, subject: "reading",
              reason: "it became shorter, \(range.lowerBound + count) bytes, while it was read")
          }
          count += got
        }
      } catch { failure = error }
    }
    if let failure { throw failure }
    return bytes
  }
}
