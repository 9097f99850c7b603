import CGyreCUDALoader
import GyreTensors
import Synchronization

/// Milliseconds that each kernel takes on the card, between two events of its queue, while `isOn`.
///
/// Safe to share: one lock for the events.
public final class LaunchTimes: @unchecked Sendable {
  public struct Entry: Sendable {
    public var milliseconds = 0.0
    public var launches = 0
  }
  /// A driver's event; whoever holds the lock uses it.
  private struct Event: @unchecked Sendable {
    let handle: gyre_cuda_handle?
  }
  private struct Pending {
    var name: String
    var start, end: Event
  }
  private struct State {
    var unused: [Event] = []
    var pending: [Pending] = []
    var table: [String: Entry] = [:]
  }
  private let driver: DriverCalls
  private let stream: gyre_cuda_handle?
  private let enabled = Atomic(false)
  private let launched = Atomic<Int>(0)
  private let state = Mutex(State())

  init(driver: DriverCalls, stream: gyre_cuda_handle?) {
    self.driver = driver
    self.stream = stream
  }

  deinit {
    state.withLock { state in
      for event in state.unused + state.pending.flatMap({ [$0.start, $0.end] }) {
        _ = driver.current.event_destroy(event.handle)
      }
    }
  }

  public var isOn: Bool {
    get { enabled.load(ordering: .relaxed) }
    set { enabled.store(newValue, ordering: .relaxed) }
  }

  /// Kernels, products, copies and fills queued so far, measured or not.
  public var launchCount: Int { launched.load(ordering: .relaxed) }

  /// What was measured since `clear()`, by kernel. Waits for the card.
  public var entries: [String: Entry] {
    state.withLock { state in
      let table = driver.current
      for item in state.pending {
        var milliseconds: Float = 0
        if table.event_synchronize(item.end.handle) == GYRE_CUDA_SUCCESS,
          table.event_elapsed(
            &milliseconds, item.start.handle, item.end.handle) == GYRE_CUDA_SUCCESS
        {
          state.table[item.name, default: Entry()].milliseconds += Double(milliseconds)
          state.table[item.name, default: Entry()].launches += 1
        }
        state.unused += [item.start, item.end]
      }
      state.pending = []
      return state.table
    }
  }

  public func clear() {
    _ = entries
    state.withLock { $0.table = [:] }
  }

  /// Runs `body`, which queues one kernel.
  func measure(_ name: @autoclosure () -> String, _ body: () -> Int32) -> Int32 {
    launched.wrappingAdd(1, ordering: .relaxed)
    guard isOn else { return body() }
    let (start, end) = state.withLock { state in (event(&state), event(&state)) }
    let table = driver.current
    _ = table.event_record(start.handle, stream)
    let code = body()
    _ = table.event_record(end.handle, stream)
    let item = Pending(name: name(), start: start, end: end)
    state.withLock { $0.pending.append(item) }
    return code
  }

  private func event(_ state: inout State) -> Event {
    if let event = state.unused.popLast() { return event }
    var handle: gyre_cuda_handle?
    _ = driver.current.event_create(&handle, 0)
    return Event(handle: handle)
  }
}
