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
  private static func each(_ name: String) -> [CUDAFunction] {
    [64, 128].map { CUDAFunction("attention_mma", name, ["-DSIZE=\($0)"]) }
  }
  private static let mmaForward = each("attention_mma_forward")
  private static let mmaKeys = each("attention_mma_keys")
  private static let mmaQueries = each("attention_mma_queries")
  static let rowDot = CUDAFunction("reduce", "row_dot")

  private static let steps = [8, 16, 32, 64].map {
    CUDAFunction("attention_step", "attention_step", ["-DLANES=\($0)"])
  }

  static let attention: [CUDAKernel] = [
    CUDAKernel(AttentionStep.self) { op, call, launch in
      let (i, cache) = (call.inputs, call.inputs[3].shape)
      guard AttentionStep.suits(cache[3]), i[2...4].allSatisfy({ $0.address % 16 == 0 }),
        i[3].dtype == .float32, i[4].dtype == .float32
      else { return false }
      // The caches that come out are those that went in, or copies.
      for n in 1...2 { launch.copy(i[2 + n], to: call.outputs[n]) }
      var a = gyre_attention_step_args()
      (a.batch, a.capacity, a.key_heads, a.size) = (cache[0], cache[1], cache[2], cache[3])
      (a.heads, a.scale) = (i[0].shape[2], Float(op.scale))
      if let rotary = op.rotary {
        (a.base, a.rotated) = (rotary.base, Int32(rotary.rotated))
        a.interleaved = rotary.interleaved ? 1 : 0
      }
      (a.q, a.k, a.v, a.position) = (i[0].array, i[1].array, i[2].array, i[5].array)
      (a.keys, a.values) = (call.outputs[1].array, call.outputs[2].array)
      a.y = call.outputs[0].array
      let size = a.size <= 32 ? 0 : a.size <= 64 ? 1 : a.size <= 128 ? 2 : 3
      launch.run(steps[size], grid: (a.batch * a.heads, 1, 1), a)
      return true
    },
    CUDAKernel(AttentionForward.self) { op, call, launch in
      var a = arguments(op, call.inputs, launch)
      (a.y, a.sums) = (call.outputs[0].array, (op.keepsSums ? call.outputs[1] : nil).array)
      if let size = matrixSize(a) {
        makeHalf(&a, call.inputs, launch)
        if var tiles = AttentionTiles(a, launch) {
          tiles.runForward()
          return true
        }
        launch.run(
          mmaForward[size], grid: (a.batch * a.heads * ((a.queries + 63) / 64), 1, 1),
          threads: (128, 1), shared: matrixBytes(size, blocks: 1), a)
        return true
      }
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
      let matrix = matrixSize(a)
      if matrix != nil {
        makeHalf(&a, call.inputs, launch)
        a.dy = gyre_array(launch.bfloat16(call.inputs[op.inputCount + 2]), .bfloat16)
        if var tiles = AttentionTiles(a, launch) {
          tiles.runBackward()
          return true
        }
      }
      let rows = a.batch * a.queries * a.heads
      a.delta = launch.floats(rows)
      launch.run(
        rowDot, grid: ((rows * 32 + 255) / 256, 1, 1),
        gyre_row_dot_args(
          rows: rows, columns: a.value_size, x: call.inputs[op.inputCount + 2].array, y: a.y,
          out: a.delta))
      let dg = op.forward.optional[3].map { call.outputs[$0] }
      if dg != nil {
        a.columns = launch.floats(a.batch * a.heads * a.keys)
        a.rows = launch.floats(a.batch * a.heads * a.queries)
      }
      if let size = matrix {
        let bytes = matrixBytes(size, blocks: 2)
        launch.run(
          mmaKeys[size], grid: (a.batch * a.key_heads * ((a.keys + 63) / 64), 1, 1),
          threads: (128, 1), shared: bytes, a)
        launch.run(
          mmaQueries[size], grid: (a.batch * a.heads * ((a.queries + 63) / 64), 1, 1),
          threads: (128, 1), shared: bytes, a)
      } else {
        launch.run(
          keys[size], grid: (a.batch * a.key_heads * ((a.keys + 31) / 32), 1, 1), shared: shared, a)
        launch.run(
          queries[size], grid: (a.batch * a.heads * ((a.queries + 31) / 32), 1, 1),
          shared: shared, a)
      }
      guard let dg else { return true }
      a.dg = dg.array
      launch.run(gates, grid: ((a.batch * a.heads * 32 + 255) / 256, 1, 1), a)
      return true
    },
  ]

  /// Which tensor-core kernels serve a call: those for 64 or 128 channels, for bfloat16 queries and
  /// enough queries to fill their tiles.
  private static func matrixSize(_ a: gyre_attention_args) -> Int? {
    guard a.q.dtype == DType.bfloat16.cuda, a.queries >= 16 else { return nil }
    let largest = max(a.key_size, a.value_size)
    return largest <= 64 ? 0 : largest <= 128 ? 1 : nil
  }

  /// Shared memory of tiles: `blocks` of 64 rows and two that move.
  private static func matrixBytes(_ size: Int, blocks: Int) -> Int {
    size == 0 ? 2 * 72 * (64 * blocks + 128) : 2 * 136 * (64 * blocks + 64)
  }

  private static func makeHalf(
    _ a: inout gyre_attention_args, _ inputs: [Tensor], _ launch: CUDALaunch
  ) {
    a.q = gyre_array(launch.bfloat16(inputs[0]), .bfloat16)
    a.k = gyre_array(launch.bfloat16(inputs[1]), .bfloat16)
    a.v = gyre_array(launch.bfloat16(inputs[2]), .bfloat16)
  }

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
