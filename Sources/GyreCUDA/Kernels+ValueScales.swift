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
