import Synchronization

/// Seconds spent in ops, by op and shapes of its inputs, while `isOn`.
public final class OpTimes: Sendable {
  public struct Entry: Sendable {
    public var seconds = 0.0
    public var launches = 0
  }
  private let enabled = Atomic(false)
  private let table = Mutex<[String: Entry]>([:])

  public var isOn: Bool {
    get { enabled.load(ordering: .relaxed) }
    set { enabled.store(newValue, ordering: .relaxed) }
  }
  public var entries: [String: Entry] { table.withLock { $0 } }
  public func clear() { table.withLock { $0 = [:] } }

  /// Runs `body`, which does all of `call` before it returns.
  package func measure(_ call: KernelCall, _ body: () -> Void) {
    guard isOn else { return body() }
    let clock = ContinuousClock()
    let seconds = clock.measure(body) / .seconds(1)
    let name =
      "\(call.op.name) " + call.inputs.prefix(2).map { "\($0.shape)" }.joined(separator: " ")
    table.withLock {
      $0[name, default: Entry()].seconds += seconds
      $0[name, default: Entry()].launches += 1
    }
  }
}
