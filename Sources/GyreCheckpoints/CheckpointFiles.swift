// Folders as converters need them.

/// The few things that writers of model folders do with the file system.
public enum CheckpointFiles {
  /// Creates a folder and those above it; one that exists is fine.
  ///
  /// - Throws: `io`.
  public static func createFolder(_ path: String) throws(CheckpointError) {
    try System.createFolders(path)
  }

  /// Names of the regular files in a folder, sorted.
  ///
  /// - Throws: `notFound`, `io`.
  public static func names(_ folder: String) throws(CheckpointError) -> [String] {
    try System.list(folder).filter { System.kind(of: Path.join(folder, $0)) == .file }.sorted()
  }
}
