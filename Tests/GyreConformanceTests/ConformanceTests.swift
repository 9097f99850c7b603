import GyreCPU
import GyreConformance
import GyreTensors
import Testing

/// Devices by name: the reference and the first and the last instruction level of this machine, with
/// memory that holds NaN until it is written. `.ci/run` checks every level in release.
enum TestDevices {
  static let names: [String] = {
    let levels = CPUDevice.Level.allCases.filter(\.isAvailable).map { "cpu:\($0.rawValue)" }
    return ["reference"] + levels.prefix(1) + levels.dropFirst().suffix(1)
  }()

  static func make(_ name: String) throws -> any Device {
    guard let level = CPUDevice.Level(rawValue: String(name.dropFirst(4))) else {
      return ReferenceDevice(poisons: true)
    }
    return try CPUDevice(level: level, poisons: true)
  }
}

@Suite(.serialized) struct ConformanceTests {
  static let cases = ConformanceCatalog.small {
    let before = CPUDevice.threadCount
    CPUDevice.threadCount = $0
    return before
  }

  @Test(arguments: TestDevices.names)
  func conforms(_ name: String) throws {
    let report = ConformanceReport(of: try TestDevices.make(name), cases: Self.cases)
    for problem in report.results.flatMap(\.problems) { Issue.record("\(name): \(problem)") }
    #expect(report.results.count == Self.cases.count)
  }

  @Test func namesAreUnique() {
    let names = ConformanceCatalog.all().map(\.name)
    #expect(Set(names).count == names.count)
  }
}

@Suite struct ToleranceTests {
  @Test func nothingHidesANaN() {
    #expect(Tolerance.error([1, .nan], [1, 2]) == .infinity)
    #expect(Tolerance.error([1, .nan], [1, .nan]) == .infinity)
    #expect(Tolerance.error([1], [1, 2]) == .infinity)
    #expect(Tolerance.error([.infinity], [1]) == .infinity)
  }

  @Test func relativeToTheNorm() {
    #expect(Tolerance.error([3, 4.5], [3, 4]) == 0.1)
    #expect(Tolerance.error([0.5], [0]) == 0.5)
    #expect(Tolerance.error([-.infinity, 1], [-.infinity, 1]) == 0)
    #expect(Tolerance.error([], []) == 0)
  }
}
