// A checkpoint on disk whose contents were compared with its manifest.

/// How much of a checkpoint is compared with its manifest before it is used.
public enum Verification: Sendable {
  /// Every file is read once and its SHA-256 compared.
  case contents
  /// Only that every file is there with the right size.
  case sizes
}

/// A complete checkpoint folder.
public struct StoredCheckpoint: Sendable {
  /// Training steps taken when it was saved.
  public let step: Int
  /// Its folder.
  public let path: String
  /// Its list of files.
  public let manifest: CheckpointManifest
  /// Newer checkpoints that were passed over because they are damaged; worth a warning.
  public let skipped: [RejectedCheckpoint]

  /// Names of its files without the manifest, sorted.
  public var files: [String] { manifest.files.keys.sorted() }

  /// Opens and verifies the folder of a checkpoint, for example one copied from elsewhere.
  ///
  /// - Throws: `notFound`, `io`, `unsupported`; `corrupt` naming the first damaged file.
  public init(path: String, verifying verification: Verification = .contents)
    throws(CheckpointError)
  {
    try self.init(path: path, step: nil, verifying: verification, skipped: [])
  }

  init(
    path: String, step: Int?, verifying verification: Verification, skipped: [RejectedCheckpoint]
  ) throws(CheckpointError) {
    let manifestPath = Path.join(path, CheckpointManifest.fileName)
    let manifest = try CheckpointManifest(path: manifestPath)
    if let step, manifest.step != step {
      throw .corrupt(
        file: manifestPath, offset: 0,
        reason: "it is of step \(manifest.step), the folder of \(step)")
    }
    // Sizes first: they find truncation without reading gigabytes.
    for (name, expected) in manifest.files.sorted(by: { $0.key < $1.key }) {
      let file = Path.join(path, name)
      let size = try Descriptor.open(file).size()
      guard size == expected.byteCount else {
        throw .corrupt(
          file: file, offset: min(size, expected.byteCount),
          reason: "\(size) bytes instead of the \(expected.byteCount) of its manifest")
      }
    }
    if verification == .contents {
      for (name, expected) in manifest.files.sorted(by: { $0.key < $1.key }) {
        let file = Path.join(path, name)
        guard try FileDigest(ofFile: file) == expected else {
          throw .corrupt(file: file, offset: 0, reason: "its SHA-256 is not that of its manifest")
        }
      }
    }
    self.step = manifest.step
    self.path = path
    self.manifest = manifest
    self.skipped = skipped
  }

  /// The path of a file of this checkpoint.
  ///
  /// - Throws: `notFound` for a name that the manifest does not list, whether or not such a file exists.
  public func path(of file: String) throws(CheckpointError) -> String {
    let path = Path.join(self.path, file)
    guard manifest.files[file] != nil else { throw .notFound(path: path) }
    return path
  }

  /// Opens a safetensors file of this checkpoint.
  ///
  /// - Throws: `notFound`, `io`, `corrupt`.
  public func tensors(_ file: String) throws(CheckpointError) -> SafetensorsFile {
    try SafetensorsFile(path: path(of: file))
  }

  /// Reads a whole file of this checkpoint, meant for small ones.
  ///
  /// - Throws: `notFound`, `io`.
  public func bytes(of file: String) throws(CheckpointError) -> [UInt8] {
    try MappedFile(path: path(of: file)).withUnsafeBytes { Array($0) }
  }
}

/// A checkpoint that cannot be used, and why.
public struct RejectedCheckpoint: Sendable, Hashable, CustomStringConvertible {
  /// Step in the folder's name.
  public let step: Int
  /// Its folder.
  public let path: String
  /// What is wrong with it.
  public let error: CheckpointError

  public var description: String { "checkpoint of step \(step): \(error)" }
}
