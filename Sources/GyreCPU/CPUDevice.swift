import CGyreKernels
import GyreTensors
import Synchronization

/// A processor at one instruction level. Work runs at once on the calling thread and the kernels'
/// own pool.
public final class CPUDevice: HostDevice, @unchecked Sendable {
  /// Instruction levels, by the names that devices take: "cpu:avx2".
  public enum Level: String, Sendable, CaseIterable {
    case generic, avx2, avx512, avx512bf16, amx, neon

    var c: ck_level {
      switch self {
      case .generic: CK_LEVEL_GENERIC
      case .avx2: CK_LEVEL_AVX2
      case .avx512: CK_LEVEL_AVX512
      case .avx512bf16: CK_LEVEL_AVX512BF16
      case .amx: CK_LEVEL_AMX
      case .neon: CK_LEVEL_NEON
      }
    }

    /// Whether this processor and operating system have the level.
    public var isAvailable: Bool { ck_level_available(c) }
    /// The best level of this machine.
    public static var best: Level { allCases.first { $0.c == ck_level_best() } ?? .generic }
  }

  public let level: Level
  private let references = Mutex<[String: Int]>([:])
  let kernels: KernelTables

  /// - Throws: `unavailable` when the machine lacks the level.
  public init(level: Level? = nil, poisons: Bool = false) throws(DeviceError) {
    let chosen = level ?? Level.best
    guard chosen.isAvailable, let kernels = KernelTables(chosen.c) else {
      throw .unavailable(
        device: "cpu:\(chosen.rawValue)", reason: "this processor does not have it")
    }
    self.level = chosen
    self.kernels = kernels
    super.init(
      id: DeviceID(level == nil ? "cpu" : "cpu:\(chosen.rawValue)"), poisons: poisons)
  }

  override public func launch(_ call: KernelCall) {
    if failure.isSet { return }
    opTimes.measure(call) { run(call) }
  }

  private func run(_ call: KernelCall) {
    if let kernel = CPUKernel.all[ObjectIdentifier(type(of: call.op))], takesTypes(call),
      kernel.run(call, kernels) || runWidened(call, by: kernel)
    {
      return
    }
    references.withLock { $0["\(call.op.name) \(call.inputs.map(\.spec))", default: 0] += 1 }
    call.runReference()
  }

  /// A call with bfloat16 arrays by a kernel that takes float32 only.
  private func runWidened(_ call: KernelCall, by kernel: CPUKernel) -> Bool {
    let isHalf = { (t: Tensor) in t.dtype == .bfloat16 }
    guard call.inputs.contains(where: isHalf) || call.outputs.contains(where: isHalf) else {
      return false
    }
    func wide(_ t: Tensor) -> Tensor {
      isHalf(t) ? Tensor(emptyWith: TensorSpec(t.shape), on: self) : t
    }
    let inputs = call.inputs.map { t in
      // A value that no derivative reads has no memory.
      if t.hostAddress == nil {
        return Tensor(shape: t.shape, dtype: .float32, device: t.device, buffer: nil)
      }
      let copied = wide(t)
      if isHalf(t) { _ = CPUKernel.cast(t, to: copied, kernels) }
      return copied
    }
    let outputs = call.outputs.map(wide)
    guard kernel.run(KernelCall(op: call.op, inputs: inputs, outputs: outputs), kernels) else {
      return false
    }
    for (from, to) in zip(outputs, call.outputs) where isHalf(to) {
      _ = CPUKernel.cast(from, to: to, kernels)
    }
    return true
  }

  /// Elements of quantised types have no address of their own: three ops have kernels for blocks, the
  /// others run their definition.
  private func takesTypes(_ call: KernelCall) -> Bool {
    !call.inputs.contains { $0.dtype.isQuantized }
      || call.op is LinearMap || call.op is EmbeddingLookup || call.op is LinearCrossEntropy
  }

  /// Launches that no kernel covered, by op and input shapes: what ran slowly.
  public var referenceLaunches: [String: Int] { references.withLock { $0 } }

  override public func hasKernel(for op: any Op) -> Bool {
    CPUKernel.all[ObjectIdentifier(type(of: op))] != nil
  }

  override public var prefersTimeMajor: Bool { true }

  override public func multiplies(stored type: DType) -> Bool {
    type.isQuantized || type == .bfloat16 || type == .float16
  }

  /// Whether bfloat16 products are faster than float32 ones.
  public var hasFastBFloat16: Bool { kernels.gemm.has_bf16 }

  /// The exact product of two square int8 matrices, row-major.
  ///
  /// - Precondition: `size`² elements each.
  public func int8Product(_ a: [Int8], _ b: [Int8], size: Int) -> [Int32] {
    precondition(
      a.count == size * size && b.count == size * size, "int8Product: not \(size) × \(size)")
    var c = [Int32](repeating: 0, count: size * size)
    a.withUnsafeBufferPointer { a in
      b.withUnsafeBufferPointer { b in
        c.withUnsafeMutableBufferPointer { c in
          var args = ck_gemm_s8s8s32_args()
          (args.m, args.n, args.k, args.batch) = (size, size, size, 1)
          (args.a, args.b, args.c) = (a.baseAddress, b.baseAddress, c.baseAddress)
          (args.lda, args.ldb, args.ldc) = (size, size, size)
          kernels.gemm.gemm_s8s8s32(&args)
        }
      }
    }
    return c
  }

  /// Threads that kernels use, the caller's included.
  public static var threadCount: Int {
    get { Int(ck_thread_count()) }
    set { ck_set_thread_count(Int32(newValue)) }
  }

  /// Most levels of Strassen's scheme that large float32 products may take, 0 (the classical product) to
  /// 2: each saves an eighth of the multiplications and doubles the rounding error, 3e-7 of the norm
  /// without. The environment's `GYRE_STRASSEN` at first, 2 without it.
  public static var strassenLevels: Int {
    get { Int(ck_gemm_strassen_levels()) }
    set { ck_gemm_set_strassen_levels(Int32(clamping: newValue)) }
  }
}

/// The C kernels of one instruction level.
struct KernelTables: @unchecked Sendable {
  var gemm = ck_gemm_table()
  var pointwise = ck_pointwise_table()
  var norm = ck_norm_table()
  var loss = ck_loss_table()
  var optimizer = ck_optimizer_table()
  var scan = ck_diagonal_scan_table()
  var linearAttention = ck_linear_attention_table()
  var deltaRule = ck_delta_rule_table()
  var cellScan = ck_cell_scan_table()
  var recurrentCell = ck_recurrent_cell_table()
  var attention = ck_attention_table()
  var mesa = ck_mesa_table()
  var convolution = ck_short_convolution_table()
  var rotary = ck_rotary_table()
  var egg = ck_egg_table()
  var evolution = ck_evolution_table()
  var blocks = ck_blocks_table()
  var token = ck_token_table()

  init?(_ level: ck_level) {
    guard ck_gemm_table_for(level, &gemm), ck_pointwise_table_for(level, &pointwise),
      ck_norm_table_for(level, &norm), ck_loss_table_for(level, &loss),
      ck_optimizer_table_for(level, &optimizer), ck_diagonal_scan_table_for(level, &scan),
      ck_linear_attention_table_for(level, &linearAttention),
      ck_delta_rule_table_for(level, &deltaRule), ck_cell_scan_table_for(level, &cellScan),
      ck_recurrent_cell_table_for(level, &recurrentCell),
      ck_attention_table_for(level, &attention),
      ck_short_convolution_table_for(level, &convolution), ck_rotary_table_for(level, &rotary),
      ck_mesa_table_for(level, &mesa),
      ck_egg_table_for(level, &egg), ck_evolution_table_for(level, &evolution),
      ck_blocks_table_for(level, &blocks), ck_token_table_for(level, &token)
    else { return nil }
  }

  /// How the level's products are formed in a precision. Three bfloat16 products in place of a
  /// float32 one are 1.7 to 2.4 times as fast on AMX, but off by 4e-6 where float32 is off by 3e-7:
  /// that is not float32, so it is not used for it.
  func compute(_ precision: ComputePrecision) -> ck_gemm_compute {
    precision == .bfloat16 ? CK_GEMM_COMPUTE_BF16 : CK_GEMM_COMPUTE_F32
  }
}

/// The binding of one op to its C kernel.
struct CPUKernel: Sendable {
  let op: ObjectIdentifier
  /// False where the kernel does not cover the call; the reference then runs.
  let run: @Sendable (KernelCall, KernelTables) -> Bool

  /// A kernel for every call of `O`.
  init<O: Op>(_: O.Type, _ body: @escaping @Sendable (O, KernelCall, KernelTables) -> Bool) {
    op = ObjectIdentifier(O.self)
    run = { call, tables in
      guard let op = call.op as? O else { return false }
      return body(op, call, tables)
    }
  }

  /// All bindings. One line a family.
  static let all: [ObjectIdentifier: CPUKernel] = {
    var table: [ObjectIdentifier: CPUKernel] = [:]
    for family in [
      pointwise, layout, products, norms, losses, optimizers, scans, linearAttention, deltaRule,
      sequence, selectiveScans, wkv4, mesa, cells, recurrentCells, attention, additiveGates,
      egg, evolution,
    ] {
      for kernel in family { table[kernel.op] = kernel }
    }
    return table
  }()
}

extension Tensor {
  /// The first element; nil for other element types.
  var f32: UnsafeMutablePointer<Float>? {
    dtype == .float32 ? hostAddress?.assumingMemoryBound(to: Float.self) : nil
  }
  /// The first element for kernels that take several types by one pointer.
  var floats: UnsafeMutablePointer<Float>? { floats(from: 0) }
  /// The address of element `i` for such kernels.
  func floats(from i: Int) -> UnsafeMutablePointer<Float>? {
    hostAddress.map { ($0 + i * dtype.byteCount).assumingMemoryBound(to: Float.self) }
  }
  var i32: UnsafeMutablePointer<Int32>? {
    dtype == .int32 ? hostAddress?.assumingMemoryBound(to: Int32.self) : nil
  }
}

extension KernelCall {
  /// Whether all floating tensors of the call are float32, which the C kernels expect.
  var isFloat32: Bool { isFloat32(but: []) }

  /// The same for all but those that the caller looks at itself.
  func isFloat32(but others: [Tensor]) -> Bool {
    (inputs + outputs).allSatisfy { t in
      t.dtype == .float32 || !t.dtype.isFloat || others.contains { $0.id == t.id }
    }
  }

  /// The element type of arrays that are all float32 or all bfloat16, where the call's others are float32;
  /// `others`: those that the caller looks at itself.
  func commonType(of arrays: [Tensor], beside others: [Tensor] = []) -> DType? {
    guard let type = arrays.first?.dtype, type == .float32 || type == .bfloat16,
      arrays.allSatisfy({ $0.dtype == type }), isFloat32(but: arrays + others)
    else { return nil }
    return type
  }
}
