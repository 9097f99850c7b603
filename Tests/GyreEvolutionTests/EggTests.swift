import FoundationEssentials
import GyreCPU
import GyreCheckpoints
import GyreRecurrence
import GyreTensors
import GyreTraining
import Testing

@testable import GyreEvolution

@Suite("EGG")
struct EggTests {
  @Test("thresholds of the published schedule")
  func thresholds() {
    var c = EggConfiguration()
    c.schedule = .published
    c.finalAlpha = 1e-3
    let found = [0, 5, 10, 50, 100, 250, 500, 999].map {
      EggConfiguration.threshold(alpha: c.alpha(at: $0))
    }
    #expect(found == [0, 1, 2, 9, 13, 20, 25, 29])
  }
}
