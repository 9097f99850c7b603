import Testing

@testable import GyreTraining

@Suite struct StepClockTests {
  private let start = ContinuousClock().now

  private func at(_ milliseconds: Int) -> ContinuousClock.Instant {
    start + .milliseconds(milliseconds)
  }

  @Test func aBusyDevice() {
    var clock = StepClock()
    for step in 0..<4 { clock.queue(at: at(step)) }
    #expect(
      (1...4).map { clock.arrive(at: at(100 * $0)) }
        == .init(repeating: .milliseconds(100), count: 4))
  }

  /// All outcomes are there when the host looks.
  @Test func aBusyHost() {
    var clock = StepClock()
    for step in 0..<4 { clock.queue(at: at(50 * step)) }
    let times = (0..<4).map { _ in clock.arrive(at: at(200)) }
    #expect(times == [.milliseconds(200)] + .init(repeating: .milliseconds(50), count: 3))
  }

  /// What the host does while nothing is under way belongs to no step.
  @Test func anEvaluationBetween() {
    var clock = StepClock()
    clock.queue(at: at(0))
    #expect(clock.arrive(at: at(10)) == .milliseconds(10))
    clock.queue(at: at(5000))
    clock.queue(at: at(5001))
    #expect(clock.arrive(at: at(5010)) == .milliseconds(10))
    #expect(clock.arrive(at: at(5020)) == .milliseconds(10))
  }
}
