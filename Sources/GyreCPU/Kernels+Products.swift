import CGyreKernels
import GyreTensors

extension CPUKernel {
  static let products: [CPUKernel] = [
    CPUKernel(LinearMap.self) { op, call, k in
      let (x, w) = (call.inputs[0], call.inputs[1])
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
    CPUKernel(MatMul.self) { op, call, k in
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

  private static func arguments(
    _ x: Tensor, _ y: Tensor, _ out: Tensor
  ) -> ck_gemm_args? {
    guard let xType = x.dtype.gemm, let yType = y.dtype.gemm, let c = out.f32 else { return nil }
    var a = ck_gemm_args()
    a.alpha = 1
    a.a = UnsafeRawPointer(x.hostAddress)
    a.b = UnsafeRawPointer(y.hostAddress)
    a.c = UnsafeMutableRawPointer(c)
    a.a_type = xType
    a.b_type = yType
    return a
  }
}

extension DType {
  fileprivate var gemm: ck_gemm_type? {
    switch self {
    case .float32: CK_GEMM_TYPE_F32
    case .bfloat16: CK_GEMM_TYPE_BF16
    case .float16: CK_GEMM_TYPE_F16
    default: nil
    }
  }
}
