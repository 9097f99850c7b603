import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// Linear attention and the delta rule, token by token with the state on chip: any size and option.
extension CUDAKernel {
  private static func each(_ file: String, _ name: String) -> [CUDAFunction] {
    (2...5).map { CUDAFunction(file, name, ["-DLOG_ROWS=\($0)"]) }
  }
  private static let linearForward = each("linear_attention_base", "linear_attention_forward")
  private static let linearBackward = each("linear_attention_base", "linear_attention_backward")
  private static let deltaForward = each("delta_rule_base", "delta_rule_forward")
  private static let deltaBeta = each("delta_rule_base", "delta_rule_backward_beta")
  private static let deltaGeneral = each("delta_rule_base", "delta_rule_backward_general")
  private static let headSums = CUDAFunction("head_sums", "head_sums")

  /// Bytes of partial gradients that exist at a time.
  private static let partialBytes = 256 << 20

  static let heads: [CUDAKernel] = [
    CUDAKernel(LinearAttentionForward.self) { op, call, launch in
      let step = HeadStep(op, call.inputs, launch.device)
      if step == nil, var chunks = ChunkedHeads(op, call.inputs, launch) {
        chunks.run(
          y: call.outputs[0], finalState: call.outputs[1],
          finalVector: call.outputs.count > 2 ? call.outputs[2] : nil,
          finalMax: call.outputs.count > 3 ? call.outputs[3] : nil)
        return true
      }
      guard var a = arguments(op, call.inputs), let size = variant(a) else { return false }
      (a.y, a.final_state) = (call.outputs[0].array, call.outputs[1].array)
      if call.outputs.count > 2 { a.final_norm = call.outputs[2].array }
      if call.outputs.count > 3 { a.final_max = call.outputs[3].array }
      if let step {
        step.run(a, launch)
      } else {
        launch.run(linearForward[size], grid: grid(a), a)
      }
      return true
    },
    CUDAKernel(LinearAttentionBackward.self) { op, call, launch in
      let rest = Array(call.inputs[op.inputCount...])
      if var chunks = ChunkedHeads(op.forward, call.inputs, launch) {
        let given = { (i: Int) in op.place(i).map { call.outputs[$0] } }
        chunks.differentiate(
          dy: rest[1], dFinal: op.extra.pick(2, rest), y: rest[0],
          dFinalVector: op.extra.pick(3, rest),
          .init(
            dq: call.outputs[0], dk: call.outputs[1], dv: call.outputs[2], gate: given(3),
            state: given(6), vector: given(7), input: given(4), bonus: given(5)))
        return true
      }
      guard var a = arguments(op.forward, call.inputs), let size = variant(a), a.tokens > 0,
        !(op.forward.optional.has(4) && op.forward.optional.has(5))
      else { return false }
      let output = { (i: Int) in op.place(i).map { call.outputs[$0] }.array }
      a.dy = rest[1].array
      a.dfinal_state = op.extra.pick(2, rest).array
      a.dfinal_norm = op.extra.pick(3, rest).array
      (a.dv, a.dstate, a.dnorm_state) = (output(2), output(6), output(7))
      if a.divisor != 0 {
        let rows = a.batch * a.tokens * a.heads
        a.row_dots = launch.floats(rows)
        launch.run(
          rowDot, grid: ((rows * 32 + 255) / 256, 1, 1),
          gyre_row_dot_args(
            rows: rows, columns: a.value_size, x: rest[1].array, y: rest[0].array, out: a.row_dots))
      }
      let tiles = (a.value_size + 15) / 16
      let bonusRows = tiles * a.batch
      if op.forward.optional.has(5) {
        a.partial_bonus = launch.floats(bonusRows * a.heads * a.key_size)
        launch.zero(a.partial_bonus, bonusRows * a.heads * a.key_size)
      }
      var sums = gyre_head_sum_args()
      sums.vectors = 3
      (sums.dq, sums.dk, sums.dg) = (output(0), output(1), output(3))
      (sums.dscalar, sums.scalar_is_gate) = (output(4), 1)
      differentiate(a, &sums, linearForward[size], linearBackward[size], launch)
      if op.forward.optional.has(5) {
        launch.sumColumns(
          .floats(a.partial_bonus), rows: bonusRows, columns: a.heads * a.key_size,
          into: output(5))
      }
      return true
    },
    CUDAKernel(DeltaRuleForward.self) { op, call, launch in
      // Both derivatives make their own states.
      for note in call.outputs.dropFirst(2) { launch.fill(note, 0) }
      let step = HeadStep(op, call.inputs, launch.device)
      if step == nil, var chunks = ChunkedHeads(op, call.inputs, launch) {
        chunks.run(y: call.outputs[0], finalState: call.outputs[1])
        return true
      }
      guard var a = arguments(op, call.inputs), let size = variant(a) else { return false }
      (a.y, a.final_state) = (call.outputs[0].array, call.outputs[1].array)
      if let step {
        step.run(a, launch)
      } else {
        launch.run(deltaForward[size], grid: grid(a), a)
      }
      return true
    },
    CUDAKernel(DeltaRuleBackward.self) { op, call, launch in
      let rest = Array(call.inputs[op.inputCount...])
      if let dy = op.extra.pick(2, rest),
        var chunks = ChunkedHeads(op.forward, call.inputs, launch)
      {
        let given = { (i: Int) in op.place(i).map { call.outputs[$0] } }
        chunks.differentiate(
          dy: dy, dFinal: op.extra.pick(3, rest),
          .init(
            dq: call.outputs[0], dk: call.outputs[1], dv: call.outputs[2], gate: given(3),
            beta: given(4), a: given(5), b: given(6), state: given(7)))
        return true
      }
      guard var a = arguments(op.forward, call.inputs), let size = variant(a), a.tokens > 0
      else { return false }
      let output = { (i: Int) in op.place(i).map { call.outputs[$0] }.array }
      a.dy = op.extra.pick(2, rest).array
      a.dfinal_state = op.extra.pick(3, rest).array
      (a.dv, a.dstate) = (output(2), output(7))
      let isGeneral = !op.forward.optional.has(4)
      var sums = gyre_head_sum_args()
      sums.vectors = isGeneral ? 5 : 3
      (sums.dq, sums.dk, sums.dg) = (output(0), output(1), output(3))
      (sums.dscalar, sums.da, sums.db) = (output(4), output(5), output(6))
      differentiate(
        a, &sums, deltaForward[size], isGeneral ? deltaGeneral[size] : deltaBeta[size], launch)
      return true
    },
  ]

  /// Which compilation has enough rows; nil beyond the largest.
  private static func variant(_ a: gyre_head_args) -> Int? {
    [64, 128, 256, 512].firstIndex { a.key_size <= $0 }
  }

  private static func grid(_ a: gyre_head_args) -> (Int, Int, Int) {
    (a.batch * a.heads * ((a.value_size + 15) / 16), 1, 1)
  }

  private static func extents(_ x: HeadExtents, scale: Double, _ inputs: [Tensor]) -> gyre_head_args
  {
    var a = gyre_head_args()
    (a.batch, a.tokens, a.heads, a.key_heads) = (x.batch, x.tokens, x.heads, x.keyHeads)
    (a.key_size, a.value_size) = (x.keySize, x.valueSize)
    a.scale = Float(scale)
    (a.q, a.k, a.v) = (inputs[0].array, inputs[1].array, inputs[2].array)
    (a.first, a.last) = (0, x.tokens)
    return a
  }

  private static func arguments(
    _ op: LinearAttentionForward, _ inputs: [Tensor]
  ) -> gyre_head_args? {
    var a = extents(op.extents(inputs.map(\.spec)), scale: op.scale, inputs)
    a.decay =
      switch op.decay {
      case .none: Int32(GYRE_DECAY_NONE)
      case .constant: Int32(GYRE_DECAY_CONSTANT)
      case .scalar: Int32(GYRE_DECAY_SCALAR)
      case .vector: Int32(GYRE_DECAY_VECTOR)
      }
    switch op.normalizer {
    case .none: a.divisor = Int32(GYRE_DIVISOR_NONE)
    case .sum(let epsilon):
      (a.divisor, a.epsilon) = (Int32(GYRE_DIVISOR_SUM), Float(epsilon))
    case .floor(let floor, let epsilon):
      (a.divisor, a.floor, a.epsilon) = (
        Int32(GYRE_DIVISOR_FLOOR), Float(floor), Float(epsilon)
      )
    case .exponential(let epsilon):
      (a.divisor, a.epsilon) = (Int32(GYRE_DIVISOR_EXPONENTIAL), Float(epsilon))
      guard op.optional.has(4) else { return nil }
    }
    func input(_ i: Int) -> gyre_array { op.optional.pick(i, inputs).array }
    (a.g, a.input_gate, a.bonus) = (input(3), input(4), input(5))
    (a.state, a.norm_state, a.max_state) = (input(6), input(7), input(8))
    a.reset = op.optional.pick(9, inputs).address
    return a
  }

  private static func arguments(_ op: DeltaRuleForward, _ inputs: [Tensor]) -> gyre_head_args? {
    var a = extents(op.extents(inputs.map(\.spec)), scale: op.scale, inputs)
    let g = op.optional.pick(3, inputs)
    a.decay = Int32(
      g == nil ? GYRE_DECAY_NONE : g?.rank == 3 ? GYRE_DECAY_SCALAR : GYRE_DECAY_VECTOR)
    func input(_ i: Int) -> gyre_array { op.optional.pick(i, inputs).array }
    (a.g, a.beta, a.a, a.b, a.state) = (input(3), input(4), input(5), input(6), input(7))
    a.reset = op.optional.pick(8, inputs).address
    return a
  }

  /// Keeps the states at every 16th token, then goes back through the sequence in segments whose
  /// partial gradients fit into bounded memory.
  private static func differentiate(
    _ arguments: gyre_head_args, _ sums: inout gyre_head_sum_args, _ forward: CUDAFunction,
    _ backward: CUDAFunction, _ launch: CUDALaunch
  ) {
    var a = arguments
    let interval = Int(GYRE_HEAD_INTERVAL)
    let (rows, K, V) = (a.batch * a.heads, a.key_size, a.value_size)
    a.slots = max(1, (a.tokens + interval - 1) / interval)
    a.kept = launch.floats(rows * a.slots * K * V)
    a.kept_norm = launch.floats(rows * a.slots * K)
    a.kept_max = launch.floats(rows * a.slots)
    launch.run(forward, grid: grid(a), a)
    (a.carry, a.carry_norm) = (launch.floats(rows * K * V), launch.floats(rows * K))
    let tiles = (V + 15) / 16
    let vectors = Int(sums.vectors)
    let perToken = tiles * rows * vectors * K * 4
    let segment = max(interval, partialBytes / max(perToken, 1) / interval * interval)
    let span = min(segment, max(a.tokens, 1))
    a.partial = launch.floats(tiles * rows * span * vectors * K)
    a.partial_scalar = launch.floats(tiles * rows * span)
    (sums.batch, sums.tokens, sums.heads, sums.key_heads) = (
      a.batch, a.tokens, a.heads, a.key_heads
    )
    (sums.key_size, sums.tiles, sums.decay, sums.k) = (K, tiles, a.decay, a.k)
    (sums.partial, sums.partial_scalar) = (a.partial, a.partial_scalar)
    let dg = sums.dg
    if a.decay == Int32(GYRE_DECAY_CONSTANT) {
      sums.dg_head = launch.floats(a.batch * a.tokens * a.heads)
    }
    let shared = 4 * 16 * (vectors * K + 1) + 4 * K
    for start in stride(from: 0, to: a.tokens, by: segment).reversed() {
      (a.first, a.last) = (start, min(start + segment, a.tokens))
      launch.run(backward, grid: grid(a), shared: shared, a)
      (sums.first, sums.last) = (a.first, a.last)
      launch.run(
        headSums, grid: (a.batch * (a.last - a.first) * a.key_heads, 1, 1), threads: (128, 1),
        sums)
    }
    if a.decay == Int32(GYRE_DECAY_CONSTANT) {
      launch.sumColumns(
        .floats(sums.dg_head), rows: a.batch * a.tokens, columns: a.heads, into: dg)
    }
  }
}
