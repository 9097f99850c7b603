import CGyreCUDALoader
import GyreTensors
import Synchronization

/// The driver for one device: its context, and what needs no queue.
final class DriverCalls: @unchecked Sendable {
  let table: gyre_cuda_driver
  let context: gyre_cuda_handle?
  private let device: Int32

  /// - Throws: `unavailable` when the card is busy or gone.
  init(_ table: gyre_cuda_driver, device: Int32, name: String) throws(DeviceError) {
    var context: gyre_cuda_handle?
    let code = table.context_retain(&context, device)
    guard code == GYRE_CUDA_SUCCESS else {
      throw .unavailable(device: name, reason: table.message(code))
    }
    self.table = table
    self.context = context
    self.device = device
    _ = table.context_set(context)
  }

  deinit { _ = table.context_release(device) }

  /// The driver's table with the context current on this thread.
  var current: gyre_cuda_driver {
    _ = table.context_set(context)
    return table
  }

  func allocate(_ byteCount: Int) -> UInt64? {
    var address: UInt64 = 0
    return current.memory_allocate(&address, byteCount) == GYRE_CUDA_SUCCESS ? address : nil
  }

  func free(_ address: UInt64) { _ = current.memory_free(address) }
}
