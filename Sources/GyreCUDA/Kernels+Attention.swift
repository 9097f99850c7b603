import CGyreCUDASources
import GyreRecurrence
import GyreTensors

extension CUDAKernel {
  private static func attention(_ name: String) -> CUDAFunction { CUDAFunction("attention", name) }
  private static let prepare = attention("attention_prepare")
  private static let gates = attention("attention_gates")
  private static let forward = [64, 128, 256].map { attention("attention_forward_\($0)") }
  private static let keys = [64, 128, 256, 512].map { attention("attention_keys_\($0)") }
  private static let queries = [64, 128, 256, 512].map { attention("attention_queries_\($0)") }
  static let rowDot = CUDAFunction("reduce", "row_dot")

  static let attention: [CUDAKernel] = [
    CUDAKernel(AttentionForward.self) { op, call, launch in
      var a = arguments(op, call.inputs, launch)
      (a.y, a.sums) = (call.outputs[0].array, (op.keepsSums ? call.outputs[1] : nil).array)
      let columns = min(a.value_size, 256)
      let shared = 4 * (16 * a.key_size + 32 * (a.key_size + 1) + 32 * columns)
      guard shared <= launch.device.sharedPerBlock else { return false }
      let size = columns <= 64 ? 0 : columns <= 128 ? 1 : 2
      let tiles = (a.queries + 15) / 16
      launch.run(
        forward[size], grid: (a.batch * a.heads * tiles, (a.value_size + 255) / 256, 1),
        shared: shared, a)
      return true
    },
    CUDAKernel(AttentionBackward.self) { op, call, launch in
      var a = arguments(op.forward, call.inputs, launch)
      let largest = max(a.key_size, a.value_size)
      let shared = 4 * (48 * (a.key_size + a.value_size + 2) + 1024)
      guard largest <= 512, shared <= launch.device.sharedPerBlock else { return false }
      let size = largest <= 64 ? 0 : largest <= 128 ? 1 : largest <= 256 ? 2 : 3
      (a.y, a.sums) = (call.inputs[op.inputCount].array, call.inputs[op.inputCount + 1].array)
      a.dy = call.inputs[op.inputCount + 2].array
      (a.dq, a.dk, a.dv) = (call.outputs[0].array, call.outputs[1].array, call.outputs[2].array)
      let rows = a.batch * a.queries * a.heads
      a.delta = launch.floats(rows)
      launch.run(
        rowDot, grid: ((rows * 32 + 255) / 256, 1, 1),
        gyre_row_dot_args(rows: rows, columns: a.value_size, x: a.dy, y: a.y, out: a.delta))
      let dg = op.forward.optional[3].map { call.outputs[$0] }
      if dg != nil { a.columns = launch.floats(a.batch * a.heads * a.keys) }
      launch.run(
        keys[size], grid: (a.batch * a.key_heads * ((a.keys + 31) / 32), 1, 1), shared: shared, a)
      launch.run(
        queries[size], grid: (a.batch * a.heads * ((a.queries + 31) / 32), 1, 1), shared: shared,
        a)
      guard let dg else { return true }
      a.dg = dg.array
      launch.run(gates, grid: ((a.batch * a.heads * 32 + 255) / 256, 1, 1), a)
      return true
    },
  ]

  /// The call's arguments; queues what gates and document starts amount to.
  private static func arguments(
    _ op: AttentionForward, _ inputs: [Tensor], _ launch: CUDALaunch
  ) -> gyre_attention_args {
    let x = op.extents(inputs.map(\.spec))
    var a = gyre_attention_args()
    (a.batch, a.queries, a.keys) = (x.batch, x.queries, x.keys)
    (a.heads, a.key_heads) = (x.heads, x.keyHeads)
    (a.key_size, a.value_size) = (x.keySize, x.valueSize)
    a.window = op.window ?? 0
    a.scale = Float(op.scale)
    (a.q, a.k, a.v) = (inputs[0].array, inputs[1].array, inputs[2].array)
    a.g = op.optional.pick(3, inputs).array
    a.starts = op.optional.pick(4, inputs).address
    if op.optional.has(3) || op.optional.has(4) {
      let count = a.batch * a.heads * a.keys
      a.first = launch.scratch(4 * max(count, 1))
      if op.optional.has(3) { a.forget = launch.scratch(8 * max(count, 1)) }
      launch.run(prepare, grid: ((a.batch * a.heads * 32 + 255) / 256, 1, 1), a)
    }
    return a
  }
}
