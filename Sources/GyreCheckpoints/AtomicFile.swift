// Replacing a file so that every reader, and every crash, sees the old contents or the new, never a mixture.

/// Writes whole files: temporary file in the same folder, synchronise, rename, synchronise the folder.
///
/// If anything fails, the temporary is removed and the file of that name is what it was. A process that is killed
/// leaves the old file and a hidden temporary, which ``removeLeftovers(in:)`` deletes. A symbolic link at `path` is
/// replaced, not followed.
public enum AtomicFile {
  /// Replaces or creates the file at `path` with bytes.
  ///
  /// - Throws: `io`.
  @discardableResult
  public static func write(_ bytes: [UInt8], to path: String) throws(CheckpointError) -> FileDigest
  {
    try write(to: path) { (sink) throws(CheckpointError) in try sink.write(bytes) }
  }

  /// Replaces or creates the file at `path` with text in UTF-8.
  ///
  /// - Throws: `io`.
  @discardableResult
  public static func write(_ text: String, to path: String) throws(CheckpointError) -> FileDigest {
    try write(to: path) { (sink) throws(CheckpointError) in try sink.write(text) }
  }

  /// Replaces or creates the file at `path` with what `contents` writes.
  ///
  /// - Throws: `io`, and what `contents` throws.
  @discardableResult
  public static func write(
    to path: String, _ contents: (inout ByteSink) throws(CheckpointError) -> Void
  ) throws(CheckpointError) -> FileDigest {
    let folder = Path.folder(of: path)
    let held = try Temporary.createFile(in: folder, for: Path.name(of: path), shownAs: path)
    let temporary = held.path
    do throws(CheckpointError) {
      // The sink keeps the lock until after the rename.
      var sink = ByteSink(held.takeDescriptor())
      try contents(&sink)
      let digest = try sink.finish()
      try System.rename(temporary, to: path)
      try System.synchronizeFolder(folder)
      return digest
    } catch {
      System.remove(temporary)
      throw error
    }
  }

  /// Deletes the temporaries that killed processes left in a folder; those of living writers stay.
  ///
  /// - Returns: the names removed.
  @discardableResult
  public static func removeLeftovers(in folder: String) throws(CheckpointError) -> [String] {
    try Temporary.removeLeftovers(in: folder)
  }
}
