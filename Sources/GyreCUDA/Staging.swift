import CGyreCUDALoader
import GyreTensors
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// Page-locked host memory through which copies to the device go without waiting for it: a ring of
/// slots, each with an event that says when its last copy has left. Safe to share: one copy at a time
/// has the lock.
final class Staging: @unchecked Sendable {
  private struct Slot {
    var memory: UnsafeMutableRawPointer
    var event: gyre_cuda_handle?
    var isUsed = false
  }
  private static let slotSize = 1 << 20
  /// Copies up to here go piece by piece through the slots.
  private static let largest = 4 << 20
  private let driver: DriverCalls
  private let stream: gyre_cuda_handle?
  private let lock = Mutex(())
  private var slots: [Slot] = []
  private var next = 0

  init(driver: DriverCalls, stream: gyre_cuda_handle?) {
    self.driver = driver
    self.stream = stream
    let table = driver.current
    for _ in 0..<8 {
      var memory: UnsafeMutableRawPointer?
      var event: gyre_cuda_handle?
      guard table.host_allocate(&memory, Self.slotSize, 0) == GYRE_CUDA_SUCCESS, let memory else {
        break
      }
      _ = table.event_create(&event, 2)  // without timing
      slots.append(Slot(memory: memory, event: event))
    }
  }

  deinit {
    let table = driver.current
    for slot in slots {
      _ = table.event_destroy(slot.event)
      _ = table.host_free(slot.memory)
    }
  }

  /// Queues a copy; the bytes may change once this returns. The driver's code.
  func copy(_ bytes: UnsafeRawBufferPointer, to address: UInt64) -> Int32 {
    lock.withLock { _ in
      guard bytes.count <= Self.largest else { return copyLocked(bytes, to: address) }
      for start in stride(from: 0, to: bytes.count, by: Self.slotSize) {
        let piece = bytes[start..<min(start + Self.slotSize, bytes.count)]
        let code = copyLocked(UnsafeRawBufferPointer(rebasing: piece), to: address + UInt64(start))
        if code != 0 { return code }
      }
      return 0
    }
  }

  private func copyLocked(_ bytes: UnsafeRawBufferPointer, to address: UInt64) -> Int32 {
    guard let source = bytes.baseAddress, bytes.count > 0 else { return 0 }
    let table = driver.current
    // Large copies are not worth a second pass over host memory.
    guard bytes.count <= Self.slotSize, !slots.isEmpty else {
      let code = table.copy_to_device(address, source, bytes.count, stream)
      return code == 0 ? table.stream_synchronize(stream) : code
    }
    let slot = next
    next = (next + 1) % slots.count
    if slots[slot].isUsed {
      let code = table.event_synchronize(slots[slot].event)
      guard code == 0 else { return code }
    }
    memcpy(slots[slot].memory, source, bytes.count)
    let code = table.copy_to_device(address, slots[slot].memory, bytes.count, stream)
    slots[slot].isUsed = true
    return code == 0 ? table.event_record(slots[slot].event, stream) : code
  }
}
