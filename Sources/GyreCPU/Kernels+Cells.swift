import CGyreKernels
import GyreRecurrence
import GyreTensors

extension CPUKernel {
  static let cells: [CPUKernel] = [
    CPUKernel(RecurrentGradients.self) { op, call, k in recurrentGradients(op, call, k) },
    CPUKernel(CellForward.self) { op, call, k in
      let xw = call.inputs[0]
      let isHalf = xw.dtype == .bfloat16 && op.cell.takesHalf
      let kept = keptPlaces(op).map { call.outputs[$0] }
      let isHalfOutput = op.output == .bfloat16 && op.cell.takesHalf
      guard isHalf || xw.dtype == .float32, isHalfOutput || op.output == .float32,
        call.isFloat32(but: [xw, call.outputs[0]] + kept),
        kept.allSatisfy({ $0.dtype == op.kept }), op.kept == .float32 || op.cell.takesHalf
      else { return false }
      var a = ck_cell_scan_forward_args()
      a.shape = shape(op, call.inputs)
      a.xw = UnsafePointer(xw.floats)
      a.bf16_xw = isHalf
      a.bias = op.optional.pick(2, call.inputs)?.constant
      a.h0 = op.optional.pick(3, call.inputs)?.constant
      a.c0 = op.optional.pick(4, call.inputs)?.constant
      a.y = call.outputs[0].floats
      a.bf16_y = isHalfOutput
      a.h_final = call.outputs[1].f32
      if op.cell.hasMemory { a.c_final = call.outputs[2].f32 }
      if op.cell == .slstm {
        a.n0 = op.optional.pick(6, call.inputs)?.constant
        a.m0 = op.optional.pick(7, call.inputs)?.constant
        a.n_final = call.outputs[3].f32
        a.m_final = call.outputs[4].f32
        a.normalizers = op.normalizersPlace.flatMap { call.outputs[$0].f32 }
        a.stabilizers = op.stabilizersPlace.flatMap { call.outputs[$0].f32 }
      }
      a.bf16_kept = op.kept == .bfloat16
      a.gates = op.gatesPlace.flatMap { call.outputs[$0].floats }
      a.cell_states = op.cellsPlace.flatMap { call.outputs[$0].floats }
      k.cellScan.forward(&a)
      return true
    },
    CPUKernel(CellBackward.self) { op, call, k in
      let dxw = call.outputs[0]
      let isHalf = dxw.dtype == .bfloat16 && op.forward.cell.takesHalf
      let rest = Array(call.inputs[op.inputCount...])
      // h and its gradient.
      let dy = op.extra.pick(3, rest)
      let outputs = [rest[0], dy].compactMap(\.self)
      let first = op.forward.keptPlaces.first ?? 0
      let kept =
        keptPlaces(op.forward).map { rest[1 + $0 - first] } + call.outputs[op.previousPlace...]
      guard isHalf || dxw.dtype == .float32,
        call.isFloat32(but: [call.inputs[0], dxw] + outputs + kept),
        outputs.allSatisfy({ $0.dtype == .float32 || op.forward.cell.takesHalf }),
        kept.allSatisfy({ $0.dtype == op.forward.kept }),
        op.forward.kept == .float32 || op.forward.cell.takesHalf
      else { return false }
      var a = ck_cell_scan_backward_args()
      a.shape = shape(op.forward, call.inputs)
      a.h0 = op.forward.optional.pick(3, call.inputs)?.constant
      a.c0 = op.forward.optional.pick(4, call.inputs)?.constant
      a.y = UnsafePointer(rest[0].floats)
      a.bf16_y = rest[0].dtype == .bfloat16
      a.bf16_kept = op.forward.kept == .bfloat16
      a.gates = UnsafePointer(op.extra.pick(1, rest)?.floats)
      a.cell_states = UnsafePointer(op.extra.pick(2, rest)?.floats)
      a.dy = UnsafePointer(dy?.floats)
      a.bf16_dy = dy?.dtype == .bfloat16
      a.dh_final = op.extra.pick(4, rest)?.constant
      a.dc_final = op.extra.pick(5, rest)?.constant
      a.n0 = op.forward.optional.pick(6, call.inputs)?.constant
      a.m0 = op.forward.optional.pick(7, call.inputs)?.constant
      a.normalizers = op.extra.pick(6, rest)?.constant
      a.stabilizers = op.extra.pick(7, rest)?.constant
      a.dn_final = op.extra.pick(8, rest)?.constant
      a.dn0 = op.place(6).flatMap { call.outputs[$0].f32 }
      a.dm0 = op.place(7).flatMap { call.outputs[$0].f32 }
      a.dxw = dxw.floats
      a.bf16_dxw = isHalf
      a.dh0 = op.place(3).flatMap { call.outputs[$0].f32 }
      a.dc0 = op.place(4).flatMap { call.outputs[$0].f32 }
      a.previous = call.outputs[op.previousPlace].floats
      switch op.forward.cell {
      case .gru: a.dn_recurrent = call.outputs[op.previousPlace + 1].floats
      case .gruOriginal: a.previous_gated = call.outputs[op.previousPlace + 1].f32
      case .elmanTanh, .elmanReLU, .lstm, .slstm: break
      }
      k.cellScan.backward(&a)
      return true
    },
  ]

  /// Where the outputs are that `kept` is about.
  private static func keptPlaces(_ op: CellForward) -> [Int] {
    op.cell.takesHalf ? [op.gatesPlace, op.cellsPlace].compactMap(\.self) : []
  }

  /// The gates but the last from one array, the last from another.
  private static func recurrentGradients(
    _ op: RecurrentGradients, _ call: KernelCall, _ k: KernelTables
  ) -> Bool {
    let (d, h) = (call.inputs[0], call.inputs[call.inputs.count - 1])
    guard let weight = call.outputs[0].f32, let bias = call.outputs[1].f32,
      call.inputs.allSatisfy({ $0.dtype == .float32 || $0.dtype == .bfloat16 })
    else { return false }
    let types = [d, call.inputs[1], h].compactMap(\.dtype.gemm)
    let (rows, all, hidden) = (h.shape.rowCount, d.shape.last, h.shape.last)
    var parts = [(d, 0, all)]
    if call.inputs.count > 2 {
      parts = [(d, 0, all - hidden), (call.inputs[1], all - hidden, hidden)]
    }
    let mark = ck_scratch_begin()
    defer { ck_scratch_end(mark) }
    let packed = parts.count > 1 ? packedRows(h, op.precision, k) : nil
    for (part, first, count) in parts {
      var a = ck_gemm_args()
      a.packed_b = packed
      (a.m, a.n, a.k, a.batch) = (count, hidden, rows, 1)
      (a.lda, a.ldb, a.ldc) = (part.shape.last, hidden, hidden)
      a.alpha = 1
      a.a = UnsafeRawPointer(part.hostAddress)
      a.b = UnsafeRawPointer(h.hostAddress)
      a.c = UnsafeMutableRawPointer(weight + first * hidden)
      (a.a_type, a.b_type) = (part.id == d.id ? types[0] : types[1], types[2])
      a.transpose_a = true
      a.compute = k.compute(op.precision)
      if k.gemm.makes_sums(&a) { a.a_sums = bias + first }
      k.gemm.gemm(&a)
      if a.a_sums != nil { continue }
      var sum = ck_reduce_args()
      (sum.rows, sum.columns, sum.x_row) = (rows, count, part.shape.last)
      sum.x = UnsafePointer(part.floats)
      sum.bf16 = part.dtype == .bfloat16
      sum.out = bias + first
      k.pointwise.sum_rows(&sum)
    }
    return true
  }

  private static func shape(_ op: CellForward, _ inputs: [Tensor]) -> ck_cell_scan_shape {
    let x = op.extents(inputs.map(\.spec))
    var s = ck_cell_scan_shape()
    s.cell =
      switch op.cell {
      case .elmanTanh: CK_CELL_RNN_TANH
      case .elmanReLU: CK_CELL_RNN_RELU
      case .gru: CK_CELL_GRU
      case .gruOriginal: CK_CELL_GRU_RESET_BEFORE
      case .lstm: CK_CELL_LSTM
      case .slstm: CK_CELL_SLSTM
      }
    s.precision = op.precision == .bfloat16 ? CK_CELL_BFLOAT16 : CK_CELL_FLOAT32
    (s.batch, s.tokens, s.heads, s.units) = (x.batch, x.tokens, x.heads, x.units)
    s.time_major = op.isTimeMajor
    s.recurrent = inputs[1].constant
    s.reset = op.optional.pick(5, inputs)?.resets
    return s
  }
}

extension CellScan.Cell {
  /// Whether kernels take pre-activations in bfloat16.
  fileprivate var takesHalf: Bool { self == .lstm || self == .gru }
}
