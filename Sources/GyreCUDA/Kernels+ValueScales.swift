import CGyreCUDASources
import GyreTensors

extension CUDAKernel {
  private static let forward = CUDAFunction("value_scales", "value_scales")
  private static let backward = CUDAFunction("value_scales", "value_scales_backward")

  static let valueScales: [CUDAKernel] = [
    CUDAKernel(ValueScales.self) { op, call, launch in
      guard var a = arguments(call) else { return false }
      (a.y, a.z) = (call.outputs[0].array, call.outputs[1].array)
      launch.run(
        forward, grid: launch.columnGrid(rows: a.rows, columns: a.columns, blocksPerProcessor: 8), a
      )
      return true
    },
    CUDAKernel(ValueScales.Backward.self) { op, call, launch in
      guard var a = arguments(call) else { return false }
      (a.y, a.z) = (call.inputs[3].array, call.inputs[4].array)
      (a.dv, a.ds) = (call.outputs[0].array, call.outputs[1].array)
      let grid = launch.columnGrid(rows: a.rows, columns: a.columns, blocksPerProcessor: 3)
      a.sums = launch.floats(grid.1 * a.columns)
      launch.run(backward, grid: grid, a)
      let dd = call.outputs[2].array
      let columns = gyre_array.floats(a.d_per_column != 0 ? 0 : launch.floats(a.columns))
      launch.sumColumns(
        .floats(a.sums), rows: grid.1, columns: a.columns,
        into: a.d_per_column != 0 ? dd : columns)
      if a.d_per_column == 0 {
        launch.sumRows(columns, rows: a.columns / a.size, columns: a.size, into: dd)
      }
      return true
    },
  ]

  private static let gates = CUDAFunction("step_gates", "step_gates")
  private static let capped = CUDAFunction("step_gates", "capped_gates")
  private static let gatesBackward = CUDAFunction("step_gates", "step_gates_backward")

  static let stepGates: [CUDAKernel] = [
    CUDAKernel(StepGates.self) { op, call, launch in
      var a = arguments(op, call)
      (a.g, a.second) = (call.outputs[0].array, call.outputs[1].array)
      launch.run(gates, grid: grid(a, blocksPerProcessor: 16, launch), a)
      return true
    },
    CUDAKernel(CappedGates.self) { op, call, launch in
      let z = call.inputs[0]
      var a = gyre_step_gates_args()
      (a.rows, a.heads, a.width) = (z.shape.rowCount, z.shape.last / 2, z.shape.last)
      (a.strength, a.z, a.bias) = (Float(op.cap), z.array, call.inputs[1].array)
      (a.g, a.second) = (call.outputs[0].array, call.outputs[1].array)
      launch.run(capped, over: a.rows * a.width, a)
      return true
    },
    CUDAKernel(StepGates.Backward.self) { op, call, launch in
      var a = arguments(op.forward, call)
      (a.g, a.second) = (call.inputs[3].array, call.inputs[4].array)
      a.dz = call.outputs[0].array
      let grid = grid(a, blocksPerProcessor: 2, launch)
      a.sums = launch.floats(grid.1 * 2 * a.heads)
      launch.run(gatesBackward, grid: grid, a)
      launch.sumColumns(
        .floats(a.sums), rows: grid.1, columns: 2 * a.heads, into: call.outputs[1].array)
      return true
    },
  ]

  private static func arguments(_ op: StepGates, _ call: KernelCall) -> gyre_step_gates_args {
    let i = call.inputs
    var a = gyre_step_gates_args()
    (a.rows, a.heads, a.width) = (i[0].shape.rowCount, i[1].elementCount, i[0].shape.last)
    a.strength = Float(op.strength ?? 0)
    (a.z, a.bias, a.log_rate) = (i[0].array, i[1].array, i[2].array)
    return a
  }

  /// Blocks of up to 256 heads across, and of as many rows as fit beside them down.
  private static func grid(
    _ a: gyre_step_gates_args, blocksPerProcessor: Int, _ launch: CUDALaunch
  ) -> (Int, Int, Int) {
    let down = 256 / max(1, min(a.heads, 256))
    let wanted = min((a.rows + down - 1) / down, launch.device.multiprocessors * blocksPerProcessor)
    return ((a.heads + 255) / 256, max(1, wanted), 1)
  }

  private static func arguments(_ call: KernelCall) -> gyre_value_scales_args? {
    let v = call.inputs[0].shape
    var a = gyre_value_scales_args()
    (a.rows, a.columns, a.size) = (v[0] * v[1], v[2] * v[3], v[3])
    guard a.rows > 0, ValueScales.suits(a.size), call.isAligned else { return nil }
    a.d_per_column = call.inputs[2].elementCount == v[2] ? 0 : 1
    (a.v, a.s, a.d) = (call.inputs[0].array, call.inputs[1].array, call.inputs[2].array)
    return a
  }
}
