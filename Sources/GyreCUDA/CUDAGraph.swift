import CGyreCUDALoader
import GyreTensors

/// A recorded sequence of kernels and the memory that only it uses.
final class CUDAGraph: RecordedWork, @unchecked Sendable {
  private let device: CUDADevice
  private let executable: UnsafeMutableRawPointer
  private let blocks: [(address: UInt64, size: Int)]

  init(
    device: CUDADevice, executable: UnsafeMutableRawPointer, blocks: [(address: UInt64, size: Int)]
  ) {
    self.device = device
    self.executable = executable
    self.blocks = blocks
  }

  func replay() -> Bool {
    device.replay(executable)
    return true
  }

  deinit {
    _ = device.driver.current.stream_synchronize(device.stream)
    _ = device.driver.table.graph_executable_destroy(executable)
    device.allocator.reclaim(blocks)
  }
}
