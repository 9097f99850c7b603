// Fills the folder of a checkpoint that is being saved.

/// Adds files to a checkpoint; given to the closure of ``DirectoryStore/save(step:write:)`` and useless after it.
///
/// File names are plain: no separators, not hidden, not `manifest.json`; each is written once.
public final class CheckpointWriter {
  /// The step that is being saved.
  public let step: Int

  private let folder: String
  private var files: [String: FileDigest] = [:]
  private var isFinished = false

  init(step: Int, folder: String) {
    self.step = step
    self.folder = folder
  }

  /// Writes a safetensors file.
  ///
  /// - Throws: `invalid` for the name, `io`, and as ``SafetensorsWriter/write(to:)``.
  public func write(_ name: String, tensors: SafetensorsWriter) throws(CheckpointError) {
    try write(name) { (sink) throws(CheckpointError) in try tensors.write(into: &sink) }
  }

  /// Writes text in UTF-8, such as JSON.
  ///
  /// - Throws: `invalid` for the name, `io`.
  public func write(_ name: String, text: String) throws(CheckpointError) {
    try write(name) { (sink) throws(CheckpointError) in try sink.write(text) }
  }

  /// Writes bytes.
  ///
  /// - Throws: `invalid` for the name, `io`.
  public func write(_ name: String, bytes: [UInt8]) throws(CheckpointError) {
    try write(name) { (sink) throws(CheckpointError) in try sink.write(bytes) }
  }

  /// Writes what `contents` puts into the sink.
  ///
  /// - Throws: `invalid` for the name, `io`, what `contents` throws.
  public func write(
    _ name: String, contents: (inout ByteSink) throws(CheckpointError) -> Void
  ) throws(CheckpointError) {
    let subject = "file '\(name)' of a checkpoint"
    guard !isFinished else { throw .invalid(subject: subject, reason: "the checkpoint is closed") }
    guard Path.isPlainFileName(name), name != CheckpointManifest.fileName else {
      throw .invalid(subject: subject, reason: "the name is not a plain file name or is reserved")
    }
    guard files[name] == nil else {
      throw .invalid(subject: subject, reason: "it was written before")
    }
    files[name] = try create(name, contents)
  }

  private func create(
    _ name: String, _ contents: (inout ByteSink) throws(CheckpointError) -> Void
  ) throws(CheckpointError) -> FileDigest {
    let path = Path.join(folder, name)
    var sink = ByteSink(try Descriptor.create(path, shownAs: path))
    do throws(CheckpointError) {
      try contents(&sink)
      return try sink.finish()
    } catch {
      // A caller that catches the error may go on without this file, or write it again.
      System.remove(path)
      throw error
    }
  }

  /// Seals the folder: the manifest is the last file, then the folder itself is made durable.
  func finish() throws(CheckpointError) {
    isFinished = true
    let manifest = CheckpointManifest(step: step, files: files)
    _ = try create(CheckpointManifest.fileName) { (sink) throws(CheckpointError) in
      try sink.write(manifest.json)
    }
    try System.synchronizeFolder(folder)
  }

  /// Refuses further files.
  func close() { isFinished = true }
}
