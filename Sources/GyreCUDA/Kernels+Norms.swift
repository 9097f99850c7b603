import CGyreCUDASources
import GyreTensors

extension CUDAKernel {
  private static let forward = CUDAFunction("norm", "norm_forward")
  private static let backward = CUDAFunction("norm", "norm_backward")
  private static let weightGradient = CUDAFunction("norm", "norm_weight_gradient")
  private static let rowsForward = rowFunctions("norm_rows_forward")
  private static let rowsBackward = rowFunctions("norm_rows_backward")
  private static func rowFunctions(_ name: String) -> [Int: CUDAFunction] {
    var table: [Int: CUDAFunction] = [:]
    for lanes in [8, 16, 32, 64, 128, 256] {
      table[lanes] = CUDAFunction("norm_rows", name, ["-DLANES=\(lanes)"])
    }
    return table
  }

  static let norms: [CUDAKernel] = [
    CUDAKernel(Norm.self) { op, call, launch in
      var a = arguments(op, call.inputs[0], call.inputs.dropFirst().first)
      a.bias = (call.inputs.count > 2 ? call.inputs[2] : nil).array
      if op.hasOwnWeights {
        a.each = max(a.rows / max(call.inputs[0].shape[0], 1), 1)
        (a.weight.stride, a.bias.stride) = (Int32(a.period), Int32(a.period))
      }
      a.y = call.outputs[0].array
      normalize(a, launch)
      return true
    },
    CUDAKernel(NormBackward.self) { op, call, launch in
      let a = arguments(op.norm, call.inputs[1], call.inputs.dropFirst(2).first)
      differentiate(
        a, dy: call.inputs[0], dx: call.outputs[0],
        dweight: op.inputCount > 1 ? call.outputs[1] : nil,
        dbias: op.inputCount > 2 ? call.outputs[2] : nil, launch)
      return true
    },
    CUDAKernel(NormedSum.self) { op, call, launch in
      let i = call.inputs
      var a = arguments(op.norm, i[0], i[2])
      (a.bias, a.y) = ((i.count > 3 ? i[3] : nil).array, call.outputs[1].array)
      (a.added, a.sum) = (i[1].array, call.outputs[0].array)
      guard RowPlan(a, blocksPerProcessor: 8, launch) == nil else {
        normalize(a, launch)
        return true
      }
      launch.add(i[0].array, i[1].array, into: call.outputs[0])
      (a.x, a.added, a.sum) = (call.outputs[0].array, gyre_array(), gyre_array())
      normalize(a, launch)
      return true
    },
    CUDAKernel(NormedSum.Backward.self) { op, call, launch in
      let i = call.inputs
      var a = arguments(op.norm.norm, i[1], i[2])
      let (second, sum) = (op.hasSecond ? i[3] : nil, op.hasSum ? i[i.count - 1] : nil)
      (a.dy_more, a.dsum) = (second.array, sum.array)
      var dz = i[0]
      (a.dy, a.dx) = (dz.array, call.outputs[0].array)
      let isWhole = RowPlan(a, blocksPerProcessor: 4, launch) != nil
      if !isWhole {
        (a.dy_more, a.dsum) = (gyre_array(), gyre_array())
        if let second {
          let joined = launch.like(dz)
          launch.add(dz.array, second.array, into: joined)
          dz = joined
        }
      }
      differentiate(
        a, dy: dz, dx: call.outputs[0],
        dweight: op.norm.inputCount > 1 ? call.outputs[1] : nil,
        dbias: op.norm.inputCount > 2 ? call.outputs[2] : nil, launch)
      if !isWhole, let sum { launch.add(call.outputs[0].array, sum.array, into: call.outputs[0]) }
      return true
    },
    CUDAKernel(GatedNorm.self) { op, call, launch in
      var a = arguments(op, call.inputs[0], call.inputs[1], call.inputs[2])
      a.y = call.outputs[0].array
      normalize(a, launch)
      return true
    },
    CUDAKernel(NormedProduct.self) { op, call, launch in
      var a = arguments(op.norm, call.inputs[0], call.inputs[2])
      a.bias = (call.inputs.count > 3 ? call.inputs[3] : nil).array
      (a.gate, a.gate_function) = (Int32(GYRE_GATE_AFTER), Int32(GYRE_GATE_PLAIN))
      (a.z, a.y) = (call.inputs[1].array, call.outputs[0].array)
      normalize(a, launch)
      return true
    },
    CUDAKernel(GatedNorm.Backward.self) { op, call, launch in
      var a = arguments(op.op, call.inputs[1], call.inputs[2], call.inputs[3])
      a.dz = call.outputs[1].array
      differentiate(
        a, dy: call.inputs[0], dx: call.outputs[0], dweight: call.outputs[2], dbias: nil, launch)
      return true
    },
    CUDAKernel(L2Normalize.self) { op, call, launch in
      var a = rows(call.inputs[0], Int32(GYRE_NORM_L2), op.epsilon)
      a.y = call.outputs[0].array
      normalize(a, launch)
      return true
    },
    CUDAKernel(L2Normalize.Backward.self) { op, call, launch in
      let a = rows(call.inputs[1], Int32(GYRE_NORM_L2), op.epsilon)
      differentiate(
        a, dy: call.inputs[0], dx: call.outputs[0], dweight: nil, dbias: nil, launch)
      return true
    },
  ]

  private static func normalize(_ a: gyre_norm_args, _ launch: CUDALaunch) {
    guard let plan = RowPlan(a, blocksPerProcessor: 8, launch) else {
      return launch.run(forward, rows: a.rows, columns: a.columns, a)
    }
    plan.run(rowsForward, a, launch)
  }

  private static func rows(_ x: Tensor, _ kind: Int32, _ epsilon: Double) -> gyre_norm_args {
    var a = gyre_norm_args()
    (a.rows, a.columns) = (x.shape.rowCount, x.shape.last)
    a.period = max(a.columns, 1)
    a.kind = kind
    a.epsilon = Float(epsilon)
    a.x = x.array
    return a
  }

  private static func arguments(_ op: Norm, _ x: Tensor, _ weight: Tensor?) -> gyre_norm_args {
    var a = rows(x, Int32(op.centers ? GYRE_NORM_LAYER : GYRE_NORM_RMS), op.epsilon)
    a.weight = weight.array
    if let weight { a.period = op.period(x.shape, weight.shape) }
    return a
  }

  private static func arguments(
    _ op: GatedNorm, _ x: Tensor, _ z: Tensor, _ weight: Tensor
  ) -> gyre_norm_args {
    var a = rows(x, Int32(GYRE_NORM_RMS), op.epsilon)
    a.gate = Int32(op.gatesFirst ? GYRE_GATE_BEFORE : GYRE_GATE_AFTER)
    a.gate_function = Int32(op.gate == .silu ? GYRE_GATE_SILU : GYRE_GATE_SIGMOID)
    a.z = z.array
    a.weight = weight.array
    a.period = max(weight.elementCount, 1)
    return a
  }

  private static func differentiate(
    _ arguments: gyre_norm_args, dy: Tensor, dx: Tensor, dweight: Tensor?, dbias: Tensor?,
    _ launch: CUDALaunch
  ) {
    var a = arguments
    (a.dy, a.dx) = (dy.array, dx.array)
    if let plan = RowPlan(a, blocksPerProcessor: 4, launch) {
      let parts = a.period == a.columns ? plan.blocks : plan.groups / (a.period / a.columns)
      if dweight != nil { a.dweight = launch.floats(parts * a.period) }
      if dbias != nil { a.dbias = launch.floats(parts * a.period) }
      plan.run(rowsBackward, a, launch)
      for (gradient, sums) in [(dweight, a.dweight), (dbias, a.dbias)] {
        if let gradient {
          launch.sumColumns(.floats(sums), rows: parts, columns: a.period, into: gradient.array)
        }
      }
      return
    }
    if dweight != nil { a.statistics = launch.floats(2 * a.rows) }
    launch.run(backward, rows: a.rows, columns: a.columns, a)
    guard let dweight else { return }
    let blocks = (a.period + 255) / 256
    a.splits = launch.splits(a.rows * a.columns / a.period, blocks: blocks)
    a.dweight = launch.floats(a.splits * a.period)
    if dbias != nil { a.dbias = launch.floats(a.splits * a.period) }
    launch.run(weightGradient, grid: (blocks, a.splits, 1), a)
    launch.sumColumns(
      .floats(a.dweight), rows: a.splits, columns: a.period, into: dweight.array)
    if let dbias {
      launch.sumColumns(.floats(a.dbias), rows: a.splits, columns: a.period, into: dbias.array)
    }
  }
}

/// How rows are divided among threads that keep them in registers.
private struct RowPlan {
  private let lanes: Int
  let blocks: Int
  /// Groups of `lanes` threads in the grid.
  var groups: Int { blocks * 256 / lanes }

  /// Nil where the rows are too long or not aligned.
  init?(_ a: gyre_norm_args, blocksPerProcessor: Int, _ launch: CUDALaunch) {
    let arrays = [a.x, a.z, a.weight, a.bias, a.y, a.dy, a.dx, a.dz]
    let isWide = (arrays + [a.added, a.sum, a.dy_more, a.dsum]).allSatisfy {
      $0.data % 16 == 0 && $0.dtype <= Int32(GYRE_F16)
    }
    guard isWide, a.rows > 0, a.columns > 0, a.columns % 8 == 0, a.columns <= 4096,
      a.period % a.columns == 0, a.each == 0 || a.period == a.columns
    else { return nil }
    // Up to 256 columns in one piece of eight a lane, beyond that two.
    let lanes =
      [8, 16, 32, 64, 128, 256].first { a.columns <= $0 * 8 * ($0 < 32 ? 1 : 2) } ?? 256
    let rowsPerBlock = 256 / lanes
    // A group's rows share one slice of the weight.
    var (slices, rest) = (a.period / a.columns, rowsPerBlock)
    while slices % 2 == 0, rest > 1 { (slices, rest) = (slices / 2, rest / 2) }
    guard slices <= 1024 else { return nil }
    let wanted = min(
      (a.rows + rowsPerBlock - 1) / rowsPerBlock,
      launch.device.multiprocessors * blocksPerProcessor)
    self.lanes = lanes
    blocks = max(1, wanted / slices) * slices
  }

  func run(_ functions: [Int: CUDAFunction], _ a: gyre_norm_args, _ launch: CUDALaunch) {
    guard let function = functions[lanes] else { return }
    launch.run(function, grid: (blocks, 1, 1), a)
  }
}
