import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// Recurrences of single channels, or of few together, that are no plain linear scans.
extension CUDAKernel {
  private static let wkvForward = CUDAFunction("channel_scans", "wkv4_forward")
  private static let wkvBackward = CUDAFunction("channel_scans", "wkv4_backward")
  private static let gateForward = CUDAFunction("channel_scans", "additive_gate_forward")
  private static let gateBackward = CUDAFunction("channel_scans", "additive_gate_backward")

  static let channels: [CUDAKernel] = [
    CUDAKernel(WKV4Forward.self) { op, call, launch in
      var a = arguments(op, call.inputs)
      a.y = call.outputs[0].array
      (a.num, a.den) = (call.outputs[1].array, call.outputs[2].array)
      a.max = call.outputs[3].array
      launch.run(wkvForward, channels: a.batch * a.channels, a)
      return true
    },
    CUDAKernel(WKV4Backward.self) { op, call, launch in
      var a = arguments(op.forward, call.inputs)
      let (states, rest) = (a.batch * a.channels, Array(call.inputs[op.inputCount...]))
      a.sums = launch.floats(3 * states * a.tokens)
      a.last_max = launch.floats(states)
      launch.run(wkvForward, channels: states, a)
      a.dy = op.extra.pick(0, rest).array
      (a.dnum, a.dden) = (op.extra.pick(1, rest).array, op.extra.pick(2, rest).array)
      func output(_ i: Int) -> gyre_array { op.place(i).map { call.outputs[$0] }.array }
      (a.dk, a.dv) = (output(2), output(3))
      (a.dnum0, a.dden0) = (output(4), output(5))
      (a.dw, a.du) = (launch.floats(states), launch.floats(states))
      launch.run(wkvBackward, channels: states, a)
      for (sum, i) in [(a.dw, 0), (a.du, 1)] {
        launch.sumColumns(.floats(sum), rows: a.batch, columns: a.channels, into: output(i))
      }
      return true
    },
    CUDAKernel(AdditiveGateForward.self) { op, call, launch in
      var a = gyre_additive_gate_args()
      let s = call.inputs[0].shape
      (a.batch, a.tokens, a.channels) = (s[0], s[1], s[2])
      a.x = call.inputs[0].array
      a.z0 = op.optional.pick(1, call.inputs).array
      a.reset = op.optional.pick(2, call.inputs).address
      (a.w, a.g) = (call.outputs[0].array, call.outputs[1].array)
      a.z = call.outputs[2].array
      launch.run(gateForward, channels: s[0] * s[2], a)
      return true
    },
    CUDAKernel(AdditiveGateBackward.self) { op, call, launch in
      var a = gyre_additive_gate_args()
      let s = call.inputs[0].shape
      (a.batch, a.tokens, a.channels) = (s[0], s[1], s[2])
      (a.w, a.g) = (call.inputs[0].array, call.inputs[1].array)
      (a.dw, a.dg) = (call.inputs[2].array, call.inputs[3].array)
      if op.hasFinal { a.dz = call.inputs[4].array }
      a.dx = call.outputs[0].array
      if op.hasState { a.dz0 = call.outputs[1].array }
      launch.run(gateBackward, channels: s[0] * s[2], a)
      return true
    },
    CUDAKernel(BlockScanForward.self) { op, call, launch in
      var a = arguments(op, call.inputs)
      guard a.tokens > 0 else { return false }
      (a.h, a.h_final) = (call.outputs[0].array, call.outputs[1].array)
      return run("forward", a, [call.inputs[0], call.inputs[1], call.outputs[0]], launch)
    },
    CUDAKernel(BlockScanBackward.self) { op, call, launch in
      var a = arguments(op.forward, call.inputs)
      guard a.tokens > 0 else { return false }
      let rest = Array(call.inputs[op.inputCount...])
      (a.h, a.dh) = (rest[0].array, rest[1].array)
      if op.hasFinal { a.dh_final = rest[2].array }
      (a.dA, a.du) = (call.outputs[0].array, call.outputs[1].array)
      if op.forward.optional.has(2) { a.dh0 = call.outputs[2].array }
      let sequences = [call.inputs[0], rest[0], rest[1], call.outputs[0], call.outputs[1]]
      return run("backward", a, sequences, launch)
    },
  ]

  private static func arguments(_ op: WKV4Forward, _ inputs: [Tensor]) -> gyre_wkv4_args {
    var a = gyre_wkv4_args()
    let s = inputs[2].shape
    (a.batch, a.tokens, a.channels) = (s[0], s[1], s[2])
    (a.w, a.u) = (inputs[0].array, inputs[1].array)
    (a.k, a.v) = (inputs[2].array, inputs[3].array)
    (a.num0, a.den0) = (op.optional.pick(4, inputs).array, op.optional.pick(5, inputs).array)
    a.max0 = op.optional.pick(6, inputs).array
    a.reset = op.optional.pick(7, inputs).address
    return a
  }

  private static func arguments(
    _ op: BlockScanForward, _ inputs: [Tensor]
  ) -> gyre_block_scan_args {
    var a = gyre_block_scan_args()
    let s = inputs[1].shape
    (a.batch, a.tokens, a.blocks, a.size) = (s[0], s[1], s[2], s[3])
    (a.A, a.u, a.h0) = (inputs[0].array, inputs[1].array, op.optional.pick(2, inputs).array)
    a.reset = op.optional.pick(3, inputs).address
    return a
  }

  /// Lanes of a warp for a block of up to 32 channels, by the type of the sequences; larger ones take a block
  /// of threads, whose shared memory holds two vectors. False where it does not.
  private static func run(
    _ name: String, _ a: gyre_block_scan_args, _ sequences: [Tensor], _ launch: CUDALaunch
  ) -> Bool {
    let blocks = a.batch * a.blocks
    guard let step = [4, 8, 16, 32].firstIndex(where: { a.size <= $0 }) else {
      let shared = 8 * a.size
      guard shared <= launch.device.sharedPerBlock else { return false }
      let function = CUDAFunction.shared("block_scan_large", "block_scan_\(name)_large", [])
      launch.run(function, grid: (blocks, 1, 1), shared: shared, a)
      return true
    }
    let types = Set(sequences.map(\.dtype))
    let type = types == [.float32] ? 0 : types == [.bfloat16] ? 1 : 2
    let part = a.size == 4 << step ? "" : "_part"
    let each = step == 0 ? 2 : 1
    launch.run(
      CUDAFunction.shared(
        "block_scan", "block_scan_\(name)\(part)", ["-DKIND=\(4 * type + step)"]),
      grid: ((blocks + each - 1) / each, 1, 1), threads: (32, 1), a)
    return true
  }
}
