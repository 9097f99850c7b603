// Checkpoints of one run in one folder. Saving is all or nothing at every instant; loading trusts nothing.

/// A folder of checkpoints: `step-00001234/` holds the files of step 1234 and their `manifest.json`.
///
/// A checkpoint is made in a hidden temporary folder, every file is synchronised, the manifest comes last, and one
/// rename publishes it: a process that dies at any moment leaves the old checkpoints or the old ones and the new.
/// Temporaries of dead processes are removed by the next save; those of living ones are locked and stay.
///
/// Several processes may read and save at the same time. Values of this type hold nothing open.
public struct DirectoryStore: Sendable {
  /// The folder of all checkpoints; created by the first save.
  public let path: String

  /// Whether saving over an existing step may swap names in one step; off only to test the way without.
  var exchangesNames = true

  private static let prefix = "step-"
  /// Marks an old checkpoint set aside for an instant where the file system cannot swap names.
  private static let asideSuffix = ".replaced"

  /// Names a store; nothing is read or created.
  public init(path: String) { self.path = path }

  // MARK: Saving

  /// Saves a checkpoint: all files that `write` adds, or nothing.
  ///
  /// A step that is already there is replaced in one step (where the file system can swap names; elsewhere the old one
  /// is set aside first, and found there if the process dies in between).
  ///
  /// - Parameters:
  ///   - step: training steps taken, ≥ 0.
  ///   - write: adds the files.
  /// - Throws: `io`, for example a full volume; `invalid`; what `write` throws, errors of other types as
  ///   `contentFailed`. Earlier checkpoints are untouched, and nothing is left of the new one.
  public func save(
    step: Int, write: (CheckpointWriter) throws -> Void
  ) throws(CheckpointError) {
    guard step >= 0 else {
      throw .invalid(subject: "checkpoint", reason: "step \(step) is negative")
    }
    try System.createFolders(path)
    try removeLeftovers()
    let name = Self.name(of: step)
    let temporary = try Temporary.createFolder(in: path, for: name)
    let writer = CheckpointWriter(step: step, folder: temporary.path)
    do throws(CheckpointError) {
      try Self.fill(writer, write)
      try publish(temporary.path, as: Path.join(path, name))
    } catch {
      // The error that stopped the save says more than one of the clean-up, which the next save repeats.
      try? System.removeTree(temporary.path)
      throw error
    }
    // After a swap the temporary name holds the old checkpoint, which no one needs.
    try? System.removeTree(temporary.path)
    // The lock is held to here, whatever the optimiser thinks of a descriptor that is not read.
    withExtendedLifetime(temporary) { _ in }
  }

  private static func fill(
    _ writer: CheckpointWriter, _ write: (CheckpointWriter) throws -> Void
  ) throws(CheckpointError) {
    defer { writer.close() }
    do {
      try write(writer)
    } catch let error as CheckpointError {
      throw error
    } catch {
      throw .contentFailed(step: writer.step, reason: String(describing: error))
    }
    try writer.finish()
  }

  private func publish(_ temporary: String, as final: String) throws(CheckpointError) {
    if System.kind(of: final) == nil {
      try System.rename(temporary, to: final)
    } else if !exchangesNames || !System.exchange(temporary, final) {
      let aside = final + Self.asideSuffix
      try System.removeTree(aside)
      try System.rename(final, to: aside)
      do throws(CheckpointError) {
        try System.rename(temporary, to: final)
      } catch {
        try System.rename(aside, to: final)
        throw error
      }
      try System.synchronizeFolder(path)
      try System.removeTree(aside)
    }
    try System.synchronizeFolder(path)
  }

  /// Removes what killed processes left: temporaries without a living writer, and replaced checkpoints.
  ///
  /// - Returns: the names removed or restored.
  @discardableResult
  public func removeLeftovers() throws(CheckpointError) -> [String] {
    guard System.kind(of: path) == .folder else { return [] }
    var handled = try Temporary.removeLeftovers(in: path)
    for name in try System.list(path) where name.hasSuffix(Self.asideSuffix) {
      let original = String(name.dropLast(Self.asideSuffix.count))
      guard Self.step(of: original) != nil else { continue }
      if System.kind(of: Path.join(path, original)) == nil {
        try System.rename(Path.join(path, name), to: Path.join(path, original))
      } else {
        try System.removeTree(Path.join(path, name))
      }
      handled.append(name)
    }
    return handled
  }

  // MARK: Reading

  /// Steps that have a folder, ascending; nothing is verified.
  public func steps() throws(CheckpointError) -> [Int] { try folders().map(\.step) }

  /// Opens the checkpoint of a step, or with nil the newest intact one.
  ///
  /// - Returns: a checkpoint whose files are those of its manifest; `skipped` tells which newer ones are damaged.
  /// - Throws: `notFound` if there is none; for a given step what is wrong with it; with nil `corrupt` if there are
  ///   checkpoints but all are damaged.
  public func open(
    step: Int? = nil, verifying verification: Verification = .contents
  ) throws(CheckpointError) -> StoredCheckpoint {
    if let step {
      guard let folder = try folders().last(where: { $0.step == step }) else {
        throw .notFound(path: Path.join(path, Self.name(of: step)))
      }
      return try StoredCheckpoint(
        path: folder.path, step: step, verifying: verification, skipped: [])
    }
    let (checkpoint, rejected) = try latest(verifying: verification)
    if let checkpoint { return checkpoint }
    guard let newest = rejected.first else {
      throw .notFound(path: Path.join(path, Self.prefix + "*"))
    }
    throw .corrupt(
      file: path, offset: 0,
      reason: "none of \(rejected.count) checkpoint(s) is intact; the newest: \(newest)")
  }

  /// Finds the newest intact checkpoint.
  ///
  /// - Returns: the checkpoint, nil if there is none, and the newer ones that were passed over, newest first.
  /// - Throws: `io` if the folder cannot be listed. Damage is in the result, not thrown.
  public func latest(
    verifying verification: Verification = .contents
  ) throws(CheckpointError) -> (checkpoint: StoredCheckpoint?, rejected: [RejectedCheckpoint]) {
    var rejected: [RejectedCheckpoint] = []
    for (step, path) in try folders().reversed() {
      do throws(CheckpointError) {
        let checkpoint = try StoredCheckpoint(
          path: path, step: step, verifying: verification, skipped: rejected)
        return (checkpoint, rejected)
      } catch {
        rejected.append(RejectedCheckpoint(step: step, path: path, error: error))
      }
    }
    return (nil, rejected)
  }

  // MARK: Pruning

  /// Keeps the newest `count` complete checkpoints and removes everything older.
  ///
  /// Damaged checkpoints do not count, so that they never push out a good one. Completeness here means manifest and
  /// sizes; contents are not read.
  ///
  /// - Parameter count: ≥ 1.
  /// - Returns: the steps removed, ascending.
  /// - Throws: `invalid` for a count below 1; `io`.
  @discardableResult
  public func keep(last count: Int) throws(CheckpointError) -> [Int] {
    guard count >= 1 else {
      throw .invalid(subject: "keep(last: \(count))", reason: "at least one checkpoint must stay")
    }
    var complete = 0
    var removed: [Int] = []
    for (step, path) in try folders().reversed() {
      if complete == count {
        try remove(path, step)
        removed.append(step)
        continue
      }
      do throws(CheckpointError) {
        _ = try StoredCheckpoint(path: path, step: step, verifying: .sizes, skipped: [])
        complete += 1
      } catch {
        continue
      }
    }
    return removed.reversed()
  }

  /// Hides the folder by one rename before files go, so that no half-removed checkpoint is ever seen.
  private func remove(_ folder: String, _ step: Int) throws(CheckpointError) {
    let grave = try Temporary.createFolder(in: path, for: Self.name(of: step))
    try System.rename(folder, to: Path.join(grave.path, "removed"))
    try System.removeTree(grave.path)
  }

  // MARK: Names

  private static func name(of step: Int) -> String {
    let digits = String(step)
    return prefix + String(repeating: "0", count: max(0, 8 - digits.count)) + digits
  }

  private static func step(of name: String) -> Int? {
    guard name.hasPrefix(prefix), let step = Int(name.dropFirst(prefix.count)), step >= 0,
      self.name(of: step) == name
    else { return nil }
    return step
  }

  /// All checkpoint folders by ascending step, with those set aside whose replacement never came.
  private func folders() throws(CheckpointError) -> [(step: Int, path: String)] {
    guard System.kind(of: path) != nil else { return [] }
    var pathOfStep: [Int: String] = [:]
    // Sorted names: "step-1" comes before "step-1.replaced".
    for name in try System.list(path) {
      let isAside = name.hasSuffix(Self.asideSuffix)
      guard
        let step = Self.step(of: isAside ? String(name.dropLast(Self.asideSuffix.count)) : name),
        pathOfStep[step] == nil, System.kind(of: Path.join(path, name)) == .folder
      else { continue }
      pathOfStep[step] = Path.join(path, name)
    }
    return pathOfStep.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
  }
}
