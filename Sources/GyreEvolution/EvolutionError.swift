/// What goes wrong in evolution besides what devices, files and texts cause.
public enum EvolutionError: Error, Sendable, CustomStringConvertible {
  /// A field of a configuration: which, and what it must be.
  case configuration(field: String, rule: String)
  /// A file of a run folder.
  case file(path: String, reason: String)
  /// A program that scores, or an environment.
  case reward(String)
  /// Processes that evolve together: the ranks that are lost, none where all fail.
  case worker(ranks: [Int], reason: String)

  public var description: String {
    switch self {
    case .configuration(let field, let rule): "\(field) \(rule)"
    case .file(let path, let reason): "\(path): \(reason)"
    case .reward(let reason): reason
    case .worker(let ranks, let reason):
      ranks.isEmpty
        ? "workers: \(reason)"
        : "worker \(ranks.map(String.init).joined(separator: ", ")) \(reason)"
    }
  }
}
