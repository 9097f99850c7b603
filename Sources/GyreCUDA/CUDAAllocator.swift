import CGyreCUDALoader
import GyreTensors
import Synchronization

/// Device memory for tensors. Blocks are kept by size class and reused: the driver's allocation
/// waits for the device, and one queue makes reuse safe as soon as nobody refers to a block.
///
/// Blocks up to a MiB are cut from slabs, which stay until the device closes.
final class CUDAAllocator: Sendable {
  private struct Pool {
    var free: [Int: [UInt64]] = [:]
    var slab: UInt64 = 0
    var slabLeft = 0
    var slabs: [UInt64] = []
    var held: [Int: Int] = [:]
    var inUse = 0
    var peak = 0
    var cached = 0
    /// Blocks released while a graph is captured: the graph's alone from then on.
    var captured: [(address: UInt64, size: Int)]?
    /// While a graph is captured that shares its memory.
    var sharing: Sharing?
    /// Graphs that work in a block between its other uses.
    var shared: [UInt64: [SharedBlocks]] = [:]
  }
  /// What a capture that shares its memory took.
  private struct Sharing {
    var used: Set<UInt64> = []
    var live: Set<UInt64> = []
    var start = 0
    var peak = 0
    /// Whether memory from before the capture was released in it, or memory of it left the allocator.
    var isBroken = false

    mutating func took(_ address: UInt64, inUse: Int) {
      used.insert(address)
      live.insert(address)
      peak = max(peak, inUse)
    }
  }
  private static let slabSize = 8 << 20
  private static let largestInSlab = 1 << 20

  private let pool = Mutex(Pool())
  private let driver: DriverCalls
  private let name: String
  /// Bytes of the whole card: what asks for more is not tried.
  private let total: Int

  init(driver: DriverCalls, name: String, total: Int) {
    self.driver = driver
    self.name = name
    self.total = total
  }

  func allocate(byteCount: Int) throws(DeviceError) -> CUDABuffer {
    let size = HostAllocator.sizeClass(max(byteCount, 256))
    let address = pool.withLock { pool -> UInt64? in
      guard let address = take(size, &pool) else { return nil }
      pool.inUse += size
      pool.peak = max(pool.peak, pool.inUse)
      pool.held[size, default: 0] += 1
      if pool.sharing != nil {
        let inUse = pool.inUse
        pool.sharing?.took(address, inUse: inUse)
      }
      if !pool.shared.isEmpty { for graph in pool.shared[address] ?? [] { graph.busy += 1 } }
      return address
    }
    guard let address else {
      throw .outOfMemory(
        requested: byteCount, inUse: pool.withLock { $0.inUse }, device: name)
    }
    return CUDABuffer(address: address, byteCount: byteCount, size: size, owner: self)
  }

  /// A block from the cache, a slab or the driver.
  private func take(_ size: Int, _ pool: inout Pool) -> UInt64? {
    if let i = pool.captured?.lastIndex(where: { $0.size == size }) {
      return pool.captured?.remove(at: i).address
    }
    if let address = pool.free[size]?.popLast() {
      pool.cached -= size
      return address
    }
    guard size <= total else { return nil }
    if size > Self.largestInSlab {
      if let address = driver.allocate(size) { return address }
      releaseCache(&pool)
      return driver.allocate(size)
    }
    if pool.slabLeft < size {
      guard let slab = driver.allocate(Self.slabSize) else {
        releaseCache(&pool)
        return driver.allocate(size).map {
          pool.slabs.append($0)
          return $0
        }
      }
      pool.slabs.append(slab)
      pool.slab = slab
      pool.slabLeft = Self.slabSize
    }
    // Sizes above 256 bytes need not be multiples of it; the next block must be aligned.
    let step = (size + 255) / 256 * 256
    let address = pool.slab
    pool.slab += UInt64(step)
    pool.slabLeft = max(0, pool.slabLeft - step)
    return address
  }

  fileprivate func release(_ address: UInt64, size: Int) {
    pool.withLock { pool in
      pool.inUse -= size
      pool.held[size, default: 0] -= 1
      if pool.sharing != nil, pool.sharing?.live.remove(address) == nil {
        pool.sharing?.isBroken = true
      }
      if !pool.shared.isEmpty { for graph in pool.shared[address] ?? [] { graph.busy -= 1 } }
      if pool.captured != nil {
        pool.captured?.append((address, size))
        return
      }
      pool.cached += size
      pool.free[size, default: []].append(address)
    }
  }

  /// Returns the cached blocks that are not parts of slabs to the driver.
  func releaseCache() { pool.withLock { releaseCache(&$0) } }

  private func releaseCache(_ pool: inout Pool) {
    for (size, blocks) in pool.free where size > Self.largestInSlab {
      for address in blocks {
        driver.free(address)
        for graph in pool.shared.removeValue(forKey: address) ?? [] { graph.isGone = true }
        if pool.sharing?.used.contains(address) == true { pool.sharing?.isBroken = true }
      }
      pool.cached -= size * blocks.count
      pool.free[size] = nil
    }
  }

  /// Whether so many bytes more would leave two fifths of the card to others.
  func hasRoom(for byteCount: Int) -> Bool {
    pool.withLock { $0.inUse + byteCount <= total / 5 * 3 }
  }

  // MARK: - Graphs that share their memory

  /// From now on notes which blocks are used.
  func beginSharing() {
    pool.withLock { pool in
      var sharing = Sharing()
      (sharing.start, sharing.peak) = (pool.inUse, pool.inUse)
      pool.sharing = sharing
    }
  }

  /// The blocks used since `beginSharing`; nil where a graph could not use them again: some are still
  /// held, or memory that was there before was released.
  func endSharing() -> SharedBlocks? {
    pool.withLock { pool in
      defer { pool.sharing = nil }
      guard let sharing = pool.sharing, !sharing.isBroken, sharing.live.isEmpty else { return nil }
      let blocks = SharedBlocks(
        addresses: Array(sharing.used), byteCount: sharing.peak - sharing.start)
      for address in blocks.addresses { pool.shared[address, default: []].append(blocks) }
      return blocks
    }
  }

  /// Whether a graph may work in its blocks now: nobody holds one.
  func use(_ blocks: SharedBlocks) -> Bool {
    pool.withLock { pool in
      guard blocks.busy == 0, !blocks.isGone else { return false }
      pool.peak = max(pool.peak, pool.inUse + blocks.byteCount)
      return true
    }
  }

  /// Ends a graph's claim.
  func forget(_ blocks: SharedBlocks) {
    pool.withLock { pool in
      for address in blocks.addresses {
        pool.shared[address]?.removeAll { $0 === blocks }
        if pool.shared[address]?.isEmpty == true { pool.shared[address] = nil }
      }
    }
  }

  // MARK: - Graphs with memory of their own

  /// From now on released blocks are kept apart, since a captured graph will use them again.
  func beginCapture() { pool.withLock { $0.captured = [] } }

  /// Ends `beginCapture`; the blocks that the graph owns.
  func endCapture() -> [(address: UInt64, size: Int)] {
    pool.withLock { pool in
      defer { pool.captured = nil }
      return pool.captured ?? []
    }
  }

  /// Takes back the blocks of a graph that is gone.
  func reclaim(_ blocks: [(address: UInt64, size: Int)]) {
    pool.withLock { pool in
      for block in blocks {
        pool.cached += block.size
        pool.free[block.size, default: []].append(block.address)
      }
    }
  }

  var report: MemoryReport {
    pool.withLock { MemoryReport(inUse: $0.inUse, peak: $0.peak, cached: $0.cached) }
  }

  /// Blocks in use by size, those that hold most first.
  var holdings: [(byteCount: Int, count: Int)] {
    pool.withLock { $0.held.filter { $0.value > 0 } }
      .map { (byteCount: $0.key, count: $0.value) }
      .sorted { $0.byteCount * $0.count > $1.byteCount * $1.count }
  }

  func resetPeak() { pool.withLock { $0.peak = $0.inUse } }

  deinit {
    pool.withLock { pool in
      releaseCache(&pool)
      for slab in pool.slabs { driver.free(slab) }
    }
  }
}

/// Blocks in which a recorded graph works, free for others between its replays. Its allocator's lock
/// guards what changes.
final class SharedBlocks: @unchecked Sendable {
  let addresses: [UInt64]
  /// Bytes that are in use at once.
  let byteCount: Int
  /// How many of the blocks others hold.
  fileprivate var busy = 0
  /// Whether one has gone back to the driver.
  fileprivate var isGone = false

  fileprivate init(addresses: [UInt64], byteCount: Int) {
    (self.addresses, self.byteCount) = (addresses, byteCount)
  }
}

/// Memory of a device. Safe to share: kernels order their reads and writes by the device's queue, and
/// a block goes back to its allocator only when nothing refers to it.
final class CUDABuffer: DeviceBuffer, @unchecked Sendable {
  let address: UInt64
  let byteCount: Int
  private let size: Int
  private let owner: CUDAAllocator
  /// The values in bfloat16, once a product has asked for them; gone as soon as they change.
  let shadow = Mutex<CUDABuffer?>(nil)
  /// Where these are the values of a recurrence by chunks: what its derivative will need.
  let chunks = Mutex<KeptChunks?>(nil)

  /// Drops what was derived from the contents, which are about to change.
  func changed() {
    shadow.withLock { $0 = nil }
    chunks.withLock { $0 = nil }
  }

  fileprivate init(address: UInt64, byteCount: Int, size: Int, owner: CUDAAllocator) {
    self.address = address
    self.byteCount = byteCount
    self.size = size
    self.owner = owner
  }

  var hostPointer: UnsafeMutableRawPointer? { nil }

  deinit { owner.release(address, size: size) }
}
