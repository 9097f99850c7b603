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
    /// The most bytes in use ever.
    var most = 0

    /// Bytes that blocks in use and blocks for reuse may have together: what was in use at once, and a
    /// thirty-second part.
    var limit: Int { most + max(most / 32, 1 << 22) }

    /// Takes blocks off the lists, large ones first, until what is left is below the limit.
    mutating func removeIdle() -> [(address: UInt, size: Int)] {
      var removed: [(address: UInt, size: Int)] = []
      guard cached > 0, inUse + cached > limit else { return removed }
      for size in free.keys.sorted(by: >) {
        while inUse + cached > limit, let address = free[size]?.popLast() {
          cached -= size
          removed.append((address, size))
        }
      }
      return removed
    }
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
      for (size, blocks) in pool.free {
        for address in blocks { unsafe_free(address, size) }
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
    let (size, reused, idle) = pool.withLock {
      pool -> (Int, UInt?, [(address: UInt, size: Int)]) in
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
      pool.most = max(pool.most, pool.inUse)
      return (size, address, address == nil ? pool.removeIdle() : [])
    }
    // Blocks of sizes that are not wanted now make room, or every size's own peak would stay.
    for block in idle { unsafe_free(block.address, block.size) }
    var address = reused
    if address == nil { address = unsafe_allocate(size) }
    if address == nil {
      releaseCache()
      address = unsafe_allocate(size)
    }
    guard let address, let pointer = UnsafeMutableRawPointer(bitPattern: address) else {
      let inUse = pool.withLock { pool in
        pool.inUse -= size
        pool.most = pool.inUse
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
      for (size, blocks) in pool.free {
        for address in blocks { unsafe_free(address, size) }
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

/// The size of large pages, from which on blocks are mappings of their own: unlike the C library's they
/// go back to the system when they are freed.
private let largePage = 1 << 21

private func unsafe_allocate(_ size: Int) -> UInt? {
  guard size >= largePage else {
    var pointer: UnsafeMutableRawPointer?
    return posix_memalign(&pointer, 64, size) == 0 ? pointer.map { UInt(bitPattern: $0) } : nil
  }
  guard size < Int.max - largePage,
    let mapped = mmap(
      nil, size + largePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0),
    mapped != MAP_FAILED
  else { return nil }
  let front = -Int(bitPattern: mapped) & (largePage - 1)
  let pointer = mapped + front
  if front > 0 { munmap(mapped, front) }
  munmap(pointer + size, largePage - front)
  #if os(Linux)
    madvise(pointer, size, 14)  // MADV_HUGEPAGE: fewer faults
  #endif
  return UInt(bitPattern: pointer)
}

private func unsafe_free(_ address: UInt, _ size: Int) {
  let pointer = UnsafeMutableRawPointer(bitPattern: address)
  if size >= largePage { munmap(pointer, size) } else { free(pointer) }
}

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
