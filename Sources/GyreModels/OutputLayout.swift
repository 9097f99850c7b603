import Synchronization

/// Names of the tensors that a rematerialised block returns, set while it runs.
final class OutputLayout: Sendable {
  private let stored = Mutex<(shared: [String], states: [(Int, String)])>(([], []))
  func set(shared: [String], states: [(Int, String)]) {
    stored.withLock { $0 = (shared, states) }
  }
  var value: (shared: [String], states: [(Int, String)]) { stored.withLock { $0 } }
}
