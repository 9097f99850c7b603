import GyreTensors

/// How a recurrence is evaluated over time. All forms give the same numbers within rounding.
public enum SequenceForm: Sendable, Hashable, CustomStringConvertible {
  /// Token by token: the definition.
  case recurrent
  /// Chunks of `size` tokens, parallel inside and sequential across; linear in length.
  case chunkwise(size: Int)
  /// All tokens at once: one chunk, or an associative scan.
  case parallel

  /// The training form.
  public static let chunkwise = SequenceForm.chunkwise(size: 64)

  public var description: String {
    switch self {
    case .recurrent: "recurrent"
    case .chunkwise(let size): "chunkwise(\(size))"
    case .parallel: "parallel"
    }
  }
}
