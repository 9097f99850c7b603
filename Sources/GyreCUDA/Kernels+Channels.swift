import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// Recurrences of single channels that are no plain linear scans.
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
}
