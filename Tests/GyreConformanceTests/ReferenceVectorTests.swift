import GyreConformance
import GyreRecurrence
import GyreTensors
import Testing

/// The references against float64 recurrences of another hand: what every kernel is compared with.
@Suite("Engine vectors on the reference device")
struct ReferenceVectorTests {
  @Test("references are the definitions", arguments: VectorFilesTests.files)
  func reference(file: String) throws {
    let results = try VectorFiles.check(
      path: "\(VectorFilesTests.folder)/\(file).safetensors", device: ReferenceDevice(),
      forms: [.recurrent])
    #expect(results.contains { $0.isGradient })
    // Inputs, outputs and what is kept between passes are float32; sums are Double.
    for result in results { #expect(result.worst <= 1e-5, "\(file): \(result)") }
  }
}
