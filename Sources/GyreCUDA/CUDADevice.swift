import CGyreCUDALoader
import CGyreCUDASources
import GyreRecurrence
import GyreTensors
import Synchronization

extension ShortConvolution {
  /// The window, where it may be moved on in place.
  fileprivate func overwritten(_ inputs: [Tensor]) -> Int? {
    guard inputs[0].shape[1] == 1, !optional.has(4), let window = optional[3],
      inputs[window].dtype == .float32
    else { return nil }
    return window
  }
}

/// An NVIDIA GPU: one queue of kernels compiled when the process runs.
///
/// Work is asynchronous; host reads and `synchronize()` wait for it. Results are the same bits from
/// run to run: no sum goes through atomics.
public final class CUDADevice: Device, @unchecked Sendable {
  public let id: DeviceID
  /// The card's name, as the driver gives it.
  public let name: String
  /// Compute capability.
  public let capability: (major: Int, minor: Int)
  /// Whether a kernel may begin before the one in front has ended.
  var startsEarly: Bool { capability.major >= 9 }
  /// Versions of driver, NVRTC and cuBLASLt, for reports.
  public let versions: String
  let driver: DriverCalls
  let stream: gyre_cuda_handle?
  let multiprocessors: Int
  /// Shared memory that a block may have.
  let sharedPerBlock: Int
  let allocator: CUDAAllocator
  let compiler: CUDACompiler
  let failure = StickyFailure()
  /// Where the card's time goes, kernel by kernel.
  public let times: LaunchTimes
  private let products: CUDAProducts
  private let staging: Staging
  private let readBack: ReadBack
  private let optimizer: Mutex<AdamWBatch>
  private let references = Mutex<[String: Int]>([:])
  private let launched = Atomic<Int>(0)
  /// While work is traced or recorded.
  let notes = Mutex<WorkNotes?>(nil)
  let isNoting = Atomic(false)

  /// Oldest compute capability that the kernels are written for.
  private static let oldest = 8

  /// Opens card number `index`.
  ///
  /// - Parameter cacheFolder: where compiled kernels are kept; nil for the user's cache folder.
  /// - Throws: `unavailable` when a library is missing (which, where it was looked for, how to get it),
  ///   when there is no such card, when it is busy or too old.
  public convenience init(index: Int, cacheFolder: String? = nil) throws(DeviceError) {
    let name = "cuda:\(index)"
    try self.init(
      index: index, libraries: try CUDALibraries.open(for: name),
      cache: CubinCache(folder: cacheFolder ?? CubinCache.defaultFolder))
  }

  init(index: Int, libraries: CUDALibraries, cache: CubinCache) throws(DeviceError) {
    let label = "cuda:\(index)"
    let table = libraries.driver
    func check(_ code: Int32) throws(DeviceError) {
      if code != 0 { throw .unavailable(device: label, reason: table.message(code)) }
    }
    try check(table.start(0))
    var count: Int32 = 0
    try check(table.device_count(&count))
    guard index >= 0, index < Int(count) else {
      throw .unavailable(
        device: label,
        reason: count == 0
          ? "the driver sees no card"
          : "the driver sees \(count) card\(count == 1 ? "" : "s"), cuda:0 to cuda:\(count - 1)")
    }
    var ordinal: Int32 = 0
    try check(table.device_get(&ordinal, Int32(index)))
    var text = [CChar](repeating: 0, count: 128)
    try check(table.device_name(&text, 128, ordinal))
    let name = String(
      decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    func attribute(_ attribute: Int) -> Int {
      var value: Int32 = 0
      _ = table.device_attribute(&value, Int32(attribute), ordinal)
      return Int(value)
    }
    let capability = (
      major: attribute(Int(GYRE_CUDA_CAPABILITY_MAJOR)),
      minor: attribute(Int(GYRE_CUDA_CAPABILITY_MINOR))
    )
    guard capability.major >= Self.oldest else {
      throw .unavailable(
        device: label,
        reason: "\(name) has compute capability \(capability.major).\(capability.minor); "
          + "\(Self.oldest).0 (Ampere) or later is needed")
    }
    let driver = try DriverCalls(table, device: ordinal, name: label)
    var stream: gyre_cuda_handle?
    try check(table.stream_create(&stream, 1))  // does not wait for the default stream
    var total = 0
    try check(table.device_memory(&total, ordinal))
    var version: Int32 = 0
    _ = table.driver_version(&version)
    let allocator = CUDAAllocator(driver: driver, name: label, total: total)
    compiler = try CUDACompiler(
      driver: driver, nvrtc: libraries.compiler, capability: capability, cache: cache,
      device: label)
    products = try CUDAProducts(
      libraries.products, driver: driver, stream: stream, allocator: allocator, device: label)
    versions =
      "driver \(version / 1000).\(version % 1000 / 10), NVRTC \(compiler.version), "
      + "cuBLASLt \(products.version)"
    staging = Staging(driver: driver, stream: stream)
    readBack = ReadBack(driver: driver, stream: stream)
    times = LaunchTimes(driver: driver, stream: stream)
    optimizer = Mutex(AdamWBatch())
    multiprocessors = attribute(Int(GYRE_CUDA_MULTIPROCESSORS))
    sharedPerBlock = attribute(Int(GYRE_CUDA_SHARED_PER_BLOCK_OPTIN))
    id = DeviceID(label)
    self.name = name
    self.capability = capability
    self.driver = driver
    self.stream = stream
    self.allocator = allocator
  }

  deinit {
    _ = driver.current.stream_synchronize(stream)
    _ = driver.table.stream_destroy(stream)
  }

  /// Cards that the driver sees; 0 without a driver.
  public static var count: Int {
    var status = gyre_cuda_library_status()
    guard let driver = gyre_cuda_load_driver(&status)?.pointee, driver.start(0) == 0 else {
      return 0
    }
    var count: Int32 = 0
    return driver.device_count(&count) == 0 ? Int(count) : 0
  }

  /// Compiles every kernel into the cache.
  ///
  /// - Parameter progress: called with the name of each file before it is compiled.
  /// - Throws: `kernelFailed` with the compiler's log.
  public func prepare(_ progress: (String) -> Void = { _ in }) throws(DeviceError) {
    try compiler.prepare(progress)
  }

  // MARK: - Device

  public func allocate(byteCount: Int) throws(DeviceError) -> any DeviceBuffer {
    try allocator.allocate(byteCount: byteCount)
  }

  public func launch(_ call: KernelCall) {
    if failure.isSet { return }
    launched.wrappingAdd(1, ordering: .relaxed)
    note { $0.add(call) }
    // Steps of AdamW wait for each other, to run as one.
    if let step = call.op as? AdamWStep {
      optimizer.withLock { $0.add(step, call, self) }
      return
    }
    defer { for output in call.outputs { output.cudaBuffer?.changed() } }
    flush()
    let launch = CUDALaunch(self, call.op.name)
    if call.inputs.contains(where: \.dtype.isQuantized) {
      if CUDAKernel.runBlocks(call, launch) { return }
    } else if let kernel = CUDAKernel.all[ObjectIdentifier(type(of: call.op))],
      kernel.run(call, launch)
    {
      return
    }
    references.withLock { $0["\(call.op.name) \(call.inputs.map(\.spec))", default: 0] += 1 }
    note { $0.hinder("\(call.op.name) runs on the host") }
    runReference(call)
  }

  /// Queues what waits.
  func flush() {
    optimizer.withLock { $0.run(CUDALaunch(self, AdamWStep.name)) }
  }

  public func synchronize() throws(DeviceError) {
    if noteWait("a wait for the host") { return }
    flush()
    check(driver.current.stream_synchronize(stream), "synchronize")
    try failure.take()
  }

  public func fail(_ error: DeviceError) { failure.set(error) }

  public func hasKernel(for op: any Op) -> Bool {
    if op is LinearGroup { return RowProducts.suits(self) }
    if let op = op as? any HeadStepOp { return HeadStep.covers(op) }
    return op is AdamWStep || CUDAKernel.all[ObjectIdentifier(type(of: op))] != nil
  }

  public func overwrites(_ op: any Op, _ inputs: [Tensor]) -> (input: Int, output: Int)? {
    switch op {
    // Of one token, a thread reads what it replaces before it writes.
    case let op as ShortConvolution:
      return op.overwritten(inputs).map { (input: $0, output: 1) }
    case let op as PiecedConvolution:
      return op.convolution.overwritten(inputs).map { (input: $0, output: op.pieces.count) }
    case let op as MinGRUForward:
      guard MinGRUStep.suits(op, inputs) else { return nil }
      return op.optional[2].map { (input: $0, output: 1) }
    case is MinGRUToken: return (input: 1, output: 1)
    case let op as NormedMixes:
      return (input: op.first + op.mixes, output: op.mixes + 1)
    case let op as TokenMixes:
      guard op.hasLast, inputs[0].shape[1] == 1 else { return nil }
      return (input: op.mixes + 1, output: op.mixes)
    default: return HeadStep(op, inputs, self)?.state.map { (input: $0, output: 1) }
    }
  }

  public func write(_ bytes: UnsafeRawBufferPointer, to buffer: any DeviceBuffer, offset: Int) {
    guard let target = buffer as? CUDABuffer, !failure.isSet else { return }
    flush()
    target.changed()
    note { $0.trace.add(written: bytes) }
    let address = target.address + UInt64(offset)
    if let source = constant(bytes) {
      guard source != 0 else { return }
      check(
        driver.current.copy_on_device(address, source, bytes.count, stream), "copy to the device")
      return
    }
    check(copy(bytes, to: address), "copy to the device")
  }

  /// Queues a copy to the device; the driver's code.
  func copy(_ bytes: UnsafeRawBufferPointer, to address: UInt64) -> Int32 {
    staging.copy(bytes, to: address)
  }

  public func queueRead(
    _ buffer: any DeviceBuffer, offset: Int, byteCount: Int
  ) -> any PendingRead {
    flush()
    let address = (buffer as? CUDABuffer).map { $0.address + UInt64(offset) }
    if let address, !isNoting.load(ordering: .relaxed), !failure.isSet,
      let read = readBack.queue(address, byteCount, self)
    {
      return read
    }
    return finishedRead(buffer, offset: offset, byteCount: byteCount)
  }

  public func read(
    _ buffer: any DeviceBuffer, offset: Int, into bytes: UnsafeMutableRawBufferPointer
  ) throws(DeviceError) {
    guard let source = buffer as? CUDABuffer, let target = bytes.baseAddress, bytes.count > 0 else {
      return
    }
    if noteWait("a read on the host") { return }
    flush()
    let table = driver.current
    check(
      table.copy_to_host(target, source.address + UInt64(offset), bytes.count, stream),
      "copy to the host")
    check(table.stream_synchronize(stream), "copy to the host")
    try failure.take()
  }

  public var storesBFloat16: Bool { true }

  public func multiplies(stored type: DType) -> Bool { type.isQuantized }
  public var readsKeptStates: Bool { false }
  public var newtonRange: (units: Int, tokens: Int) { (8192, 256) }
  public var memory: MemoryReport { allocator.report }
  public func resetPeakMemory() { allocator.resetPeak() }

  // MARK: - Reports

  /// Launches that no kernel covered, by op and input shapes: what ran on the host, slowly.
  public var referenceLaunches: [String: Int] { references.withLock { $0 } }

  /// Ops launched so far.
  public var launchCount: Int { launched.load(ordering: .relaxed) }

  /// Blocks of memory in use by size, those that hold most first.
  public var holdings: [(byteCount: Int, count: Int)] { allocator.holdings }

  /// Keeps a driver's failure; true for success.
  @discardableResult
  func check(_ code: Int32, _ what: String) -> Bool {
    if code == GYRE_CUDA_SUCCESS { return true }
    failure.set(
      .kernelFailed(kernel: what, device: id.name, reason: driver.table.message(code)))
    return false
  }

  /// The definition, on copies in host memory.
  private func runReference(_ call: KernelCall) {
    func values(_ t: Tensor) throws(DeviceError) -> [Double] {
      guard let buffer = t.buffer else { return [] }
      let bytes = UnsafeMutableRawBufferPointer.allocate(
        byteCount: max(t.byteCount, 1), alignment: 64)
      defer { bytes.deallocate() }
      let part = UnsafeMutableRawBufferPointer(rebasing: bytes[..<t.byteCount])
      try read(buffer, offset: t.byteOffset, into: part)
      guard let base = bytes.baseAddress else { return [] }
      return ElementCoding.decode(base, t.dtype, t.elementCount)
    }
    do throws(DeviceError) {
      var inputs: [[Double]] = []
      for t in call.inputs { inputs.append(try values(t)) }
      var arguments = HostArguments(
        inputs: inputs, inputSpecs: call.inputs.map(\.spec), outputSpecs: call.outputs.map(\.spec))
      call.op.reference(&arguments)
      for (t, values) in zip(call.outputs, arguments.outputs) {
        guard let buffer = t.buffer else { continue }
        let bytes = UnsafeMutableRawBufferPointer.allocate(
          byteCount: max(t.byteCount, 1), alignment: 64)
        defer { bytes.deallocate() }
        if let base = bytes.baseAddress { ElementCoding.encode(values, to: base, t.dtype) }
        write(
          UnsafeRawBufferPointer(rebasing: bytes[..<t.byteCount]), to: buffer, offset: t.byteOffset)
      }
    } catch { failure.set(error) }
  }

  /// C ← op(A) op(B) in the device's queue.
  func multiply(_ problem: CUDAProducts.Problem) {
    if failure.isSet { return }
    var reason: String?
    _ = times.measure(problem.description) {
      reason = products.multiply(problem)
      return 0
    }
    if let reason {
      failure.set(.kernelFailed(kernel: "product", device: id.name, reason: reason))
    }
  }
}
