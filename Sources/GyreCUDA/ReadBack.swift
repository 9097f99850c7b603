import CGyreCUDALoader
import GyreTensors
import Synchronization

/// Small copies to the host that are waited for later: slots of page-locked memory, each with an event
/// that says when its bytes are there. Safe to share: one lock for the slots.
final class ReadBack: @unchecked Sendable {
  static let slotSize = 256
  private static let slots = 64
  private let driver: DriverCalls
  private let stream: gyre_cuda_handle?
  private let memory: UnsafeMutableRawPointer?
  private struct Slot: @unchecked Sendable {
    var index: Int
    var event: gyre_cuda_handle?
  }
  private let free = Mutex<[Slot]>([])

  init(driver: DriverCalls, stream: gyre_cuda_handle?) {
    (self.driver, self.stream) = (driver, stream)
    let table = driver.current
    var memory: UnsafeMutableRawPointer?
    let code = table.host_allocate(&memory, Self.slotSize * Self.slots, 0)
    self.memory = code == GYRE_CUDA_SUCCESS ? memory : nil
    guard self.memory != nil else { return }
    for index in 0..<Self.slots {
      var event: gyre_cuda_handle?
      guard table.event_create(&event, 2) == GYRE_CUDA_SUCCESS else { break }  // without timing
      free.withLock { $0.append(Slot(index: index, event: event)) }
    }
  }

  deinit {
    let table = driver.current
    for slot in free.withLock({ $0 }) { _ = table.event_destroy(slot.event) }
    if let memory { _ = table.host_free(memory) }
  }

  /// Queues a copy; nil where there is no slot for it, or the driver refuses.
  func queue(_ address: UInt64, _ byteCount: Int, _ device: CUDADevice) -> (any PendingRead)? {
    guard let memory, byteCount <= Self.slotSize,
      let slot = free.withLock({ $0.popLast() })
    else { return nil }
    let table = driver.current
    let place = memory + slot.index * Self.slotSize
    guard table.copy_to_host(place, address, byteCount, stream) == GYRE_CUDA_SUCCESS,
      table.event_record(slot.event, stream) == GYRE_CUDA_SUCCESS
    else {
      free.withLock { $0.append(slot) }
      return nil
    }
    return Read(owner: self, slot: slot, place: place, byteCount: byteCount, device: device)
  }

  private final class Read: PendingRead, @unchecked Sendable {
    private let owner: ReadBack
    private let slot: Slot
    private let place: UnsafeMutableRawPointer
    private let byteCount: Int
    private let device: CUDADevice

    init(
      owner: ReadBack, slot: Slot, place: UnsafeMutableRawPointer, byteCount: Int,
      device: CUDADevice
    ) {
      (self.owner, self.slot, self.place) = (owner, slot, place)
      (self.byteCount, self.device) = (byteCount, device)
    }

    func bytes() throws(DeviceError) -> [UInt8] {
      device.check(owner.driver.current.event_synchronize(slot.event), "copy to the host")
      try device.failure.take()
      return Array(UnsafeRawBufferPointer(start: place, count: byteCount))
    }

    deinit {
      // A copy that nobody asked for may be under way still.
      _ = owner.driver.current.event_synchronize(slot.event)
      owner.free.withLock { $0.append(slot) }
    }
  }
}
