import CGyreCUDALoader
import GyreRecurrence
import GyreTensors
import Synchronization
import Testing

@testable import GyreCUDA

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// What the CUDA backend does on the host; no GPU needed.
@Suite struct HostLogicTests {
  /// A folder of its own for each test.
  private func withFolder(_ body: (String) throws -> Void) rethrows {
    var template = Array("/tmp/gyre-cuda-XXXXXX".utf8CString)
    let folder = template.withUnsafeMutableBufferPointer { $0.baseAddress.flatMap { mkdtemp($0) } }
      .map { String(cString: $0) }
    guard let folder else {
      Issue.record("no temporary folder")
      return
    }
    try body(folder)
  }

  @Test func compiledKernelsComeBack() {
    withFolder { folder in
      let cache = CubinCache(folder: folder + "/a/b")
      let key = CubinCache.key(["source", "option"])
      #expect(cache.read(key) == nil)
      let cubin = (0..<5000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
      cache.write(cubin, key)
      #expect(cache.read(key) == cubin)
      #expect(cache.read(CubinCache.key(["source", "other"])) == nil)
    }
  }

  @Test(arguments: [0, 5, 12, 20, 3000]) func damagedKernelsReadAsAbsent(_ position: Int) {
    withFolder { folder in
      let cache = CubinCache(folder: folder)
      let key = CubinCache.key(["x"])
      cache.write([UInt8](repeating: 9, count: 4000), key)
      let path = folder + "/kernels/" + key + ".cubin"
      let file = open(path, O_WRONLY)
      var byte: UInt8 = 0xEE
      pwrite(file, &byte, 1, off_t(position))
      close(file)
      #expect(cache.read(key) == nil)
      truncate(path, off_t(position))
      #expect(cache.read(key) == nil)
      cache.write([1, 2, 3], key)
      #expect(cache.read(key) == [1, 2, 3])
    }
  }

  @Test func unwritableCacheIsNoFailure() {
    let cache = CubinCache(folder: "/proc/no/such/folder")
    cache.write([1, 2, 3], "key")
    #expect(cache.read("key") == nil)
    #expect(CubinCache(folder: nil).read("key") == nil)
  }

  @Test func keysTellPartsApart() {
    #expect(CubinCache.key(["ab", "c"]) != CubinCache.key(["a", "bc"]))
    #expect(CubinCache.key(["ab"]).count == 32)
  }

  @Test func variantsOfSources() {
    #expect(
      CUDASources.variants(of: "// x\n// Variants: KIND=2..4\ncode") == [
        ["-DKIND=2"], ["-DKIND=3"], ["-DKIND=4"],
      ])
    #expect(
      CUDASources.variants(of: "// Variants: SIZE=64,128\ncode") == [["-DSIZE=64"], ["-DSIZE=128"]])
    #expect(CUDASources.variants(of: "code") == [[]])
    let unary = CUDASources.kernels.first { $0.name == "unary" }
    #expect(CUDASources.variants(of: unary?.text ?? "").count == Unary.Kind.allCases.count)
  }

  /// Every header that a kernel includes is embedded.
  @Test func sourcesIncludeOnlyEmbeddedHeaders() {
    let known = Set(CUDASources.headers.map(\.name))
    // host.h belongs to a build of the kernels for the processor, behind a define.
    for (name, text) in CUDASources.kernels + CUDASources.headers {
      for line in text.split(separator: "\n") where line.hasPrefix("#include \"") {
        let header = line.split(separator: "\"")[1]
        #expect(known.contains(String(header)) || header == "host.h", "\(name) includes \(header)")
      }
    }
  }

  /// Recurrent weights' gradients in one op and linear attention that scales its values, which are only taken
  /// where they have a kernel.
  static let withoutKernel: Set = ["recurrent_gradients", "scaled_linear_attention"]

  @Test func opsHaveKernels() {
    let types = OpCatalog.tensorOps + EngineCatalog.ops
    let missing = types.filter {
      $0 != AdamWStep.self && CUDAKernel.all[ObjectIdentifier($0)] == nil
    }
    #expect(Set(missing.map { $0.name }) == Self.withoutKernel)
  }

  /// Every described cell becomes source: with mixed units, without, and with low-rank products.
  @Test func describedCellsBecomeSource() {
    func check<C: Cell>(_ cell: C.Type) {
      for matrix in [RecurrentMatrix.dense, .diagonal, .lowRankPlusDiagonal(2)] {
        let plan = CellPlan(C().description(hidden: 6, matrix: matrix))
        let text = CellSource.text(plan)
        let kernels = plan.isDiagonal ? "cell_units.cuh" : "cell_rows.cuh"
        #expect(text?.contains("#include \"\(kernels)\"") == true, "\(C.kind) \(matrix)")
      }
    }
    for cell in CellCatalog.cells {
      func open<C: Cell>(_ cell: C.Type) { check(cell) }
      open(cell)
    }
  }

  @Test func mergedAxes() {
    let same = CUDAKernel.merged([2, 3, 4], [12, 4, 1])
    #expect(same.shape == [24] && same.steps == [1])
    let swapped = CUDAKernel.merged([2, 1, 5, 3, 7], [105, 105, 7, 35, 1])
    #expect(swapped.shape == [2, 5, 3, 7] && swapped.steps == [105, 7, 35, 1])
  }

  @Test func missingCardIsSaidClearly() {
    if CUDADevice.count > 0 {
      #expect(throws: DeviceError.self) { try CUDADevice(index: CUDADevice.count) }
      return
    }
    do {
      _ = try CUDADevice(index: 0)
      Issue.record("opened a card that is not there")
    } catch {
      guard case .unavailable(let device, let reason) = error else {
        Issue.record("\(error)")
        return
      }
      #expect(device == "cuda:0")
      #expect(reason.contains("driver"), "\(reason)")
    }
  }
}

/// The allocator over a driver that counts.
@Suite(.serialized) struct AllocatorTests {
  private struct Fake {
    var next: UInt64 = 1 << 20
    var live: [UInt64: Int] = [:]
    var limit = 0
  }
  private static let fake = Mutex(Fake())

  private func makeAllocator(limit: Int) throws -> CUDAAllocator {
    Self.fake.withLock {
      $0 = Fake()
      $0.limit = limit
    }
    let size = MemoryLayout<gyre_cuda_driver>.size
    let memory = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 16)
    defer { memory.deallocate() }
    // Functions that the allocator does not call stay unset.
    memory.initializeMemory(as: UInt8.self, repeating: 1, count: size)
    var table = memory.load(as: gyre_cuda_driver.self)
    table.context_retain = { _, _ in 0 }
    table.context_release = { _ in 0 }
    table.context_set = { _ in 0 }
    table.memory_allocate = { address, bytes in
      AllocatorTests.fake.withLock { fake in
        guard fake.live.values.reduce(bytes, +) <= fake.limit else { return 2 }
        fake.live[fake.next] = bytes
        address.pointee = fake.next
        fake.next += UInt64(bytes + 4096)
        return 0
      }
    }
    table.memory_free = { address in
      AllocatorTests.fake.withLock { $0.live.removeValue(forKey: address) == nil ? 1 : 0 }
    }
    let driver = try DriverCalls(table, device: 0, name: "cuda:0")
    return CUDAAllocator(driver: driver, name: "cuda:0", total: 1 << 40)
  }

  private var liveBlocks: Int { Self.fake.withLock { $0.live.count } }

  @Test func blocksAreReused() throws {
    let allocator = try makeAllocator(limit: 1 << 30)
    var first: CUDABuffer? = try allocator.allocate(byteCount: 5 << 20)
    let address = first?.address
    #expect(allocator.report.inUse >= 5 << 20)
    first = nil
    #expect(allocator.report.inUse == 0 && allocator.report.cached >= 5 << 20)
    let second = try allocator.allocate(byteCount: 5 << 20)
    #expect(second.address == address && liveBlocks == 1)
    #expect(allocator.holdings.first?.count == 1)
  }

  @Test func smallBlocksShareASlabAndAreAligned() throws {
    let allocator = try makeAllocator(limit: 1 << 30)
    let blocks = try (1..<60).map { try allocator.allocate(byteCount: $0 * 37) }
    #expect(liveBlocks == 1)
    #expect(blocks.allSatisfy { $0.address % 256 == 0 })
    #expect(Set(blocks.map(\.address)).count == blocks.count)
    for (a, b) in zip(blocks, blocks.dropFirst()) {
      #expect(a.address + UInt64(a.byteCount) <= b.address)
    }
  }

  @Test func outOfMemoryFreesTheCacheFirstAndIsAnError() throws {
    let allocator = try makeAllocator(limit: 100 << 20)
    do { _ = try allocator.allocate(byteCount: 60 << 20) }
    let large = try allocator.allocate(byteCount: 80 << 20)
    #expect(large.byteCount == 80 << 20 && liveBlocks == 1)
    #expect(throws: DeviceError.outOfMemory(requested: 90 << 20, inUse: 80 << 20, device: "cuda:0"))
    {
      try allocator.allocate(byteCount: 90 << 20)
    }
    #expect(throws: DeviceError.self) { try allocator.allocate(byteCount: 1 << 50) }
    _ = try allocator.allocate(byteCount: 1000)
  }

  @Test func aCapturedGraphKeepsItsBlocks() throws {
    let allocator = try makeAllocator(limit: 1 << 30)
    allocator.beginCapture()
    let address = try allocator.allocate(byteCount: 4 << 20).address
    let owned = allocator.endCapture()
    #expect(owned.map(\.address) == [address])
    #expect(try allocator.allocate(byteCount: 4 << 20).address != address)
    allocator.reclaim(owned)
    #expect(allocator.report.inUse == 0)
  }

  /// A graph that shares its memory may use it whenever nobody else holds a block of it.
  @Test func aSharedGraphWaitsForItsBlocks() throws {
    let allocator = try makeAllocator(limit: 20 << 20)
    let outside = try allocator.allocate(byteCount: 100)
    allocator.beginSharing()
    do {
      _ = try allocator.allocate(byteCount: 4 << 20)
      _ = try allocator.allocate(byteCount: 1000)
    }
    let blocks = try #require(allocator.endSharing())
    #expect(blocks.addresses.count == 2 && allocator.use(blocks))
    var other: CUDABuffer? = try allocator.allocate(byteCount: 4 << 20)
    #expect(blocks.addresses.contains(other?.address ?? 0) && !allocator.use(blocks))
    other = nil
    #expect(allocator.use(blocks) && allocator.report.peak >= 4 << 20)
    // Pressure gives the large block back to the driver: the graph is gone.
    let large = try allocator.allocate(byteCount: 11 << 20)
    #expect(large.byteCount == 11 << 20 && outside.byteCount == 100 && !allocator.use(blocks))
    allocator.forget(blocks)
  }

  /// What outlives the work, or was there before and is released in it, cannot be repeated.
  @Test func sharedGraphsOwnNothingThatLives() throws {
    let allocator = try makeAllocator(limit: 1 << 30)
    allocator.beginSharing()
    let kept = try allocator.allocate(byteCount: 2 << 20)
    #expect(allocator.endSharing() == nil && kept.byteCount == 2 << 20)
    var before: CUDABuffer? = try allocator.allocate(byteCount: 3 << 20)
    #expect(before != nil)
    allocator.beginSharing()
    before = nil
    #expect(allocator.endSharing() == nil)
  }
}
