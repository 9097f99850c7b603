/// What goes wrong between the processes of a run.
public enum GroupError: Error, Sendable, Equatable, CustomStringConvertible {
  /// A process ended or its machine cannot be reached.
  case lost(rank: Int, reason: String)
  /// The processes did not find each other.
  case rendezvous(place: String, reason: String)
  /// An environment variable or an option that cannot be.
  case configuration(String)

  public var description: String {
    switch self {
    case .lost(let rank, let reason): "rank \(rank) is gone: \(reason)"
    case .rendezvous(let place, let reason): "ranks did not meet at \(place): \(reason)"
    case .configuration(let text): text
    }
  }
}
