import CGyreCUDASources
import GyreTensors

extension CUDAKernel {
  private static let copyRuns = CUDAFunction("layout", "copy_runs")
  private static let convertRuns = CUDAFunction("layout", "convert_runs")
  private static let permute = CUDAFunction("layout", "permute")
  private static let transpose = CUDAFunction("layout", "transpose")

  private static let copies = CUDAFunction("layout", "copies", isEarly: true)

  static let layout: [CUDAKernel] = [
    CUDAKernel(Copies.self, anyType: true) { op, call, launch in
      let pairs = Array(zip(call.inputs, call.outputs)).filter { $0.0.byteCount > 0 }
      for start in stride(from: 0, to: pairs.count, by: Int(GYRE_COPIES)) {
        let part = pairs[start..<min(start + Int(GYRE_COPIES), pairs.count)]
        var a = gyre_copies_args()
        setAxes(&a.x, part.map { Int(truncatingIfNeeded: $0.0.address) })
        setAxes(&a.y, part.map { Int(truncatingIfNeeded: $0.1.address) })
        setAxes(&a.bytes, part.map { $0.0.byteCount })
        let largest = part.map { $0.0.byteCount }.max() ?? 0
        let blocks = max(1, min((largest + 16383) / 16384, launch.device.multiprocessors))
        launch.run(copies, grid: (blocks, part.count, 1), a)
      }
      return true
    },
    CUDAKernel(Reshape.self, anyType: true) { op, call, launch in
      launch.copy(call.inputs[0], to: call.outputs[0])
      return true
    },
    CUDAKernel(Slice.self, anyType: true) { op, call, launch in
      for (range, piece) in zip(op.ranges, call.outputs) {
        copyRange(
          from: call.inputs[0], at: range.lowerBound, to: piece, at: 0, count: range.count,
          axis: op.axis, launch)
      }
      return true
    },
    CUDAKernel(Assemble.self, anyType: true) { op, call, launch in
      let adds = !op.tiles
      guard !adds || call.isComputable else { return false }
      guard call.inputs.allSatisfy({ $0.dtype == call.outputs[0].dtype }) || call.isComputable
      else { return false }
      if adds { launch.fill(call.outputs[0], 0) }
      for (range, piece) in zip(op.ranges, call.inputs) {
        copyRange(
          from: piece, at: 0, to: call.outputs[0], at: range.lowerBound, count: range.count,
          axis: op.axis, adds: adds, launch)
      }
      return true
    },
    CUDAKernel(Permute.self, anyType: true) { op, call, launch in
      permute(op.axes, call.inputs[0], call.outputs[0], launch)
    },
  ]

  /// Copies `count` entries of an axis between tensors that agree on the other axes.
  private static func copyRange(
    from source: Tensor, at start: Int, to target: Tensor, at place: Int, count: Int, axis: Int,
    adds: Bool = false, _ launch: CUDALaunch
  ) {
    let (outer, from, inner) = source.shape.around(axis)
    let to = target.shape[axis]
    var a = gyre_runs_args()
    (a.outer, a.run) = (outer, count * inner)
    (a.x_offset, a.x_step) = (start * inner, from * inner)
    (a.y_offset, a.y_step) = (place * inner, to * inner)
    (a.x, a.y) = (source.array, target.array)
    a.adds = adds ? 1 : 0
    if adds || source.dtype != target.dtype {
      launch.run(convertRuns, over: a.outer * a.run, a)
      return
    }
    // The widest unit that divides every offset, step and address.
    let size = source.dtype.byteCount
    let numbers = [a.run, a.x_offset, a.x_step, a.y_offset, a.y_step].map { $0 * size }
    func divides(_ unit: Int) -> Bool {
      let addresses = source.address | target.address
      return numbers.allSatisfy { $0 % unit == 0 } && addresses % UInt64(unit) == 0
    }
    let unit: Int = [16, 8, 4, 2].first(where: divides) ?? 1
    func units(_ n: Int) -> Int { n * size / unit }
    (a.run, a.x_offset, a.x_step) = (units(a.run), units(a.x_offset), units(a.x_step))
    (a.y_offset, a.y_step) = (units(a.y_offset), units(a.y_step))
    a.unit = Int32(unit)
    launch.run(copyRuns, over: a.outer * a.run, each: 4, a)
  }

  private static func permute(
    _ axes: [Int], _ x: Tensor, _ y: Tensor, _ launch: CUDALaunch
  ) -> Bool {
    var (shape, steps) = merged(y.shape.dimensions, axes.map { x.shape.strides[$0] })
    guard shape.count <= 8, x.dtype == y.dtype else { return false }
    if shape.isEmpty { (shape, steps) = ([1], [1]) }
    var size = x.dtype.byteCount
    // Two last axes that swap places move tile by tile.
    if size == 4 || size == 2, shape.count >= 2, steps[shape.count - 2] == 1,
      steps[shape.count - 1] == shape[shape.count - 2],
      shape.count == 2 || (shape.count == 3 && steps[0] == shape[1] * shape[2])
    {
      var a = gyre_transpose_args()
      a.batch = shape.count == 3 ? shape[0] : 1
      (a.rows, a.columns) = (shape[shape.count - 1], shape[shape.count - 2])
      a.unit = Int32(size)
      (a.x, a.y) = (x.address, y.address)
      let tiles = a.batch * ((a.rows + 31) / 32) * ((a.columns + 31) / 32)
      launch.run(
        transpose, grid: (min(tiles, launch.device.multiprocessors * 16), 1, 1), threads: (32, 8), a
      )
      return true
    }
    // An unmoved last axis goes in wider units.
    while size < 16, steps[steps.count - 1] == 1, shape[shape.count - 1] % 2 == 0,
      steps.dropLast().allSatisfy({ $0 % 2 == 0 }), x.address % UInt64(2 * size) == 0,
      y.address % UInt64(2 * size) == 0
    {
      size *= 2
      shape[shape.count - 1] /= 2
      for i in steps.indices.dropLast() { steps[i] /= 2 }
    }
    var a = gyre_permute_args()
    a.count = shape.reduce(1, *)
    a.rank = Int32(shape.count)
    a.unit = Int32(size)
    setAxes(&a.shape, shape)
    setAxes(&a.stride, steps)
    (a.x, a.y) = (x.address, y.address)
    launch.run(permute, over: a.count, each: 2, a)
    return true
  }

  /// Joins neighbouring axes that are one axis in both layouts, and drops those of extent 1.
  static func merged(_ shape: [Int], _ steps: [Int]) -> (shape: [Int], steps: [Int]) {
    var result: (shape: [Int], steps: [Int]) = ([], [])
    for (extent, step) in zip(shape, steps) where extent != 1 {
      if let last = result.steps.last, last == step * extent {
        result.shape[result.shape.count - 1] *= extent
        result.steps[result.steps.count - 1] = step
      } else {
        result.shape.append(extent)
        result.steps.append(step)
      }
    }
    return result
  }
}
