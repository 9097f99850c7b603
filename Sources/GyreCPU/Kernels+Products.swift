import CGyreKernels
import GyreTensors

extension CPUKernel {
  static let products: [CPUKernel] = [
    CPUKernel(LinearMap.self) { op, call, k in
      let (x, w) = (call.inputs[0], call.inputs[1])
      if w.dtype.isQuantized {
        guard let y = call.outputs[0].f32, let p = x.f32 else { return false }
        let bias = call.inputs.count > 2 ? call.inputs[2].f32 : nil
        return linear(p, rows: x.shape.rowCount, w, bias: bias, y, k)
      }
      guard var a = arguments(x, w, call.outputs[0]) else { return false }
      a.m = x.shape.rowCount
      a.n = w.shape[0]
      a.k = w.shape[1]
      a.batch = 1
      (a.lda, a.ldb, a.ldc) = (a.k, a.k, a.n)
      a.transpose_b = true
      if call.inputs.count > 2 {
        guard let bias = call.inputs[2].f32 else { return false }
        a.bias = UnsafePointer(bias)
      }
      a.compute = k.compute(op.precision)
      k.gemm.gemm(&a)
      return true
    },
    CPUKernel(LinearPieces.self) { op, call, k in
      let (x, w) = (call.inputs[0], call.inputs[1])
      for ((rows, start), y) in zip(zip(op.pieces, op.starts), call.outputs) {
        guard var a = arguments(x, w, y, skipping: start * w.shape[1]) else { return false }
        (a.m, a.n, a.k, a.batch) = (x.shape.rowCount, rows, w.shape[1], 1)
        (a.lda, a.ldb, a.ldc) = (a.k, a.k, a.n)
        a.transpose_b = true
        a.compute = k.compute(op.precision)
        k.gemm.gemm(&a)
      }
      return true
    },
    CPUKernel(LinearPieces.Backward.self) { op, call, k in differentiate(op, call, k) },
    CPUKernel(MatMul.self) { op, call, k in
      if op.adds { return false }
      let (x, y) = (call.inputs[0], call.inputs[1])
      guard var a = arguments(x, y, call.outputs[0]) else { return false }
      let e = op.extents(x.shape, y.shape)
      (a.m, a.n, a.k, a.batch) = (e.m, e.n, e.k, e.batch)
      if y.rank == 2 && !op.transposesLeft {  // one tall product
        a.m *= e.batch
        a.batch = 1
      }
      a.transpose_a = op.transposesLeft
      a.transpose_b = op.transposesRight
      a.lda = x.shape.last
      a.ldb = y.shape.last
      a.ldc = e.n
      a.a_stride = e.m * e.k
      a.b_stride = y.rank == 2 ? 0 : e.n * e.k
      a.c_stride = e.m * e.n
      a.compute = k.compute(op.precision)
      k.gemm.gemm(&a)
      return true
    },
  ]

  /// y = x Wᵀ + b for rows of float32 and a matrix in blocks.
  static func linear(
    _ x: UnsafeMutablePointer<Float>, rows: Int, _ w: Tensor, bias: UnsafeMutablePointer<Float>?,
    _ y: UnsafeMutablePointer<Float>, _ k: KernelTables
  ) -> Bool {
    guard let type = w.dtype.block else { return false }
    var a = ck_block_product_args()
    (a.m, a.n, a.k) = (rows, w.shape[0], w.shape[1])
    a.x = UnsafePointer(x)
    a.w = UnsafeRawPointer(w.hostAddress)
    a.y = y
    (a.ldx, a.ldy) = (a.k, a.n)
    a.bias = UnsafePointer(bias)
    a.type = type
    k.blocks.product(&a)
    return true
  }

  /// Rows of the weight's gradient a piece, and a sum over the pieces for x.
  private static func differentiate(
    _ op: LinearPieces.Backward, _ call: KernelCall, _ k: KernelTables
  ) -> Bool {
    let (x, w, dw) = (call.inputs[0], call.inputs[1], call.outputs[0])
    let (rows, width) = (x.shape.rowCount, w.shape[1])
    guard let sums = dw.f32 else { return false }
    if op.adds {
      guard let before = call.inputs[2 + op.forward.pieces.count].f32 else { return false }
      if before != sums { sums.update(from: before, count: dw.elementCount) }
    }
    let compute = k.compute(op.forward.precision)
    let mark = ck_scratch_begin()
    defer { ck_scratch_end(mark) }
    // All pieces multiply x.
    let packed = packedRows(x, op.forward.precision, k)
    var dxSums: UnsafeMutablePointer<Float>?
    if op.needsInput, call.outputs[1].dtype == .bfloat16, op.forward.pieces.count > 1 {
      dxSums = ck_scratch(4 * rows * width)?.assumingMemoryBound(to: Float.self)
      if dxSums == nil { return false }
    }
    let pieces = zip(zip(op.forward.pieces, op.forward.starts), call.inputs[2...]).enumerated()
    for (i, ((n, start), dy)) in pieces {
      guard var a = arguments(dy, x, dw) else { return false }
      a.packed_b = packed
      (a.m, a.n, a.k, a.batch) = (n, width, rows, 1)
      (a.lda, a.ldb, a.ldc) = (n, width, width)
      a.c = UnsafeMutableRawPointer(sums + start * width)
      a.transpose_a = true
      a.beta = op.adds ? 1 : 0
      a.compute = compute
      k.gemm.gemm(&a)
      guard op.needsInput else { continue }
      guard var a = arguments(dy, w, call.outputs[1], skipping: start * width) else { return false }
      (a.m, a.n, a.k, a.batch) = (rows, width, n, 1)
      (a.lda, a.ldb, a.ldc) = (n, width, width)
      a.compute = compute
      // One rounding: sums of a rounded gradient wait in float32 for the last piece.
      if let dxSums, i + 1 == op.forward.pieces.count {
        (a.residual, a.ldr) = (UnsafePointer(dxSums), width)
      } else {
        a.beta = i == 0 ? 0 : 1
        if let dxSums { (a.c, a.c_type) = (UnsafeMutableRawPointer(dxSums), CK_GEMM_TYPE_F32) }
      }
      k.gemm.gemm(&a)
    }
    return true
  }

  /// x as the right operand of products that sum over its rows, in scratch memory; nil where packing counts
  /// little beside products.
  static func packedRows(
    _ x: Tensor, _ precision: ComputePrecision, _ k: KernelTables
  ) -> UnsafeRawPointer? {
    guard precision == .bfloat16, let type = x.dtype.gemm else { return nil }
    var pack = ck_pack_b_args()
    (pack.k, pack.n, pack.ldb) = (x.shape.rowCount, x.shape.last, x.shape.last)
    (pack.b, pack.b_type) = (UnsafeRawPointer(x.hostAddress), type)
    pack.compute = k.compute(precision)
    pack.packed = ck_scratch(k.gemm.packed_b_bytes(pack.k, pack.n, pack.compute))
    k.gemm.pack_b(&pack)
    return UnsafeRawPointer(pack.packed)
  }

  /// - Parameter skipping: elements of `y` before the matrix that is meant.
  private static func arguments(
    _ x: Tensor, _ y: Tensor, _ out: Tensor, skipping: Int = 0
  ) -> ck_gemm_args? {
    guard let xType = x.dtype.gemm, let yType = y.dtype.gemm, let c = out.hostAddress,
      out.dtype == .float32 || out.dtype == .bfloat16
    else { return nil }
    var a = ck_gemm_args()
    a.alpha = 1
    a.a = UnsafeRawPointer(x.hostAddress)
    a.b = y.hostAddress.map { UnsafeRawPointer($0 + skipping * y.dtype.byteCount) }
    a.c = UnsafeMutableRawPointer(c)
    a.c_type = out.dtype == .float32 ? CK_GEMM_TYPE_F32 : CK_GEMM_TYPE_BF16
    a.a_type = xType
    a.b_type = yType
    return a
  }
}

extension DType {
  /// The C kernels' name of a type with blocks.
  var block: ck_block_type? {
    switch self {
    case .q4_0: CK_BLOCK_Q4_0
    case .q4_1: CK_BLOCK_Q4_1
    case .q5_0: CK_BLOCK_Q5_0
    case .q5_1: CK_BLOCK_Q5_1
    case .q8_0: CK_BLOCK_Q8_0
    case .q4_K: CK_BLOCK_Q4_K
    case .q5_K: CK_BLOCK_Q5_K
    case .q6_K: CK_BLOCK_Q6_K
    default: nil
    }
  }

  var gemm: ck_gemm_type? {
    switch self {
    case .float32: CK_GEMM_TYPE_F32
    case .bfloat16: CK_GEMM_TYPE_BF16
    case .float16: CK_GEMM_TYPE_F16
    default: nil
    }
  }
}
