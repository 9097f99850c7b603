import CGyreCUDASources
import GyreTensors

extension CUDAKernel {
  private static let sumTo = CUDAFunction("reduce", "sum_to")
  private static let softmax = CUDAFunction("reduce", "softmax")
  private static let softmaxBackward = CUDAFunction("reduce", "softmax_backward")
  private static let argmax = CUDAFunction("reduce", "argmax")
  private static let squares = CUDAFunction("reduce", "squares")
  private static let total = CUDAFunction("reduce", "total")

  static let reductions: [CUDAKernel] = [
    CUDAKernel(SumTo.self) { op, call, launch in
      sum(call.inputs[0], to: op.shape, into: call.outputs[0], launch)
    },
    CUDAKernel(Softmax.self) { op, call, launch in
      var a = gyre_softmax_args()
      (a.rows, a.columns) = (call.inputs[0].shape.rowCount, call.inputs[0].shape.last)
      (a.x, a.y) = (call.inputs[0].array, call.outputs[0].array)
      launch.run(softmax, rows: a.rows, columns: a.columns, a)
      return true
    },
    CUDAKernel(SoftmaxBackward.self) { op, call, launch in
      var a = gyre_softmax_args()
      (a.rows, a.columns) = (call.inputs[0].shape.rowCount, call.inputs[0].shape.last)
      (a.y, a.dy, a.dx) = (call.inputs[0].array, call.inputs[1].array, call.outputs[0].array)
      launch.run(softmaxBackward, rows: a.rows, columns: a.columns, a)
      return true
    },
    CUDAKernel(ArgMax.self) { op, call, launch in
      let rows = call.outputs[0].elementCount
      launch.run(
        argmax, grid: (min(rows, 1 << 20), 1, 1),
        gyre_argmax_args(
          rows: rows, columns: call.inputs[0].shape.last, x: call.inputs[0].array,
          index: call.outputs[0].address))
      return true
    },
    CUDAKernel(SumOfSquares.self) { op, call, launch in
      let parts = Int(GYRE_SQUARES_PARTS)
      let partial = launch.floats(call.inputs.count * parts)
      var first = 0
      while first < call.inputs.count {
        let piece = call.inputs[first..<min(first + Int(GYRE_SQUARES_ENTRIES), call.inputs.count)]
        var a = gyre_squares_args()
        (a.first, a.partial) = (first * parts, partial)
        withUnsafeMutableBytes(of: &a.count) { memory in
          for (i, t) in piece.enumerated() {
            memory.storeBytes(of: t.elementCount, toByteOffset: 8 * i, as: Int.self)
          }
        }
        withUnsafeMutableBytes(of: &a.x) { memory in
          for (i, t) in piece.enumerated() {
            memory.storeBytes(
              of: t.array, toByteOffset: MemoryLayout<gyre_array>.stride * i, as: gyre_array.self)
          }
        }
        launch.run(squares, grid: (parts, piece.count, 1), a)
        first += piece.count
      }
      launch.run(
        total, grid: (1, 1, 1),
        gyre_total_args(count: call.inputs.count * parts, x: partial, out: call.outputs[0].array))
      return true
    },
  ]

  private static func sum(
    _ x: Tensor, to shape: Shape, into y: Tensor, _ launch: CUDALaunch
  ) -> Bool {
    if x.elementCount == 0 {
      launch.fill(y, 0)
      return true
    }
    if let p = Broadcast.pattern(shape, in: x.shape) {
      if p.outer == 1 {
        launch.sumRows(x.array, rows: p.middle, columns: p.inner, into: y.array)
      } else if p.inner == 1 {
        launch.sumColumns(x.array, rows: p.outer, columns: p.middle, into: y.array)
      } else {
        let columns = p.middle * p.inner
        let partial = gyre_array.floats(launch.floats(columns))
        launch.sumColumns(x.array, rows: p.outer, columns: columns, into: partial)
        launch.sumRows(partial, rows: p.middle, columns: p.inner, into: y.array)
      }
      return true
    }
    guard x.rank <= 8 else { return false }
    let strides = x.shape.strides
    let kept = shape.broadcastStrides(in: x.shape).map { $0 != 0 }
    let axes = x.shape.dimensions.indices
    var a = gyre_sum_to_args()
    a.count = y.elementCount
    a.reduced = axes.reduce(1) { kept[$1] ? $0 : $0 * x.shape[$1] }
    a.rank = Int32(x.rank)
    setAxes(&a.kept_shape, axes.map { kept[$0] ? x.shape[$0] : 1 })
    setAxes(&a.kept_stride, strides)
    setAxes(&a.reduced_shape, axes.map { kept[$0] ? 1 : x.shape[$0] })
    setAxes(&a.reduced_stride, strides)
    (a.x, a.out) = (x.array, y.array)
    launch.run(sumTo, over: a.count * 32, a)
    return true
  }
}
