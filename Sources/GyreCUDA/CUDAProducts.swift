import CGyreCUDALoader
import GyreTensors
import Synchronization

/// Matrix products through cuBLASLt. Sums are float32; float32 operands multiply as they are, never
/// rounded to TF32. Partial sums go through the workspace in a fixed order, so results repeat.
final class CUDAProducts: @unchecked Sendable {
  /// C[b] = op(A[b]) op(B[b]) + β C[b], row-major, all addresses on the device.
  struct Problem {
    var m = 0, n = 0, k = 0, batch = 1
    var a: UInt64 = 0, b: UInt64 = 0, c: UInt64 = 0
    var aType = DType.float32, bType = DType.float32, cType = DType.float32
    /// A is stored [k, m], B [n, k].
    var transposesA = false, transposesB = false
    /// Elements between matrices of a batch; 0 shares one.
    var aStride = 0, bStride = 0, cStride = 0
    var beta: Float = 0
    /// A float32 vector `[n]` that is added to every row; only with float32 C.
    var bias: UInt64 = 0

    /// Shapes, layouts and types, for reports.
    var description: String {
      "product \(batch > 1 ? "\(batch)× " : "")\(m)×\(n)×\(k) \(transposesA ? "t" : "n")"
        + "\(transposesB ? "t" : "n") \(aType == .bfloat16 ? "bf16" : "f32") to "
        + "\(cType == .bfloat16 ? "bf16" : "f32")\(beta != 0 ? ", adds" : "")"
    }
  }

  /// What a plan depends on.
  private struct Key: Hashable {
    var m, n, k, batch, aStride, bStride, cStride: Int
    var aType, bType, cType: DType
    var transposesA, transposesB, hasBias, adds: Bool
    var alignment: [UInt8]
  }
  private struct Plan {
    var operation: gyre_cuda_handle?
    var a, b, c: gyre_cuda_handle?
    var choice: gyre_cublas_heuristic
  }

  private static let workspaceSize = 64 << 20
  private let table: gyre_cuda_products
  private let driver: DriverCalls
  private let stream: gyre_cuda_handle?
  private let handle: gyre_cuda_handle?
  private let workspace: UInt64
  private let plans = Mutex<[Key: Plan]>([:])
  /// "13.0.2".
  let version: String

  /// - Throws: `unavailable` when cuBLASLt does not start, `outOfMemory` without its workspace.
  init(
    _ table: gyre_cuda_products, driver: DriverCalls, stream: gyre_cuda_handle?,
    allocator: CUDAAllocator, device: String
  ) throws(DeviceError) {
    self.table = table
    self.driver = driver
    self.stream = stream
    _ = driver.current
    var handle: gyre_cuda_handle?
    let code = table.create(&handle)
    guard code == 0 else {
      throw .unavailable(device: device, reason: "cuBLASLt did not start: status \(code)")
    }
    self.handle = handle
    guard let workspace = driver.allocate(Self.workspaceSize) else {
      throw .outOfMemory(requested: Self.workspaceSize, inUse: 0, device: device)
    }
    self.workspace = workspace
    let number = table.version()
    version = "\(number / 10000).\(number / 100 % 100).\(number % 100)"
  }

  deinit {
    plans.withLock { plans in for plan in plans.values { release(plan) } }
    driver.free(workspace)
    _ = table.destroy(handle)
  }

  /// Queues a product.
  ///
  /// - Returns: why it could not be, nil when it was.
  func multiply(_ p: Problem) -> String? {
    let key = Key(
      m: p.m, n: p.n, k: p.k, batch: p.batch, aStride: p.aStride, bStride: p.bStride,
      cStride: p.cStride, aType: p.aType, bType: p.bType, cType: p.cType,
      transposesA: p.transposesA, transposesB: p.transposesB, hasBias: p.bias != 0,
      adds: p.beta != 0, alignment: [p.a, p.b, p.c].map { UInt8(min($0.trailingZeroBitCount, 8)) })
    _ = driver.current
    let failed: Int32? = plans.withLock { plans in
      if plans[key] == nil {
        switch makePlan(p, key) {
        case .success(let plan): plans[key] = plan
        case .failure(let status): return status.code
        }
      }
      guard var plan = plans[key] else { return nil }
      if p.bias != 0 {
        var bias = p.bias
        _ = table.operation_set(
          plan.operation, Int32(GYRE_CUBLAS_DESC_BIAS), &bias, MemoryLayout<UInt64>.size)
      }
      var (alpha, beta): (Float, Float) = (1, p.beta)
      // Row-major matrices are the transposed column-major ones: Cᵀ = op(B)ᵀ op(A)ᵀ.
      let status = withUnsafeMutableBytes(of: &plan.choice.algorithm) { algorithm in
        table.matmul(
          handle, plan.operation, &alpha, p.b, plan.b, p.a, plan.a, &beta, p.c, plan.c, p.c, plan.c,
          algorithm.baseAddress?.assumingMemoryBound(to: UInt64.self), workspace,
          Self.workspaceSize, stream)
      }
      return status == 0 ? nil : status
    }
    return failed.map {
      "cuBLASLt status \($0) for [\(p.m), \(p.k)] by [\(p.k), \(p.n)], \(p.aType) and \(p.bType) to \(p.cType)"
    }
  }

  private struct Status: Error { var code: Int32 }

  private func makePlan(_ p: Problem, _ key: Key) -> Result<Plan, Status> {
    var plan = Plan(operation: nil, a: nil, b: nil, c: nil, choice: gyre_cublas_heuristic())
    var preference: gyre_cuda_handle?
    defer { if preference != nil { _ = table.preference_destroy(preference) } }
    var code: Int32 = 0
    func step(_ result: Int32) { if code == 0 { code = result } }
    func set(_ attribute: Int, _ value: Int32) {
      var value = value
      step(table.operation_set(plan.operation, Int32(attribute), &value, 4))
    }
    func layout(
      _ type: DType, rows: Int, columns: Int, stride: Int
    ) -> gyre_cuda_handle? {
      var layout: gyre_cuda_handle?
      step(
        table.layout_create(
          &layout, type.cublas, UInt64(rows), UInt64(columns), Int64(max(rows, 1))))
      if p.batch > 1 {
        var (count, stride) = (Int32(p.batch), Int64(stride))
        step(table.layout_set(layout, Int32(GYRE_CUBLAS_LAYOUT_BATCH), &count, 4))
        step(table.layout_set(layout, Int32(GYRE_CUBLAS_LAYOUT_STRIDE), &stride, 8))
      }
      return layout
    }
    step(
      table.operation_create(
        &plan.operation, Int32(GYRE_CUBLAS_COMPUTE_F32), Int32(GYRE_CUBLAS_F32)))
    set(GYRE_CUBLAS_DESC_TRANSPOSE_A, p.transposesB ? 1 : 0)
    set(GYRE_CUBLAS_DESC_TRANSPOSE_B, p.transposesA ? 1 : 0)
    if p.bias != 0 {
      set(GYRE_CUBLAS_DESC_EPILOGUE, Int32(GYRE_CUBLAS_EPILOGUE_BIAS))
      var bias = p.bias
      step(table.operation_set(plan.operation, Int32(GYRE_CUBLAS_DESC_BIAS), &bias, 8))
    }
    plan.a = layout(
      p.aType, rows: p.transposesA ? p.m : p.k, columns: p.transposesA ? p.k : p.m,
      stride: p.aStride)
    plan.b = layout(
      p.bType, rows: p.transposesB ? p.k : p.n, columns: p.transposesB ? p.n : p.k,
      stride: p.bStride)
    plan.c = layout(p.cType, rows: p.n, columns: p.m, stride: p.cStride)
    step(table.preference_create(&preference))
    var size = Self.workspaceSize
    step(
      table.preference_set(
        preference, Int32(GYRE_CUBLAS_PREFERENCE_WORKSPACE), &size, 8))
    var reductions = UInt32(GYRE_CUBLAS_REDUCTION_WORKSPACE)
    step(
      table.preference_set(
        preference, Int32(GYRE_CUBLAS_PREFERENCE_REDUCTIONS), &reductions, 4))
    for (attribute, shift) in [
      (GYRE_CUBLAS_PREFERENCE_ALIGN_A, key.alignment[1]),
      (GYRE_CUBLAS_PREFERENCE_ALIGN_B, key.alignment[0]),
      (GYRE_CUBLAS_PREFERENCE_ALIGN_C, key.alignment[2]),
      (GYRE_CUBLAS_PREFERENCE_ALIGN_D, key.alignment[2]),
    ] {
      var bytes = UInt32(1) << UInt32(shift)
      step(table.preference_set(preference, Int32(attribute), &bytes, 4))
    }
    var found: Int32 = 0
    if code == 0 {
      step(
        table.heuristic(
          handle, plan.operation, plan.b, plan.a, plan.c, plan.c, preference, 1, &plan.choice,
          &found))
    }
    if code == 0, found == 0 { code = 15 }  // not supported
    if code == 0 { return .success(plan) }
    release(plan)
    return .failure(Status(code: code))
  }

  private func release(_ plan: Plan) {
    for layout in [plan.a, plan.b, plan.c] where layout != nil { _ = table.layout_destroy(layout) }
    if plan.operation != nil { _ = table.operation_destroy(plan.operation) }
  }
}

extension DType {
  fileprivate var cublas: Int32 {
    switch self {
    case .bfloat16: Int32(GYRE_CUBLAS_BF16)
    case .float16: Int32(GYRE_CUBLAS_F16)
    default: Int32(GYRE_CUBLAS_F32)
    }
  }
}
