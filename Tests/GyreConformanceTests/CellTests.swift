import GyreCPU
import GyreConformance
import GyreRecurrence
import GyreTensors
import Testing

@Suite("Described cells") struct CellTests {
  static let cases = ConformanceCatalog.all().filter {
    $0.name.contains("recurrent_cell") || $0.name.contains("cell_scan")
  }

  /// The op's examples: definition against finite differences in Double, kernels against it.
  @Test(arguments: ["reference"] + TestDevices.names.suffix(1) + ["cpu:generic"])
  func operations(_ name: String) throws {
    let report = ConformanceReport(of: try TestDevices.make(name), cases: Self.cases)
    for problem in report.results.flatMap(\.problems) { Issue.record("\(name): \(problem)") }
    #expect(report.results.count == Self.cases.count && Self.cases.count > 60)
  }

  /// Every law for every cell with every shape of recurrent matrix.
  @Test(arguments: CellCatalog.cells.map { $0.kind } + ["gru", "slstm"])
  func laws(_ kind: String) throws {
    let cases = ConformanceCatalog.all().filter { $0.name.hasPrefix("mixer \(kind) ") }
    #expect(cases.count >= 24)
    let report = ConformanceReport(of: try CPUDevice(poisons: true), cases: cases)
    for problem in report.results.flatMap(\.problems) { Issue.record("\(kind): \(problem)") }
  }
}
