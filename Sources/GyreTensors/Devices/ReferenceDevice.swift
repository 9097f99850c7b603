#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// A device in host memory. Subclassed by what runs kernels; by itself every op runs its
/// reference, in Double: the definition of all numbers, slowly.
open class HostDevice: Device, @unchecked Sendable {
  public let id: DeviceID
  package let allocator: HostAllocator
  package let failure = StickyFailure()
  /// Where the time goes, op by op, while asked for.
  public let opTimes = OpTimes()

  /// - Parameter poisons: fills new memory with NaN patterns.
  public init(id: DeviceID, poisons: Bool = false) {
    self.id = id
    allocator = HostAllocator(name: id.name, poisons: poisons)
  }

  public func allocate(byteCount: Int) throws(DeviceError) -> any DeviceBuffer {
    try allocator.allocate(byteCount: byteCount)
  }

  /// Runs the op now. Overriders call `runReference` for what they do not know.
  open func launch(_ call: KernelCall) {
    if failure.isSet { return }
    call.runReference()
  }

  public func synchronize() throws(DeviceError) { try failure.take() }
  public func fail(_ error: DeviceError) { failure.set(error) }
  open func hasKernel(for op: any Op) -> Bool { false }
  open func multiplies(stored type: DType) -> Bool { false }
  open var prefersTimeMajor: Bool { false }

  public func write(_ bytes: UnsafeRawBufferPointer, to buffer: any DeviceBuffer, offset: Int) {
    guard let target = buffer.hostPointer, let source = bytes.baseAddress, bytes.count > 0 else {
      return
    }
    memcpy(target + offset, source, bytes.count)
  }

  public func read(
    _ buffer: any DeviceBuffer, offset: Int, into bytes: UnsafeMutableRawBufferPointer
  ) throws(DeviceError) {
    guard let source = buffer.hostPointer, let target = bytes.baseAddress, bytes.count > 0 else {
      return
    }
    memcpy(target, source + offset, bytes.count)
  }

  public var memory: MemoryReport { allocator.report }
  public func resetPeakMemory() { allocator.resetPeak() }
}

/// The device whose every result is the definition.
public final class ReferenceDevice: HostDevice, @unchecked Sendable {
  public init(poisons: Bool = false) { super.init(id: "reference", poisons: poisons) }
}
