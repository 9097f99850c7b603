// The one error type of this module: everything a file, a disk or a caller's data can do wrong.
// Mistakes that no input can cause are preconditions, not cases here.

import GyreTensors

/// A tensor whose stored shape is not the one the model expects.
public struct ShapeMismatch: Sendable, Hashable, CustomStringConvertible {
  /// Name of the tensor.
  public var name: String
  /// Shape the reader asked for.
  public var expected: Shape
  /// Shape in the file.
  public var found: Shape

  public init(name: String, expected: Shape, found: Shape) {
    self.name = name
    self.expected = expected
    self.found = found
  }

  public var description: String { "\(name): expected \(expected), found \(found)" }
}

/// What can go wrong while checkpoints are read or written.
///
/// Cases carry values; `description` says what happened and what to do about it.
public enum CheckpointError: Error, Sendable, Hashable {
  /// No file, folder, checkpoint or tensor of this name.
  case notFound(path: String)
  /// The bytes contradict the format. `offset` counts from the start of `file`.
  case corrupt(file: String, offset: Int, reason: String)
  /// The parameters in the file and those of the model differ; every problem at once.
  case mismatch(missing: [String], unexpected: [String], reshaped: [ShapeMismatch])
  /// A system call failed.
  case io(operation: String, path: String, errno: Int32)
  /// Well-formed, but something this version cannot use (`subject`: a tensor, a version, a file kind).
  case unsupported(file: String, subject: String, reason: String)
  /// An index names shards that are not in its folder.
  case missingShards(index: String, shards: [String])
  /// What was asked to be written cannot be written (`subject`: a tensor, a file name, a step).
  case invalid(subject: String, reason: String)
  /// The closure that provides a checkpoint's contents threw an error of another type.
  case contentFailed(step: Int, reason: String)
}

extension CheckpointError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .notFound(let path):
      return "'\(path)' was not found; check the name and that it was downloaded or saved"
    case .corrupt(let file, let offset, let reason):
      return
        "'\(file)' is corrupt at byte \(offset): \(reason); restore it from another copy or download it again"
    case .mismatch(let missing, let unexpected, let reshaped):
      return Self.describeMismatch(missing, unexpected, reshaped)
    case .io(let operation, let path, let code):
      return "\(operation) '\(path)' failed: \(System.message(code)) (errno \(code))"
        + System.advice(code)
    case .unsupported(let file, let subject, let reason):
      return "'\(file)': \(subject) is not supported: \(reason)"
    case .missingShards(let index, let shards):
      return
        "'\(index)' names \(shards.count) shard(s) that are not beside it: \(Self.list(shards)); download them into the same folder"
    case .invalid(let subject, let reason):
      return "cannot write \(subject): \(reason)"
    case .contentFailed(let step, let reason):
      return
        "checkpoint of step \(step) was not saved because its contents could not be made: \(reason); earlier checkpoints are untouched"
    }
  }

  private static func describeMismatch(
    _ missing: [String], _ unexpected: [String], _ reshaped: [ShapeMismatch]
  ) -> String {
    var parts: [String] = []
    if !missing.isEmpty { parts.append("\(missing.count) missing: \(list(missing))") }
    if !unexpected.isEmpty { parts.append("\(unexpected.count) unexpected: \(list(unexpected))") }
    if !reshaped.isEmpty {
      parts.append("\(reshaped.count) of another shape: \(list(reshaped.map(\.description)))")
    }
    return "the checkpoint does not fit the model: " + parts.joined(separator: "; ")
      + "; check that the configuration belongs to this checkpoint"
  }

  private static func list(_ items: [String]) -> String {
    let limit = 1000
    let shown = items.prefix(limit).joined(separator: ", ")
    return items.count > limit ? shown + ", and \(items.count - limit) more" : shown
  }
}
