// The list that makes a folder a checkpoint: written last, names every file with size and SHA-256.

/// Contents of `manifest.json`.
///
///     {
///       "format": "gyre-checkpoint",
///       "version": 1,
///       "step": 1234,
///       "files": {
///         "model.safetensors": { "byteCount": 4096, "sha256": "9f86d0…" }
///       }
///     }
public struct CheckpointManifest: Sendable, Hashable {
  /// Name of the file inside a checkpoint's folder.
  public static let fileName = "manifest.json"
  /// The version that this code writes and the newest that it reads.
  public static let formatVersion = 1

  private static let format = "gyre-checkpoint"
  private static let maximumByteCount = 1 << 24

  /// Training steps taken when the checkpoint was made.
  public let step: Int
  /// Size and SHA-256 of every file but the manifest, by name.
  public let files: [String: FileDigest]

  public init(step: Int, files: [String: FileDigest]) {
    self.step = step
    self.files = files
  }

  /// The JSON text; equal manifests give equal text.
  public var json: String {
    let lines = files.sorted { $0.key < $1.key }.map { name, digest in
      "    \(JSONText.quoted(name)): { \"byteCount\": \(digest.byteCount), \"sha256\": \"\(digest.sha256)\" }"
    }
    let list = lines.isEmpty ? "{}" : "{\n\(lines.joined(separator: ",\n"))\n  }"
    return """
      {
        "format": "\(Self.format)",
        "version": \(Self.formatVersion),
        "step": \(step),
        "files": \(list)
      }

      """
  }

  /// Reads a manifest file.
  ///
  /// - Throws: `notFound`, `io`, `corrupt`; `unsupported` for the manifest of a newer version.
  public init(path: String) throws(CheckpointError) {
    let file = try MappedFile(path: path)
    guard file.byteCount <= Self.maximumByteCount else {
      throw .corrupt(file: path, offset: 0, reason: "a manifest of \(file.byteCount) bytes")
    }
    self = try file.withUnsafeBytes { (bytes) throws(CheckpointError) in
      try Self(bytes, file: path)
    }
  }

  init(_ bytes: UnsafeRawBufferPointer, file: String) throws(CheckpointError) {
    var reader = JSONReader(bytes, file: file)
    var format: String?
    var version: Int?
    var step: Int?
    var files: [String: FileDigest]?
    try reader.object { (reader, key, _) throws(CheckpointError) in
      switch key {
      case "format": format = try reader.string()
      case "version": version = try reader.nonNegativeInteger()
      case "step": step = try reader.nonNegativeInteger()
      case "files": files = try Self.files(&reader)
      default: try reader.skipValue()
      }
    }
    try reader.end()
    guard format == Self.format, let version else {
      throw reader.corrupt("not a checkpoint manifest", at: 0)
    }
    guard version == Self.formatVersion else {
      throw .unsupported(
        file: file, subject: "manifest version \(version)",
        reason: "this version reads \(Self.formatVersion); use a newer gyre")
    }
    guard let step, let files else { throw reader.corrupt("no step or no files", at: 0) }
    self.init(step: step, files: files)
  }

  private static func files(
    _ reader: inout JSONReader
  ) throws(CheckpointError) -> [String: FileDigest] {
    var files: [String: FileDigest] = [:]
    try reader.object { (reader, name, offset) throws(CheckpointError) in
      guard Path.isPlainFileName(name) else {
        throw reader.corrupt("'\(name)' is not a plain file name", at: offset)
      }
      var byteCount: Int?
      var sha256: String?
      try reader.object { (reader, key, _) throws(CheckpointError) in
        switch key {
        case "byteCount": byteCount = try reader.nonNegativeInteger()
        case "sha256": sha256 = try reader.string()
        default: try reader.skipValue()
        }
      }
      guard let byteCount, let sha256 else {
        throw reader.corrupt("file '\(name)' has no byteCount or no sha256", at: offset)
      }
      files[name] = FileDigest(byteCount: byteCount, sha256: sha256)
    }
    return files
  }
}
