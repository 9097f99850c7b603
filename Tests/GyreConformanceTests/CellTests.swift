import GyreCPU
import GyreConformance
import GyreRecurrence
import GyreTensors
import Testing

@Suite("Described cells") struct CellTests {
  static let cases = ConformanceCatalog.all().filter { $0.name.contains("recurrent_cell") }

  /// The op's examples: definition against finite differences in Double, kernels against it.
  @Test(arguments: ["reference"] + TestDevices.names.suffix(1) + ["cpu:generic"])
  func operations(_ name: String) throws {
    let report = ConformanceReport(of: try TestDevices.make(name), cases: Self.cases)
    for problem in report.results.flatMap(\.problems) { Issue.record("\(name): \(problem)") }
    #expect(report.results.count == Self.cases.count && Self.cases.count > 60)
  }
}
