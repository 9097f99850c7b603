/// How long steps take whose outcomes arrive after others were queued.
///
/// A device that works all the time lets outcomes arrive one step's time apart; a host that is slower than
/// the device queues steps one step's time apart, and then several outcomes are there at once. So a step
/// takes the longer of the time since the outcome before it and the time between the queuing of the step
/// before it and its own. Where nothing was under way, time before it was queued is not its own.
struct StepClock {
  typealias Instant = ContinuousClock.Instant
  private var lastQueued: Instant?
  private var lastArrival: Instant?
  /// Of the steps under way, the time that the host took to come to them.
  private var waits: [Duration] = []

  mutating func queue(at now: Instant) {
    if waits.isEmpty { (lastArrival, lastQueued) = (now, nil) }
    waits.append(lastQueued.map { now - $0 } ?? .zero)
    lastQueued = now
  }

  /// The time of the step that was queued first of those under way; its outcome is there.
  mutating func arrive(at now: Instant) -> Duration {
    let wait = waits.isEmpty ? .zero : waits.removeFirst()
    let since = lastArrival.map { now - $0 } ?? .zero
    lastArrival = now
    return max(wait, since)
  }
}
