// Names of unfinished work and how the living is told from the dead: each temporary is locked by its writer, the
// kernel drops the lock when the writer dies, so whoever gets the lock may delete.

/// Hidden temporaries `.<name>.tmp-<16 hexadecimal digits>`.
enum Temporary {
  private static let marker = ".tmp-"

  private static func name(for name: String) -> String {
    // Long names would exceed the limit of file systems together with the suffix.
    "." + String(name.prefix(48)) + marker + Path.randomSuffix()
  }

  static func isTemporary(_ name: String) -> Bool {
    guard name.hasPrefix("."), name.utf8.count > marker.utf8.count + 16 else { return false }
    let suffix = name.suffix(16)
    return name.dropLast(16).hasSuffix(marker)
      && suffix.utf8.allSatisfy { $0 >= 0x30 && $0 <= 0x39 || $0 >= 0x61 && $0 <= 0x66 }
  }

  /// A new file or folder with its lock.
  private static func create(
    in folder: String, for target: String,
    _ make: (String) throws(CheckpointError) -> Descriptor
  ) throws(CheckpointError) -> Held {
    while true {
      let path = Path.join(folder, name(for: target))
      let descriptor = try make(path)
      // A cleaner may have come between creation and lock; then this one is its prey and another is made.
      if descriptor.tryLock() && descriptor.isNamed(path) {
        return Held(path: path, descriptor: descriptor)
      }
    }
  }

  static func createFile(
    in folder: String, for target: String, shownAs shown: String
  ) throws(CheckpointError) -> Held {
    try create(in: folder, for: target) { (path) throws(CheckpointError) in
      try Descriptor.create(path, shownAs: shown)
    }
  }

  static func createFolder(in folder: String, for target: String) throws(CheckpointError) -> Held {
    try create(in: folder, for: target) { (path) throws(CheckpointError) in
      try System.createFolder(path)
      return try Descriptor.openFolder(path)
    }
  }

  /// Deletes temporaries whose writers are gone.
  ///
  /// - Returns: the names removed.
  static func removeLeftovers(in folder: String) throws(CheckpointError) -> [String] {
    var removed: [String] = []
    for name in try System.list(folder) where isTemporary(name) {
      let path = Path.join(folder, name)
      do throws(CheckpointError) {
        let descriptor = try Descriptor.open(path)
        guard descriptor.tryLock() else { continue }
        try System.removeTree(path)
        removed.append(name)
      } catch .notFound {
        continue  // Its writer or another cleaner was faster.
      }
    }
    return removed
  }

  /// A temporary and its lock.
  struct Held: ~Copyable {
    let path: String
    let descriptor: Descriptor

    /// Hands over the lock.
    consuming func takeDescriptor() -> Descriptor { descriptor }
  }
}
