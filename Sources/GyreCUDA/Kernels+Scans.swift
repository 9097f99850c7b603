import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// One token of minGRU.
enum MinGRUStep {
  static let half = CUDAFunction("min_gru", "min_gru_step_half")
  static let any = CUDAFunction("min_gru", "min_gru_step")

  static func suits(_ op: MinGRUForward, _ inputs: [Tensor]) -> Bool {
    let shape = inputs[0].shape
    return shape[1] == 1 && shape[2] % 4 == 0
      && inputs.prefix(2).allSatisfy { $0.address % 16 == 0 }
      && (op.optional.pick(2, inputs).map { $0.dtype == .float32 && $0.address % 16 == 0 } ?? true)
  }

  /// - Parameter pitch: elements between rows of what it reads.
  static func run(_ a: inout gyre_scan_args, pitch: Int, _ launch: CUDALaunch) {
    a.pitch = pitch
    let isHalf = [a.a, a.u, a.h].allSatisfy { $0.dtype == DType.bfloat16.cuda }
    launch.run(isHalf ? half : any, over: a.batch * a.width, each: 4, a)
  }
}

extension CUDAKernel {
  private static let diagonalForward = CUDAFunction("diagonal_scan_base", "diagonal_scan_forward")
  private static let diagonalBackward = CUDAFunction("diagonal_scan_base", "diagonal_scan_backward")
  private static let minGRUForward = CUDAFunction("min_gru", "min_gru_forward")
  private static let minGRUBackward = CUDAFunction("min_gru", "min_gru_backward")
  private static let complexForward = CUDAFunction("complex_scan", "complex_scan_forward")
  private static let complexBackward = CUDAFunction("complex_scan", "complex_scan_backward")
  private static let selectiveForward = CUDAFunction("selective_scan", "selective_scan_forward")
  private static let selectiveBackward = CUDAFunction("selective_scan", "selective_scan_backward")

  static let scans: [CUDAKernel] = [
    CUDAKernel(DiagonalScanForward.self) { op, call, launch in
      if let tiles = TiledScan(op, call.inputs) {
        tiles.run(h: call.outputs[0], final: call.outputs[1], launch)
        return true
      }
      var a = arguments(op, call.inputs, call.inputs[1].shape)
      (a.h, a.h_final) = (call.outputs[0].array, call.outputs[1].array)
      launch.run(diagonalForward, channels: a.batch * a.width, a)
      return true
    },
    CUDAKernel(DiagonalScanBackward.self) { op, call, launch in
      let rest = Array(call.inputs[op.inputCount(of: call.inputs.count)...])
      if let dh = op.extra.pick(1, rest), dh.dtype == call.inputs[1].dtype,
        let tiles = TiledScan(op.forward, call.inputs)
      {
        tiles.differentiate(
          h: rest[0], dh: dh, dFinal: op.extra.pick(2, rest), outputs: call.outputs, launch)
        return true
      }
      var a = arguments(op.forward, call.inputs, call.inputs[1].shape)
      setGradients(op, call, &a)
      let da = a.da
      if op.forward.isConstant { a.da = .floats(launch.floats(a.batch * a.width)) }
      launch.run(diagonalBackward, channels: a.batch * a.width, a)
      if op.forward.isConstant {
        launch.sumColumns(a.da, rows: a.batch, columns: a.width, into: da)
      }
      return true
    },
    CUDAKernel(MinGRUForward.self) { op, call, launch in
      var a = arguments(op, call.inputs)
      (a.h, a.h_final) = (call.outputs[0].array, call.outputs[1].array)
      if MinGRUStep.suits(op, call.inputs), call.outputs.allSatisfy({ $0.address % 16 == 0 }) {
        MinGRUStep.run(&a, pitch: a.width, launch)
        return true
      }
      launch.run(minGRUForward, channels: a.batch * a.width, a)
      return true
    },
    CUDAKernel(MinGRUToken.self) { op, call, launch in
      let (both, h) = (call.inputs[0], call.inputs[1])
      var a = gyre_scan_args()
      (a.batch, a.tokens, a.width) = (h.shape[0], 1, h.shape[1])
      guard call.isAligned, a.width % 8 == 0 else { return false }
      a.a = both.array
      a.u = gyre_array(both.address + UInt64(a.width * both.dtype.byteCount), both.dtype)
      (a.h0, a.h, a.h_final) = (h.array, call.outputs[0].array, call.outputs[1].array)
      MinGRUStep.run(&a, pitch: 2 * a.width, launch)
      return true
    },
    CUDAKernel(MinGRUBackward.self) { op, call, launch in
      var a = arguments(op.forward, call.inputs)
      setGradients(op.scan, call, &a)
      launch.run(minGRUBackward, channels: a.batch * a.width, a)
      return true
    },
    CUDAKernel(ComplexScanForward.self) { op, call, launch in
      var a = arguments(op, call.inputs)
      a.h = (call.outputs[0].array, call.outputs[1].array)
      a.h_final = (call.outputs[2].array, call.outputs[3].array)
      launch.run(complexForward, channels: a.batch * a.width, a)
      return true
    },
    CUDAKernel(ComplexScanBackward.self) { op, call, launch in
      let rest = Array(call.inputs[op.inputCount...])
      var a = arguments(op.forward, call.inputs)
      a.h = (rest[0].array, rest[1].array)
      a.dh = (rest[2].array, rest[3].array)
      if op.hasFinal { a.dh_final = (rest[4].array, rest[5].array) }
      let output = { (i: Int) in op.place(i).map { call.outputs[$0] }.array }
      a.da = (output(0), output(1))
      a.du = (output(2), output(3))
      a.dh0 = (output(4), output(5))
      let isConstant = op.forward.isConstant
      if isConstant {
        a.da = (
          .floats(launch.floats(a.batch * a.width)), .floats(launch.floats(a.batch * a.width))
        )
      }
      launch.run(complexBackward, channels: a.batch * a.width, a)
      if isConstant {
        launch.sumColumns(a.da.0, rows: a.batch, columns: a.width, into: output(0))
        launch.sumColumns(a.da.1, rows: a.batch, columns: a.width, into: output(1))
      }
      return true
    },
    CUDAKernel(SelectiveScanForward.self) { op, call, launch in
      var a = arguments(op, call.inputs)
      guard a.states <= Int(GYRE_SELECTIVE_STATES) else { return false }
      (a.y, a.h_final) = (call.outputs[0].array, call.outputs[1].array)
      if op.keepsStates { a.kept = call.outputs[2].array }
      launch.run(
        selectiveForward, grid: ((a.width + 127) / 128, a.batch, 1), threads: (128, 1), a)
      return true
    },
    CUDAKernel(SelectiveScanBackward.self) { op, call, launch in
      selectiveGradients(op, call, launch)
    },
  ]

  private static func arguments(
    _ op: DiagonalScanForward, _ inputs: [Tensor], _ shape: Shape
  ) -> gyre_scan_args {
    var a = gyre_scan_args()
    (a.batch, a.tokens, a.width) = (shape[0], shape[1], shape[2])
    (a.is_constant, a.is_log) = (op.isConstant ? 1 : 0, op.decayIsLog ? 1 : 0)
    (a.a, a.u) = (inputs[0].array, inputs[1].array)
    a.h0 = op.optional.pick(2, inputs).array
    a.reset = op.optional.pick(3, inputs).address
    return a
  }

  private static func arguments(_ op: MinGRUForward, _ inputs: [Tensor]) -> gyre_scan_args {
    let shape = inputs[0].shape
    var a = gyre_scan_args()
    (a.batch, a.tokens, a.width) = (shape[0], shape[1], shape[2])
    (a.a, a.u) = (inputs[0].array, inputs[1].array)
    a.h0 = op.optional.pick(2, inputs).array
    a.reset = op.optional.pick(3, inputs).address
    return a
  }

  /// What a backward scan reads after the forward's inputs, and what it writes.
  private static func setGradients(
    _ op: DiagonalScanBackward, _ call: KernelCall, _ a: inout gyre_scan_args
  ) {
    let rest = Array(call.inputs[op.inputCount(of: call.inputs.count)...])
    a.h = rest[0].array
    a.dh = op.extra.pick(1, rest).array
    a.dh_final = op.extra.pick(2, rest).array
    (a.da, a.du) = (call.outputs[0].array, call.outputs[1].array)
    if op.forward.optional.has(2) { a.dh0 = call.outputs[2].array }
  }

  private static func arguments(
    _ op: ComplexScanForward, _ inputs: [Tensor]
  ) -> gyre_complex_scan_args {
    let shape = inputs[2].shape
    var a = gyre_complex_scan_args()
    (a.batch, a.tokens, a.width) = (shape[0], shape[1], shape[2])
    a.is_constant = op.isConstant ? 1 : 0
    a.a = (inputs[0].array, inputs[1].array)
    a.u = (inputs[2].array, inputs[3].array)
    a.h0 = (op.optional.pick(4, inputs).array, op.optional.pick(5, inputs).array)
    a.reset = op.optional.pick(6, inputs).address
    return a
  }

  private static func arguments(
    _ op: SelectiveScanForward, _ inputs: [Tensor]
  ) -> gyre_selective_scan_args {
    let shape = inputs[0].shape
    var a = gyre_selective_scan_args()
    (a.batch, a.tokens, a.width) = (shape[0], shape[1], shape[2])
    a.states = inputs[2].shape[1]
    (a.x, a.step, a.A) = (inputs[0].array, inputs[1].array, inputs[2].array)
    (a.B, a.C) = (inputs[3].array, inputs[4].array)
    a.skip = op.optional.pick(5, inputs).array
    a.h0 = op.optional.pick(6, inputs).array
    a.reset = op.optional.pick(7, inputs).address
    return a
  }

  private static func selectiveGradients(
    _ op: SelectiveScanBackward, _ call: KernelCall, _ launch: CUDALaunch
  ) -> Bool {
    let rest = Array(call.inputs[op.inputCount...])
    var a = arguments(op.forward, call.inputs)
    guard a.states <= Int(GYRE_SELECTIVE_STATES) else { return false }
    a.kept = rest[0].array
    a.dy = rest[1].array
    if op.hasFinal { a.dh_final = rest[2].array }
    let output = { (i: Int) in op.place(i).map { call.outputs[$0] }.array }
    (a.dx, a.dstep, a.dh0) = (output(0), output(1), output(6))
    let blocks = (a.width + 127) / 128
    let small = a.batch * a.tokens * a.states
    a.dA = launch.floats(a.batch * a.width * a.states)
    (a.dB, a.dC) = (launch.floats(blocks * small), launch.floats(blocks * small))
    if op.forward.optional.has(5) { a.dskip = launch.floats(a.batch * a.width) }
    launch.run(selectiveBackward, grid: (blocks, a.batch, 1), threads: (128, 1), a)
    launch.sumColumns(
      .floats(a.dA), rows: a.batch, columns: a.width * a.states, into: output(2))
    launch.sumColumns(.floats(a.dB), rows: blocks, columns: small, into: output(3))
    launch.sumColumns(.floats(a.dC), rows: blocks, columns: small, into: output(4))
    if a.dskip != 0 {
      launch.sumColumns(.floats(a.dskip), rows: a.batch, columns: a.width, into: output(5))
    }
    return true
  }
}

extension CUDALaunch {
  /// Queues a kernel with a thread a channel; small blocks spread few channels over the card.
  func run<Arguments>(_ function: CUDAFunction, channels: Int, _ arguments: Arguments) {
    run(function, grid: ((channels + 63) / 64, 1, 1), threads: (64, 1), arguments)
  }
}
