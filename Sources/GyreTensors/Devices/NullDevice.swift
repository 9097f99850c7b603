import Synchronization

/// Computes nothing and holds nothing, but counts what would be held: one training step on it
/// predicts the memory that the step needs. Reads give zeros.
public final class NullDevice: Device {
  private final class Buffer: DeviceBuffer {
    let byteCount: Int
    var hostPointer: UnsafeMutableRawPointer? { nil }
    private let owner: NullDevice
    init(_ byteCount: Int, _ owner: NullDevice) {
      self.byteCount = byteCount
      self.owner = owner
    }
    deinit { owner.counts.withLock { $0.inUse -= byteCount } }
  }

  public let id: DeviceID = "null"
  private let counts = Mutex(MemoryReport(inUse: 0, peak: 0, cached: 0))
  private let failure = StickyFailure()
  private let launched = Atomic<Int>(0)

  public init() {}

  /// Ops launched so far.
  public var launchCount: Int { launched.load(ordering: .relaxed) }

  public func allocate(byteCount: Int) throws(DeviceError) -> any DeviceBuffer {
    let size = HostAllocator.sizeClass(byteCount)
    counts.withLock {
      $0.inUse += size
      $0.peak = max($0.peak, $0.inUse)
    }
    return Buffer(size, self)
  }

  public func launch(_ call: KernelCall) { launched.wrappingAdd(1, ordering: .relaxed) }
  public func synchronize() throws(DeviceError) { try failure.take() }
  public func fail(_ error: DeviceError) { failure.set(error) }
  public func hasKernel(for op: any Op) -> Bool { true }
  public func write(_ bytes: UnsafeRawBufferPointer, to buffer: any DeviceBuffer, offset: Int) {}
  public func read(
    _ buffer: any DeviceBuffer, offset: Int, into bytes: UnsafeMutableRawBufferPointer
  ) throws(DeviceError) {
    bytes.initializeMemory(as: UInt8.self, repeating: 0)
  }
  public var memory: MemoryReport { counts.withLock { $0 } }
  public func resetPeakMemory() { counts.withLock { $0.peak = $0.inUse } }
}
