import GyreCPU
import GyreConformance
import GyreTensors
import Testing

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

@Suite("Engine vectors")
struct VectorFilesTests {
  static let folder = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent()
    .appendingPathComponent("Fixtures/engines").path
  static let files = [
    "attention_forgetting", "attention_window16", "cell_gru", "cell_lstm", "cell_rnn", "delta_rule",
    "delta_rule_dplr", "delta_rule_scalar_gate", "delta_rule_vector_gate", "linear_attention",
    "linear_attention_scalar_decay", "linear_attention_vector_decay", "mlstm_exp",
    "scan_complex_polar", "scan_real", "scan_selective",
  ]

  /// The levels that this machine is tested at: its best one and the portable one.
  private static let levels: [CPUDevice.Level] = [.best, .generic]

  @Test("engines agree with float64 recurrences in every form", arguments: files, levels)
  func engine(file: String, level: CPUDevice.Level) throws {
    let device = try CPUDevice(level: level)
    let results = try VectorFiles.check(
      path: "\(Self.folder)/\(file).safetensors", device: device)
    #expect(results.count >= 3 * 5)
    for result in results {
      let limit = result.isGradient ? 2e-4 : 2e-5
      #expect(result.worst <= limit, "\(file) on \(device.id): \(result)")
    }
    #expect(Set(results.map(\.form)).count == 3)
  }
}
