#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif
import Synchronization

/// Host memory for tensors: blocks are kept by size class and reused, since fresh pages cost more
/// than most kernels that fill them.
package final class HostAllocator: Sendable {
  private struct Pool {
    var free: [Int: [UInt]] = [:]
    var inUse = 0
    var peak = 0
    var cached = 0
  }
  private let pool = Mutex(Pool())
  private let name: String
  /// Fills new blocks with a NaN pattern, so that reading memory nobody wrote shows.
  private let poisons: Bool

  package init(name: String, poisons: Bool = false) {
    self.name = name
    self.poisons = poisons
  }

  deinit {
    pool.withLock { pool in
      for blocks in pool.free.values {
        for address in blocks { unsafe_free(address) }
      }
    }
  }

  /// Rounds up to one of eight sizes an octave, so at most an eighth of a block is lost.
  package static func sizeClass(_ byteCount: Int) -> Int {
    let n = max(byteCount, 64)
    let step = max(64, 1 << (Int.bitWidth - 1 - n.leadingZeroBitCount - 3))
    return (n + step - 1) / step * step
  }

  package func allocate(byteCount: Int) throws(DeviceError) -> HostBuffer {
    let (size, reused): (Int, UInt?) = pool.withLock { pool in
      let exact = HostAllocator.sizeClass(byteCount)
      var size = exact
      // A free block that is a little too large costs less than a new one beside it.
      while pool.free[size]?.isEmpty ?? true, 2 * size <= 3 * exact {
        size = HostAllocator.sizeClass(size + 1)
      }
      let address = pool.free[size]?.popLast()
      if address == nil { size = exact } else { pool.cached -= size }
      pool.inUse += size
      pool.peak = max(pool.peak, pool.inUse)
      return (size, address)
    }
    var address = reused
    if address == nil { address = unsafe_allocate(size) }
    if address == nil {
      releaseCache()
      address = unsafe_allocate(size)
    }
    guard let address, let pointer = UnsafeMutableRawPointer(bitPattern: address) else {
      let inUse = pool.withLock { pool in
        pool.inUse -= size
        return pool.inUse
      }
      throw .outOfMemory(requested: byteCount, inUse: inUse, device: name)
    }
    if poisons { memset(pointer, 0xFF, size) }
    return HostBuffer(pointer: pointer, byteCount: byteCount, size: size, owner: self)
  }

  fileprivate func release(_ pointer: UnsafeMutableRawPointer, size: Int) {
    pool.withLock { pool in
      pool.inUse -= size
      pool.cached += size
      pool.free[size, default: []].append(UInt(bitPattern: pointer))
    }
  }

  /// Returns all cached blocks to the system.
  package func releaseCache() {
    pool.withLock { pool in
      for blocks in pool.free.values {
        for address in blocks { unsafe_free(address) }
      }
      pool.free = [:]
      pool.cached = 0
    }
  }

  package var report: MemoryReport {
    pool.withLock { MemoryReport(inUse: $0.inUse, peak: $0.peak, cached: $0.cached) }
  }

  package func resetPeak() { pool.withLock { $0.peak = $0.inUse } }
}

private func unsafe_allocate(_ size: Int) -> UInt? {
  var pointer: UnsafeMutableRawPointer?
  let alignment = size >= 1 << 21 ? 1 << 21 : 64
  guard posix_memalign(&pointer, alignment, size) == 0, let pointer else { return nil }
  #if os(Linux)
    if size >= 1 << 21 { madvise(pointer, size, 14) }  // MADV_HUGEPAGE: fewer faults
  #endif
  return UInt(bitPattern: pointer)
}

private func unsafe_free(_ address: UInt) { free(UnsafeMutableRawPointer(bitPattern: address)) }

/// A block of host memory. Safe to share: kernels order their reads and writes by the device's
/// queue, and a block goes back to its allocator only when nothing refers to it.
package final class HostBuffer: DeviceBuffer, @unchecked Sendable {
  private let pointer: UnsafeMutableRawPointer
  package let byteCount: Int
  private let size: Int
  private let owner: HostAllocator

  fileprivate init(
    pointer: UnsafeMutableRawPointer, byteCount: Int, size: Int, owner: HostAllocator
  ) {
    self.pointer = pointer
    self.byteCount = byteCount
    self.size = size
    self.owner = owner
  }

  package var hostPointer: UnsafeMutableRawPointer? { pointer }

  deinit { owner.release(pointer, size: size) }
}

/// Host memory that belongs to something else, such as a mapped checkpoint: read only by agreement.
package final class BorrowedHostBuffer: DeviceBuffer, @unchecked Sendable {
  private let pointer: UnsafeMutableRawPointer
  package let byteCount: Int
  private let owner: any Sendable

  package init(_ bytes: UnsafeRawBufferPointer, owner: any Sendable) {
    pointer =
      bytes.baseAddress.map { UnsafeMutableRawPointer(mutating: $0) }
      ?? UnsafeMutableRawPointer(bitPattern: 64).unsafelyUnwrapped
    byteCount = bytes.count
    self.owner = owner
  }

  package var hostPointer: UnsafeMutableRawPointer? { pointer }
}
