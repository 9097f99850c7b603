import CGyreCUDASources
import GyreTensors

/// What surrounds RWKV's recurrences.
extension CUDAKernel {
  private static func each(_ name: String) -> [Int: CUDAFunction] {
    var table: [Int: CUDAFunction] = [:]
    for lanes in [1, 2, 4, 8, 16] {
      table[8 * lanes] = CUDAFunction("rwkv7", name, ["-DLANES=\(lanes)"])
    }
    return table
  }
  private static let keys = each("rwkv7_keys")
  private static let keysBackward = each("rwkv7_keys_backward")
  private static let readout = each("rwkv7_readout")
  private static let readoutBackward = each("rwkv7_readout_backward")
  private static let blend = CUDAFunction("blend", "blend")
  private static let blendBackward = CUDAFunction("blend", "blend_backward")
  private static let mixes = CUDAFunction("token_mixes", "token_mixes")
  private static let mixesBackward = CUDAFunction("token_mixes", "token_mixes_backward")

  private static let normedMixes = ["normed_mixes", "normed_mixes_wide"].map {
    CUDAFunction("normed_mixes", $0, isEarly: true)
  }

  static let rwkv: [CUDAKernel] = [
    CUDAKernel(NormedMixes.self) { op, call, launch in
      let i = call.inputs
      var a = gyre_normed_mixes_args()
      (a.batch, a.width, a.mixes) = (i[0].shape[0], i[0].shape[2], Int32(op.mixes))
      guard call.isAligned, a.width % 8 == 0, a.width <= NormedMixes.widest,
        op.mixes <= Int(GYRE_MIXES)
      else { return false }
      (a.centers, a.epsilon) = (op.norm.centers ? 1 : 0, Float(op.norm.epsilon))
      (a.x, a.added, a.weight) = (i[0].array, i[1].array, i[2].array)
      if op.hasBias { a.bias = i[3].array }
      a.last = i[op.first + op.mixes].array
      set(&a.mix, i[op.first..<op.first + op.mixes])
      (a.sum, a.last_final) = (call.outputs[0].array, call.outputs[op.mixes + 1].array)
      set(&a.y, call.outputs[1...op.mixes])
      let pieces = a.width <= 2048 ? 1 : 2
      let threads = (a.width / (8 * pieces) + 31) / 32 * 32
      launch.run(normedMixes[pieces - 1], grid: (a.batch, 1, 1), threads: (threads, 1), a)
      return true
    },
    CUDAKernel(RWKV7Keys.self) { op, call, launch in
      guard
        let plan = HeadPlan(
          heads: op.heads, width: call.inputs[0].shape.last, call, launch, 8,
          parameters: op.parameters(of: call.inputs.count)),
        let function = keys[plan.size]
      else { return false }
      var a = arguments(op, call.inputs, plan)
      (a.written, a.log_decay) = (call.outputs[0].array, call.outputs[1].array)
      (a.erase, a.write) = (call.outputs[2].array, call.outputs[3].array)
      launch.run(function, grid: (plan.blocks, 1, 1), a)
      return true
    },
    CUDAKernel(RWKV7Keys.Backward.self) { op, call, launch in
      guard
        let plan = HeadPlan(
          heads: op.forward.heads, width: call.inputs[0].shape.last, call, launch, 3),
        let function = keysBackward[plan.size]
      else { return false }
      var a = arguments(op.forward, call.inputs, plan)
      let rest = Array(call.inputs[7...])
      a.dwritten = op.present.pick(0, rest).array
      a.dlog_decay = op.present.pick(1, rest).array
      a.derase = op.present.pick(2, rest).array
      a.dwrite = op.present.pick(3, rest).array
      a.dwritten_more = op.present.pick(4, rest).array
      (a.dkey, a.drate, a.ddecay) = (
        call.outputs[0].array, call.outputs[1].array, call.outputs[2].array
      )
      a.sums = launch.floats(plan.parts * call.outputs[3].elementCount)
      launch.run(function, grid: (plan.blocks, 1, 1), a)
      plan.add(a.sums, into: call.outputs[3], launch)
      return true
    },
    CUDAKernel(RWKV7Readout.self) { op, call, launch in
      let (heads, size) = (call.inputs[0].shape[-2], call.inputs[0].shape.last)
      guard
        let plan = HeadPlan(
          heads: heads, width: heads * size, call, launch, 8,
          parameters: op.parameters(of: call.inputs.count)),
        let function = readout[plan.size]
      else { return false }
      var a = arguments(op, call.inputs, plan)
      a.out = call.outputs[0].array
      launch.run(function, grid: (plan.blocks, 1, 1), a)
      return true
    },
    CUDAKernel(RWKV7Readout.Backward.self) { op, call, launch in
      let (heads, size) = (call.inputs[0].shape[-2], call.inputs[0].shape.last)
      guard let plan = HeadPlan(heads: heads, width: heads * size, call, launch, 3),
        let function = readoutBackward[plan.size]
      else { return false }
      var a = arguments(op.forward, call.inputs, plan)
      a.dout = call.inputs[8].array
      (a.dy, a.dquery, a.dwritten) = (
        call.outputs[0].array, call.outputs[1].array, call.outputs[2].array
      )
      (a.dvalue, a.dgate) = (call.outputs[3].array, call.outputs[4].array)
      a.sums = launch.floats(plan.parts * call.outputs[5].elementCount)
      launch.run(function, grid: (plan.blocks, 1, 1), a)
      plan.add(a.sums, into: call.outputs[5], launch)
      return true
    },
    CUDAKernel(GatedBlend.self) { op, call, launch in
      guard var a = arguments(op, call) else { return false }
      a.out = call.outputs[0].array
      launch.run(
        blend, grid: launch.columnGrid(rows: a.rows, columns: a.columns, blocksPerProcessor: 8), a)
      return true
    },
    CUDAKernel(GatedBlend.Backward.self) { op, call, launch in
      guard var a = arguments(GatedBlend(), call) else { return false }
      a.dout = call.inputs[4].array
      if op.hasSecond { a.dout_more = call.inputs[5].array }
      if op.adds { a.dy_before = call.inputs[call.inputs.count - 1].array }
      (a.dx, a.dy, a.dgate) = (
        call.outputs[0].array, call.outputs[1].array, call.outputs[2].array
      )
      let grid = launch.columnGrid(rows: a.rows, columns: a.columns, blocksPerProcessor: 3)
      a.sums = launch.floats(grid.1 * a.columns)
      launch.run(blendBackward, grid: grid, a)
      launch.sumColumns(
        .floats(a.sums), rows: grid.1, columns: a.columns, into: call.outputs[3].array)
      return true
    },
    CUDAKernel(TokenMixes.self) { op, call, launch in
      guard var a = arguments(op, call, launch) else { return false }
      set(&a.y, call.outputs[..<op.mixes])
      a.last_final = call.outputs[op.mixes].array
      let across = (a.width / 4 + 31) / 32
      let down = min((a.batch * a.tokens + 7) / 8, launch.device.multiprocessors * 8 / across)
      launch.run(mixes, grid: (across, max(1, down), 1), a)
      return true
    },
    CUDAKernel(TokenMixes.Backward.self) { op, call, launch in
      guard var a = arguments(op.forward, call, launch) else { return false }
      set(&a.y, call.inputs[op.first..<op.first + op.forward.mixes])
      if let second = op.second {
        (a.more, a.more_of) = (call.inputs[call.inputs.count - 1].array, second)
      }
      if op.hasLastCotangent { a.dlast_final = call.inputs[op.first + op.forward.mixes].array }
      a.dx = call.outputs[0].array
      if op.forward.hasLast { a.dlast = call.outputs[2].array }
      let grid = grid(a)
      a.sums = launch.floats(grid.1 * a.mixes * a.width)
      launch.run(mixesBackward, grid: grid, threads: (128, 1), a)
      launch.sumColumns(
        .floats(a.sums), rows: grid.1, columns: a.mixes * a.width, into: call.outputs[1].array)
      return true
    },
  ]

  private static func arguments(
    _ op: RWKV7Keys, _ i: [Tensor], _ plan: HeadPlan
  ) -> gyre_rwkv7_keys_args {
    var a = gyre_rwkv7_keys_args()
    (a.rows, a.heads, a.epsilon) = (plan.rows, op.heads, Float(op.epsilon))
    (a.key, a.rate, a.decay) = (i[0].array, i[1].array, i[2].array)
    (a.key_scale, a.key_rate) = (i[3].parameter(plan.width), i[4].parameter(plan.width))
    (a.rate_bias, a.decay_bias) = (i[5].parameter(plan.width), i[6].parameter(plan.width))
    a.tokens = plan.tokens
    return a
  }

  private static func arguments(
    _ op: RWKV7Readout, _ i: [Tensor], _ plan: HeadPlan
  ) -> gyre_rwkv7_readout_args {
    var a = gyre_rwkv7_readout_args()
    (a.rows, a.heads, a.epsilon) = (plan.rows, i[0].shape[-2], Float(op.epsilon))
    (a.y, a.query, a.written) = (i[0].array, i[1].array, i[2].array)
    (a.value, a.gate) = (i[3].array, i[4].array)
    a.bonus = i[5].parameter(plan.width)
    (a.weight, a.bias) = (i[6].parameter(plan.width), i[7].parameter(plan.width))
    a.tokens = plan.tokens
    return a
  }

  private static func arguments(_ op: GatedBlend, _ call: KernelCall) -> gyre_blend_args? {
    var a = gyre_blend_args()
    (a.rows, a.columns) = (call.inputs[0].shape.rowCount, call.inputs[0].shape.last)
    guard a.columns % 8 == 0, a.rows > 0, call.isAligned else { return nil }
    (a.x, a.y) = (call.inputs[0].array, call.inputs[1].array)
    (a.gate, a.bias) = (call.inputs[2].array, call.inputs[3].parameter(a.columns))
    a.each = a.rows / call.inputs[0].shape[0]
    return a
  }

  private static func arguments(
    _ op: TokenMixes, _ call: KernelCall, _ launch: CUDALaunch
  ) -> gyre_token_mixes_args? {
    let s = call.inputs[0].shape
    var a = gyre_token_mixes_args()
    (a.batch, a.tokens, a.width, a.mixes) = (s[0], s[1], s[2], op.mixes)
    guard a.tokens > 0, a.batch > 0, a.width % 4 == 0, call.isAligned, a.batch * a.tokens < 1 << 31,
      op.mixes <= Int(GYRE_MIXES)
    else { return nil }
    let wanted = launch.device.multiprocessors * 1024
    let chunks = max(
      1, min(a.tokens / 16, wanted / max(a.batch * a.width / 4, 1), 60_000 / a.batch))
    a.chunk = (a.tokens + chunks - 1) / chunks
    a.x = call.inputs[0].array
    set(&a.mix, call.inputs[1...op.mixes].map { $0.parameter(s[2]) })
    if op.hasLast { a.last = call.inputs[op.mixes + 1].array }
    return a
  }

  private static func grid(_ a: gyre_token_mixes_args) -> (Int, Int, Int) {
    ((a.width / 4 + 127) / 128, a.batch * ((a.tokens + a.chunk - 1) / a.chunk), 1)
  }

  /// Writes tensors into a C array of arrays.
  private static func set<Arrays>(_ arrays: inout Arrays, _ tensors: ArraySlice<Tensor>) {
    set(&arrays, tensors.map(\.array))
  }
  private static func set<Arrays>(_ arrays: inout Arrays, _ values: [gyre_array]) {
    withUnsafeMutableBytes(of: &arrays) { memory in
      for (i, array) in values.enumerated() {
        memory.storeBytes(
          of: array, toByteOffset: MemoryLayout<gyre_array>.stride * i, as: gyre_array.self)
      }
    }
  }
}

extension KernelCall {
  /// Whether every operand starts at a multiple of 16 bytes.
  /// Whether all tensors begin where pieces of 16 bytes do.
  var isAligned: Bool {
    inputs.allSatisfy { $0.address % 16 == 0 } && outputs.allSatisfy { $0.address % 16 == 0 }
  }
}

/// How rows of heads are divided among groups of threads that stay with one head.
private struct HeadPlan {
  /// Channels of a head.
  let size: Int
  /// Elements of a parameter, and of all heads of a token.
  let width: Int
  /// Of a sequence, where a parameter is sequences' own; otherwise 0.
  let tokens: Int
  let rows, blocks: Int
  /// Partial sums of parameters' gradients.
  let parts: Int

  /// Nil where no kernel covers the sizes. `parameters`: places of those that may be sequences' own.
  init?(
    heads: Int, width: Int, _ call: KernelCall, _ launch: CUDALaunch, _ blocksPerProcessor: Int,
    parameters: Range<Int> = 0..<0
  ) {
    let x = call.inputs[0]
    guard heads > 0, width % heads == 0, call.isAligned, x.elementCount > 0 else { return nil }
    self.width = width
    size = width / heads
    guard [8, 16, 32, 64, 128].contains(size) else { return nil }
    rows = x.elementCount / size
    let each = 256 / (size / 8)
    if call.inputs[parameters].contains(where: { $0.elementCount > width }) {
      let sequences = x.shape[0]
      tokens = rows / heads / sequences
      blocks = (sequences * heads + each - 1) / each
      parts = 0
      return
    }
    tokens = 0
    // Groups in multiples of the heads.
    var (unit, rest) = (heads, each)
    while unit % 2 == 0, rest > 1 { (unit, rest) = (unit / 2, rest / 2) }
    let wanted = min(
      (rows + each - 1) / each, launch.device.multiprocessors * blocksPerProcessor)
    blocks = max(1, wanted / unit) * unit
    parts = each % heads == 0 ? blocks : blocks * each / heads
  }

  /// The sum of the parts.
  func add(_ sums: UInt64, into t: Tensor, _ launch: CUDALaunch) {
    launch.sumColumns(.floats(sums), rows: parts, columns: t.elementCount, into: t.array)
  }
}
