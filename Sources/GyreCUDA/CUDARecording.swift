import CGyreCUDALoader
import GyreTensors
import Synchronization

/// What a device notes of the work that is queued, while somebody wants to know.
struct WorkNotes: Sendable {
  enum Purpose: Sendable {
    /// The work runs.
    case trace
    /// The work is recorded and does not run.
    case record
    /// The same, in memory that others use between replays.
    case share(GraphConstants)
  }
  let purpose: Purpose
  var trace = WorkTrace()
  /// Whether what is recorded can be replayed.
  var isRepeatable = true
  /// What the work reads or writes, as long as somebody else holds it.
  private var touched: [ObjectIdentifier: WeakBuffer] = [:]

  init(_ purpose: Purpose) { self.purpose = purpose }

  /// Whether work is recorded in place of running.
  var isRecording: Bool { if case .trace = purpose { false } else { true } }

  mutating func add(_ call: KernelCall) {
    guard case .record = purpose else {
      trace.add(call)
      if case .share = purpose {
        for t in call.inputs + call.outputs {
          guard let buffer = t.cudaBuffer else { continue }
          touched[ObjectIdentifier(buffer)] = WeakBuffer(buffer)
        }
      }
      return
    }
    // A position is a number of the launch, not of memory.
    if call.op is Rotary || call.op is RotaryAtRates { isRepeatable = false }
  }

  /// Notes that the host takes part, which a recording cannot repeat.
  mutating func hinder(_ reason: String) {
    trace.hinder(reason)
    isRepeatable = false
  }

  var buffers: [CUDABuffer] { touched.values.compactMap(\.buffer) }
}

/// A buffer that its owner may release meanwhile.
private struct WeakBuffer: @unchecked Sendable {
  private(set) weak var buffer: CUDABuffer?
  init(_ buffer: CUDABuffer) { self.buffer = buffer }
}

/// Numbers from the host that a recorded graph reads, in memory of their own, filled before its first
/// replay.
final class GraphConstants: @unchecked Sendable {
  private let buffer: CUDABuffer
  private let pieces = Mutex<[UInt8]>([])

  init(_ buffer: CUDABuffer) { self.buffer = buffer }

  /// Where the bytes will lie; nil when there is no more room.
  func place(_ bytes: UnsafeRawBufferPointer) -> UInt64? {
    pieces.withLock { all in
      let offset = (all.count + 255) / 256 * 256
      guard offset + bytes.count <= buffer.byteCount else { return nil }
      all += [UInt8](repeating: 0, count: offset - all.count)
      all += bytes
      return buffer.address + UInt64(offset)
    }
  }

  /// Queues the copy.
  func fill(_ copy: (UnsafeRawBufferPointer, UInt64) -> Int32) -> Int32 {
    pieces.withLock { all in all.withUnsafeBytes { copy($0, buffer.address) } }
  }
}

/// A recorded step: its kernels, the tensors that it reads and writes, and the memory in which it works,
/// which others use between replays.
final class CUDAStepGraph: RecordedWork, @unchecked Sendable {
  private let device: CUDADevice
  private let executable: UnsafeMutableRawPointer
  private let memory: SharedBlocks
  private let constants: GraphConstants
  /// Tensors of others with the bfloat16 copy that each has at the end of the work.
  private let tensors: [(buffer: CUDABuffer, shadow: CUDABuffer?)]

  init(
    _ device: CUDADevice, executable: UnsafeMutableRawPointer, memory: SharedBlocks,
    constants: GraphConstants, tensors: [CUDABuffer]
  ) {
    (self.device, self.executable) = (device, executable)
    (self.memory, self.constants) = (memory, constants)
    self.tensors = tensors.map { ($0, $0.shadow.withLock { $0 }) }
  }

  func replay() -> Bool {
    // A copy that the work updates must be the one that others read.
    let isCurrent = tensors.allSatisfy { buffer, shadow in
      shadow == nil || buffer.shadow.withLock { $0 === shadow }
    }
    guard isCurrent, device.allocator.use(memory) else { return false }
    device.replay(executable)
    for (buffer, shadow) in tensors where shadow == nil { buffer.changed() }
    return true
  }

  deinit {
    _ = device.driver.current.stream_synchronize(device.stream)
    _ = device.driver.table.graph_executable_destroy(executable)
    device.allocator.forget(memory)
  }
}

extension CUDADevice {
  public var repeatsWork: Bool { true }

  public func trace(_ body: () -> Void) -> WorkTrace {
    // Work that is measured kernel by kernel is not to be recorded.
    guard !times.isOn, notes.withLock({ $0 == nil }) else {
      body()
      return WorkTrace(obstacle: "kernels are being measured")
    }
    begin(WorkNotes(.trace))
    body()
    flush()
    return end()?.trace ?? WorkTrace(obstacle: "nothing was noted")
  }

  public func record(_ body: () -> Void) -> (any RecordedWork)? {
    flush()
    guard !failure.isSet else { return nil }
    let table = driver.current
    guard table.capture_begin(stream, 2) == GYRE_CUDA_SUCCESS else { return nil }  // relaxed
    allocator.beginCapture()
    begin(WorkNotes(.record))
    body()
    flush()
    let executable = try? endCapture(end())
    let blocks = allocator.endCapture()
    guard let executable else {
      allocator.reclaim(blocks)
      return nil
    }
    return CUDAGraph(device: self, executable: executable, blocks: blocks)
  }

  public func record(
    repeating trace: WorkTrace, _ body: () -> Void
  ) throws(DeviceError) -> any RecordedWork {
    func refuse(_ reason: String) -> DeviceError {
      .kernelFailed(kernel: "recorded step", device: id.name, reason: reason)
    }
    flush()
    guard !failure.isSet, !times.isOn else { throw refuse("the device has failed or is measured") }
    let constants = GraphConstants(try allocator.allocate(byteCount: 1 << 20))
    let table = driver.current
    let begun = table.capture_begin(stream, 2)
    guard begun == GYRE_CUDA_SUCCESS else { throw refuse(table.message(begun)) }
    allocator.beginSharing()
    begin(WorkNotes(.share(constants)))
    body()
    flush()
    let found = end()
    let executable: UnsafeMutableRawPointer
    do throws(DeviceError) { executable = try endCapture(found) } catch {
      if let memory = allocator.endSharing() { allocator.forget(memory) }
      throw error
    }
    let memory = allocator.endSharing()
    guard let memory, let found, found.trace.difference(from: trace) == nil,
      check(constants.fill(copy), "constants of a recorded step")
    else {
      _ = table.graph_executable_destroy(executable)
      if let memory { allocator.forget(memory) }
      throw refuse(
        found?.trace.difference(from: trace)
          ?? (memory == nil ? "memory of the step outlives it" : "its constants were not copied"))
    }
    return CUDAStepGraph(
      self, executable: executable, memory: memory, constants: constants, tensors: found.buffers)
  }

  /// Ends a capture. Where it came to nothing, the device works on.
  private func endCapture(
    _ notes: WorkNotes?
  ) throws(DeviceError) -> UnsafeMutableRawPointer {
    let table = driver.current
    var graph: gyre_cuda_handle?
    var executable: gyre_cuda_handle?
    var code = table.capture_end(stream, &graph)
    defer { if graph != nil { _ = table.graph_destroy(graph) } }
    let isRepeatable = notes?.isRepeatable ?? false
    if isRepeatable, code == GYRE_CUDA_SUCCESS, !failure.isSet, graph != nil {
      code = table.graph_instantiate(&executable, graph, 0)
      if code == GYRE_CUDA_SUCCESS, let executable { return executable }
    }
    // What could not be recorded did not run either: a failure in it is none of the device's.
    try failure.take()
    throw .kernelFailed(
      kernel: "recorded work", device: id.name,
      reason: isRepeatable
        ? table.message(code) : notes?.trace.obstacle ?? "a position changes from run to run")
  }

  /// Queues a graph.
  func replay(_ executable: UnsafeMutableRawPointer) {
    if failure.isSet { return }
    flush()
    check(driver.current.graph_launch(executable, stream), "graph")
  }

  // MARK: - Notes

  private func begin(_ what: WorkNotes) {
    notes.withLock { $0 = what }
    isNoting.store(true, ordering: .relaxed)
  }

  private func end() -> WorkNotes? {
    isNoting.store(false, ordering: .relaxed)
    return notes.withLock { found in
      let taken = found
      found = nil
      return taken
    }
  }

  func note(_ change: (inout WorkNotes) -> Void) {
    guard isNoting.load(ordering: .relaxed) else { return }
    notes.withLock { if $0 != nil { change(&$0!) } }
  }

  /// Notes that the host waits for the device; whether that must be left out, since work is recorded.
  func noteWait(_ what: String) -> Bool {
    guard isNoting.load(ordering: .relaxed) else { return false }
    note { $0.hinder(what) }
    return notes.withLock { $0?.isRecording ?? false }
  }

  /// Where bytes from the host lie for work that is queued next: a copy's source while work is recorded.
  ///
  /// - Returns: nil where nothing is recorded.
  func constant(_ bytes: UnsafeRawBufferPointer) -> UInt64? {
    guard isNoting.load(ordering: .relaxed) else { return nil }
    let purpose = notes.withLock { $0?.purpose }
    guard let purpose else { return nil }
    switch purpose {
    case .trace: return nil
    case .record: break
    case .share(let constants): if let address = constants.place(bytes) { return address }
    }
    note { $0.hinder("data from the host") }
    return 0
  }
}
