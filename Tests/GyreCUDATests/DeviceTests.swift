import GyreConformance
import GyreTensors
import Testing

@testable import GyreCUDA

/// The whole catalogue on the first card, where there is one.
@Suite(.serialized) struct DeviceTests {
  private static let cases = ConformanceCatalog.small()
  private static let device: CUDADevice? = CUDADevice.count > 0 ? try? CUDADevice(index: 0) : nil

  @Test(
    .enabled(
      if: CUDADevice.count > 0, "no NVIDIA card: \(cases.count) conformance cases were not run"),
    arguments: cases)
  func conforms(_ item: ConformanceCase) throws {
    let device = try #require(Self.device)
    let result = item.run(on: device)
    #expect(result.passes, "\(result.problems.joined(separator: "\n"))")
  }
}
