import CGyreCUDALoader
import CGyreCUDASources
import GyreTensors
import Synchronization

/// One op on its way to the device: launches kernels and holds the memory that they share.
final class CUDALaunch {
  let device: CUDADevice
  private let op: String
  /// Held until all of the op is queued; then the queue's order makes reuse safe.
  private var held: [CUDABuffer] = []
  private var hasQueued = false

  init(_ device: CUDADevice, _ op: String) {
    self.device = device
    self.op = op
  }

  /// Memory for this op; 0 where there is none, and the device keeps the error.
  func scratch(_ byteCount: Int) -> UInt64 {
    do throws(DeviceError) {
      let buffer = try device.allocator.allocate(byteCount: byteCount)
      held.append(buffer)
      return buffer.address
    } catch {
      device.fail(error)
      return 0
    }
  }

  /// Memory that outlives the op; nil where there is too little, which is no failure.
  func keep(_ byteCounts: [Int]) -> [CUDABuffer]? {
    guard device.allocator.hasRoom(for: byteCounts.reduce(0, +)) else { return nil }
    return try? byteCounts.map { try device.allocator.allocate(byteCount: $0) }
  }

  /// Keeps memory until the op is queued; its addresses.
  func hold(_ buffers: [CUDABuffer]) -> [UInt64] {
    held += buffers
    return buffers.map(\.address)
  }

  func floats(_ count: Int) -> UInt64 { scratch(4 * max(count, 1)) }

  /// Queues a kernel, early where it and the device can. A grid without blocks is none.
  func run<Arguments>(
    _ function: CUDAFunction, grid: (Int, Int, Int), threads: (Int, Int) = (256, 1),
    shared: Int = 0, _ arguments: Arguments
  ) {
    guard grid.0 > 0, grid.1 > 0, grid.2 > 0, !device.failure.isSet else { return }
    precondition(
      grid.0 < 1 << 31 && grid.1 < 1 << 16 && grid.2 < 1 << 16, "\(function.name): grid \(grid)")
    do throws(DeviceError) {
      let handle = try device.compiler.function(function, shared: shared)
      var arguments = arguments
      let code = withUnsafeMutablePointer(to: &arguments) { pointer in
        var parameters: UnsafeMutableRawPointer? = UnsafeMutableRawPointer(pointer)
        return device.times.measure(name(function)) {
          if isEarly(function) {
            var early = gyre_cuda_launch_attribute()
            (early.id, early.value.0) = (UInt32(GYRE_CUDA_LAUNCH_EARLY), 1)
            return withUnsafeMutablePointer(to: &early) { early in
              var how = gyre_cuda_launch_config()
              how.grid = (UInt32(grid.0), UInt32(grid.1), UInt32(grid.2))
              how.threads = (UInt32(threads.0), UInt32(threads.1), 1)
              (how.shared, how.stream) = (UInt32(shared), device.stream)
              (how.attributes, how.count) = (early, 1)
              return device.driver.current.launch_with(&how, handle, &parameters, nil)
            }
          }
          return device.driver.current.launch(
            handle, UInt32(grid.0), UInt32(grid.1), UInt32(grid.2), UInt32(threads.0),
            UInt32(threads.1), 1, UInt32(shared), device.stream, &parameters, nil)
        }
      }
      device.check(code, name(function))
    } catch { device.fail(error) }
  }

  /// Only the first kernel of an op: what one makes for the next is there when that one begins.
  private func isEarly(_ function: CUDAFunction) -> Bool {
    defer { hasQueued = true }
    return function.isEarly && !hasQueued && device.startsEarly
  }

  private func name(_ function: CUDAFunction) -> String {
    op == function.name ? op : "\(op) (\(function.name))"
  }

  /// Queues a kernel whose blocks wait for each other: all are on the device at once.
  func runTogether<Arguments>(
    _ function: CUDAFunction, grid: (Int, Int), threads: Int, shared: Int = 0,
    _ arguments: Arguments
  ) {
    guard !device.failure.isSet else { return }
    do throws(DeviceError) {
      let handle = try device.compiler.function(function, shared: shared)
      var arguments = arguments
      let code = withUnsafeMutablePointer(to: &arguments) { pointer in
        var parameters: UnsafeMutableRawPointer? = UnsafeMutableRawPointer(pointer)
        return device.times.measure(name(function)) {
          device.driver.current.launch_cooperative(
            handle, UInt32(grid.0), UInt32(grid.1), 1, UInt32(threads), 1, 1, UInt32(shared),
            device.stream, &parameters)
        }
      }
      device.check(code, name(function))
    } catch { device.fail(error) }
  }

  /// Blocks of a kernel that the device holds at once; 0 where it cannot be compiled, and the device
  /// keeps the error.
  func blocksAtOnce(_ function: CUDAFunction, threads: Int, shared: Int = 0) -> Int {
    do throws(DeviceError) {
      let handle = try device.compiler.function(function, shared: shared)
      var blocks: Int32 = 0
      let code = device.driver.current.occupancy(&blocks, handle, Int32(threads), shared)
      guard device.check(code, name(function)) else { return 0 }
      return Int(blocks) * device.multiprocessors
    } catch {
      device.fail(error)
      return 0
    }
  }

  /// Queues a kernel whose threads stride over `count` items, `each` at a time.
  func run<Arguments>(
    _ function: CUDAFunction, over count: Int, each: Int = 1, _ arguments: Arguments
  ) {
    let blocks = (count + 256 * each - 1) / (256 * each)
    run(function, grid: (min(blocks, device.multiprocessors * 16), 1, 1), arguments)
  }

  /// Queues a kernel whose blocks stride over rows of `columns`.
  func run<Arguments>(
    _ function: CUDAFunction, rows: Int, columns: Int, _ arguments: Arguments
  ) {
    let threads = min(max((columns + 31) / 32 * 32, 32), 256)
    run(
      function, grid: (min(rows, device.multiprocessors * 32), 1, 1), threads: (threads, 1),
      arguments)
  }

  /// Parts into which `rows` are cut so that `blocks` blocks a part fill the device.
  func splits(_ rows: Int, blocks: Int) -> Int {
    let wanted = (device.multiprocessors * 4 + max(blocks, 1) - 1) / max(blocks, 1)
    return max(1, min(wanted, rows / 16, 1024))
  }

  /// Blocks of 256 columns across, and down as many as `blocksPerProcessor` allows and rows in eights need.
  func columnGrid(
    rows: Int, columns: Int, blocksPerProcessor: Int
  ) -> (Int, Int, Int) {
    let across = (columns + 255) / 256
    let wanted = device.multiprocessors * blocksPerProcessor / across
    return (across, max(1, min((rows + 7) / 8, wanted)), 1)
  }

  // MARK: - Steps that ops share

  private static let fillFunction = CUDAFunction("pointwise", "fill")
  private static let binary = CUDAFunction("pointwise", "binary")
  private static let castFunction = CUDAFunction("pointwise", "cast")
  private static let columnSum = CUDAFunction("reduce", "column_sum")
  private static let rowSum = CUDAFunction("reduce", "row_sum")

  func fill(_ t: Tensor, _ value: Double) {
    run(
      Self.fillFunction, over: t.elementCount, each: 8,
      gyre_fill_args(count: t.elementCount, value: value, y: t.array))
  }

  /// Queues zeros into scratch memory.
  func zero(_ address: UInt64, _ count: Int) { setBytes(address, 0, 4 * count) }

  func setBytes(_ address: UInt64, _ value: UInt8, _ byteCount: Int) {
    guard address != 0, byteCount > 0, !device.failure.isSet else { return }
    let code = device.times.measure("\(op) (set bytes)") {
      device.driver.current.set_bytes(address, value, byteCount, device.stream)
    }
    device.check(code, "set bytes")
  }

  /// Bytes from the host in memory of the op's own, or of the graph that is being recorded; 0 where there
  /// is none, and the device keeps the error.
  func upload(_ bytes: UnsafeRawBufferPointer) -> UInt64 {
    guard !device.failure.isSet else { return 0 }
    if let kept = device.constant(bytes) { return kept }
    let address = scratch(bytes.count)
    guard address != 0, device.check(device.copy(bytes, to: address), op) else { return 0 }
    return address
  }

  func copy(_ source: Tensor, to target: Tensor) {
    guard source.byteCount > 0, !device.failure.isSet, source.address != target.address else {
      return
    }
    let code = device.times.measure("\(op) (copy)") {
      device.driver.current.copy_on_device(
        target.address, source.address, source.byteCount, device.stream)
    }
    device.check(code, op)
  }

  /// Memory for this op as a tensor like another one; failures as in `scratch`.
  func like(_ t: Tensor) -> Tensor {
    let copy = Tensor(emptyWith: t.spec, on: device)
    if let buffer = copy.cudaBuffer { held.append(buffer) }
    return copy
  }

  /// y = a + b, of one shape.
  func add(_ a: gyre_array, _ b: gyre_array, into y: Tensor) {
    var sum = gyre_binary_args()
    (sum.count, sum.y) = (y.elementCount, y.array)
    (sum.a.array, sum.a.mode) = (a, Int32(GYRE_SAME))
    (sum.b.array, sum.b.mode) = (b, Int32(GYRE_SAME))
    run(Self.binary, over: sum.count, each: 8, sum)
  }

  func cast(_ x: gyre_array, to y: gyre_array, count: Int) {
    run(Self.castFunction, over: count, each: 8, gyre_cast_args(count: count, x: x, y: y))
  }

  /// out[c] = Σ over rows of x[r, c].
  func sumColumns(_ x: gyre_array, rows: Int, columns: Int, into out: gyre_array) {
    let blocks = (columns + 255) / 256
    let parts = splits(rows, blocks: blocks)
    var a = gyre_column_sum_args(
      rows: rows, columns: columns, splits: parts, x: x, out: out)
    if parts > 1 { a.out = .floats(floats(parts * columns)) }
    run(Self.columnSum, grid: (blocks, parts, 1), a)
    guard parts > 1 else { return }
    a = gyre_column_sum_args(rows: parts, columns: columns, splits: 1, x: a.out, out: out)
    run(Self.columnSum, grid: (blocks, 1, 1), a)
  }

  /// out[r] = Σ over columns of x[r, c].
  func sumRows(_ x: gyre_array, rows: Int, columns: Int, into out: gyre_array) {
    let parts =
      rows >= device.multiprocessors * 2 ? 1 : max(1, min(512 / max(rows, 1), columns / 2048))
    var a = gyre_row_sum_args()
    (a.rows, a.columns, a.splits, a.x, a.out) = (rows, columns, Int32(parts), x, out)
    if parts > 1 { a.out = .floats(floats(rows * parts)) }
    run(Self.rowSum, rows: rows * parts, columns: columns, a)
    guard parts > 1 else { return }
    (a.columns, a.splits, a.x, a.out) = (parts, 1, a.out, out)
    run(Self.rowSum, rows: rows, columns: parts, a)
  }

  /// A float tensor in bfloat16: itself, or a copy that is kept with it until it changes.
  func bfloat16(_ t: Tensor) -> UInt64 {
    if t.dtype == .bfloat16 { return t.address }
    guard let buffer = t.cudaBuffer else { return 0 }
    if let kept = t.cudaShadow {
      held.append(kept)
      return kept.address
    }
    do throws(DeviceError) {
      let copy = try device.allocator.allocate(byteCount: 2 * max(t.elementCount, 1))
      held.append(copy)
      cast(t.array, to: .init(copy.address, .bfloat16), count: t.elementCount)
      if t.isWhole { buffer.shadow.withLock { $0 = copy } }
      return copy.address
    } catch {
      device.fail(error)
      return 0
    }
  }
}

extension gyre_array {
  init(_ address: UInt64, _ dtype: DType) {
    self.init(data: address, dtype: dtype.cuda, stride: 0)
  }
  static func floats(_ address: UInt64) -> gyre_array { gyre_array(address, .float32) }
}

extension DType {
  var cuda: Int32 {
    switch self {
    case .float32: Int32(GYRE_F32)
    case .bfloat16: Int32(GYRE_BF16)
    case .float16: Int32(GYRE_F16)
    case .float64: Int32(GYRE_F64)
    case .int32: Int32(GYRE_I32)
    case .int64: Int32(GYRE_I64)
    case .int8: Int32(GYRE_I8)
    // Kernels of quantised weights are compiled for the type: see `CUDAKernel.runBlocks`.
    default: Int32(GYRE_U8)
    }
  }
}

extension Tensor {
  var cudaBuffer: CUDABuffer? { buffer as? CUDABuffer }
  /// Whether kernels compute in its type, where it is floating point.
  var isComputable: Bool {
    !dtype.isFloat || dtype == .float32 || dtype == .bfloat16 || dtype == .float16
  }
  /// Whether the tensor is all of its memory.
  var isWhole: Bool { cudaBuffer.map { byteOffset == 0 && byteCount + 16 > $0.byteCount } ?? false }
  /// Its values in bfloat16 where they are kept.
  var cudaShadow: CUDABuffer? { isWhole ? cudaBuffer?.shadow.withLock { $0 } : nil }
  /// The first byte on the device; 0 where there is no storage.
  var address: UInt64 { cudaBuffer.map { $0.address + UInt64(byteOffset) } ?? 0 }
  /// As kernels take it.
  var array: gyre_array { gyre_array(address, dtype) }
  /// The same for a parameter of `width` elements that may be `[B] + shape`, of each sequence its own.
  func parameter(_ width: Int) -> gyre_array {
    var a = array
    if elementCount > width { a.stride = Int32(width) }
    return a
  }
}

extension Tensor? {
  /// As kernels take it; absent for nil.
  var array: gyre_array { self?.array ?? gyre_array() }
  var address: UInt64 { self?.address ?? 0 }
}

extension KernelCall {
  /// Whether the floating tensors of the call have types that kernels compute in.
  var isComputable: Bool {
    inputs.allSatisfy(\.isComputable) && outputs.allSatisfy(\.isComputable)
  }
}
