import CGyreCUDASources
import GyreTensors

extension CUDAKernel {
  private static let addRows = CUDAFunction("pointwise", "binary")
  private static let gemv = CUDAFunction("gemv", "gemv")

  static let products: [CUDAKernel] = [
    CUDAKernel(LinearMap.self) { op, call, launch in
      linear(op, call, launch)
      return true
    },
    CUDAKernel(LinearPieces.self) { op, call, launch in
      linear(op, call, launch)
      return true
    },
    CUDAKernel(LinearPieces.Backward.self) { op, call, launch in
      // Products add in the types that they write.
      let isHalf = op.forward.precision == .bfloat16
      guard
        call.outputs.allSatisfy({ $0.dtype == .float32 || (isHalf && $0.dtype == .bfloat16) })
      else { return false }
      differentiate(op, call, launch)
      return true
    },
    CUDAKernel(MatMul.self) { op, call, launch in
      let (x, y) = (call.inputs[0], call.inputs[1])
      let e = op.extents(x.shape, y.shape)
      var p = CUDAProducts.Problem()
      (p.m, p.n, p.k, p.batch) = (e.m, e.n, e.k, e.batch)
      (p.transposesA, p.transposesB) = (op.transposesLeft, op.transposesRight)
      if y.rank == 2, !op.transposesLeft {  // one tall product
        p.m *= e.batch
        p.batch = 1
      }
      (p.aStride, p.bStride, p.cStride) = (e.m * e.k, y.rank == 2 ? 0 : e.n * e.k, e.m * e.n)
      if op.adds {
        guard call.outputs[0].dtype == .float32, p.k > 0 else { return false }
        launch.copy(call.inputs[2], to: call.outputs[0])
        p.beta = 1
      }
      multiply(&p, x, y, call.outputs[0], op.precision, launch)
      return true
    },
  ]

  /// A product a piece, into tensors of their own.
  private static func linear(_ op: LinearPieces, _ call: KernelCall, _ launch: CUDALaunch) {
    let (x, w) = (call.inputs[0], call.inputs[1])
    if multiplyRows(op, call, launch) { return }
    for ((rows, start), y) in zip(zip(op.pieces, op.starts), call.outputs) {
      var p = CUDAProducts.Problem()
      (p.m, p.n, p.k, p.transposesB) = (x.shape.rowCount, rows, w.shape[1], true)
      multiply(&p, x, w, y, op.precision, launch, bStart: start * w.shape[1])
    }
  }

  /// All pieces in one launch; false where sizes or types are others.
  private static func multiplyRows(
    _ op: LinearPieces, _ call: KernelCall, _ launch: CUDALaunch
  ) -> Bool {
    let (x, w) = (call.inputs[0], call.inputs[1])
    // Two products of the library's are as fast.
    guard op.pieces.count > 2, RowProducts.suits(launch.device),
      LinearGroup.rows.contains(x.shape.rowCount),
      op.precision == .bfloat16 || (x.dtype == .bfloat16 && w.dtype == .bfloat16)
    else { return false }
    let (from, weights) = (launch.bfloat16(x), launch.bfloat16(w))
    let products = zip(zip(op.pieces, op.starts), call.outputs).map { piece, y in
      RowProducts.Product(
        x: from, weight: weights + UInt64(2 * piece.1 * w.shape[1]), inputs: w.shape[1],
        weights: piece.0, y: y)
    }
    return RowProducts.run(products, rows: x.shape.rowCount, launch)
  }

  /// The gradients of those: rows of the weight's, and a sum for x.
  private static func differentiate(
    _ op: LinearPieces.Backward, _ call: KernelCall, _ launch: CUDALaunch
  ) {
    let (x, w) = (call.inputs[0], call.inputs[1])
    let (rows, k) = (x.shape.rowCount, w.shape[1])
    if op.adds { launch.copy(call.inputs[2 + op.forward.pieces.count], to: call.outputs[0]) }
    let pieces = zip(zip(op.forward.pieces, op.forward.starts), call.inputs[2...]).enumerated()
    for (i, ((n, start), dy)) in pieces {
      var p = CUDAProducts.Problem()
      (p.m, p.n, p.k, p.transposesA) = (n, k, rows, true)
      p.beta = op.adds ? 1 : 0
      let part = call.outputs[0].aliased(
        as: [n, k], byteOffset: call.outputs[0].byteOffset + 4 * start * k)
      multiply(&p, dy, x, part, op.forward.precision, launch)
      guard op.needsInput else { continue }
      p = CUDAProducts.Problem()
      (p.m, p.n, p.k, p.beta) = (rows, k, n, i == 0 ? 0 : 1)
      multiply(&p, dy, w, call.outputs[1], op.forward.precision, launch, bStart: start * k)
    }
  }

  private static func linear(_ op: LinearMap, _ call: KernelCall, _ launch: CUDALaunch) {
    let (x, w, y) = (call.inputs[0], call.inputs[1], call.outputs[0])
    if multiplyFewRows(op, call, launch) { return }
    var p = CUDAProducts.Problem()
    (p.m, p.n, p.k) = (x.shape.rowCount, w.shape[0], w.shape[1])
    p.transposesB = true
    guard call.inputs.count > 2 else { return multiply(&p, x, w, y, op.precision, launch) }
    let bias = call.inputs[2]
    if bias.dtype == .float32, y.dtype == .float32, p.k > 0 {
      p.bias = bias.address
      return multiply(&p, x, w, y, op.precision, launch)
    }
    multiply(&p, x, w, y, op.precision, launch)
    guard p.m > 0, p.n > 0 else { return }
    var a = gyre_binary_args()
    (a.count, a.y) = (y.elementCount, y.array)
    (a.a.array, a.a.mode) = (y.array, Int32(GYRE_SAME))
    (a.b.array, a.b.mode, a.b.inner, a.b.middle) = (bias.array, Int32(GYRE_PERIODIC), 1, p.n)
    launch.run(addRows, over: a.count, each: 8, a)
  }

  /// At most four rows, as in decoding. False where the sizes or addresses do not fit.
  private static func multiplyFewRows(
    _ op: LinearMap, _ call: KernelCall, _ launch: CUDALaunch
  ) -> Bool {
    let (x, w) = (call.inputs[0], call.inputs[1])
    var a = gyre_gemv_args()
    (a.m, a.n, a.k) = (x.shape.rowCount, w.shape[0], w.shape[1])
    guard (1...4).contains(a.m), a.k > 0, a.k % 8 == 0, x.address % 16 == 0, w.address % 16 == 0
    else { return false }
    a.x = x.array
    a.w = op.precision == .bfloat16 ? gyre_array(launch.bfloat16(w), .bfloat16) : w.array
    if call.inputs.count > 2 { a.bias = call.inputs[2].array }
    a.y = call.outputs[0].array
    launch.run(gemv, over: a.n * 32, a)
    return true
  }

  /// Fills in addresses and types, and multiplies. Operands of other types than the product's are
  /// converted first; B starts at an element of its tensor.
  static func multiply(
    _ p: inout CUDAProducts.Problem, _ a: Tensor, _ b: Tensor, _ c: Tensor,
    _ precision: ComputePrecision, _ launch: CUDALaunch, bStart: Int = 0
  ) {
    guard p.m > 0, p.n > 0, p.batch > 0 else { return }
    guard p.k > 0 else {
      launch.fill(c, 0)
      return
    }
    let isHalf = precision == .bfloat16 || (a.dtype == .bfloat16 && b.dtype == .bfloat16)
    if isHalf {
      (p.aType, p.bType) = (.bfloat16, .bfloat16)
      (p.a, p.b) = (launch.bfloat16(a), launch.bfloat16(b))
    } else {
      (p.a, p.b) = (launch.float32(a), launch.float32(b))
    }
    p.b += UInt64(bStart * p.bType.byteCount)
    // The library does not write bfloat16 from float32 operands.
    if c.dtype == .float32 || (isHalf && c.dtype == .bfloat16) {
      (p.c, p.cType) = (c.address, c.dtype)
      launch.device.multiply(p)
      return
    }
    p.c = launch.floats(c.elementCount)
    launch.device.multiply(p)
    launch.cast(.floats(p.c), to: c.array, count: c.elementCount)
  }
}

extension CUDALaunch {
  /// A floating tensor in float32: itself or a copy.
  func float32(_ t: Tensor) -> UInt64 {
    if t.dtype == .float32 { return t.address }
    let copy = floats(t.elementCount)
    cast(t.array, to: .floats(copy), count: t.elementCount)
    return copy
  }
}
