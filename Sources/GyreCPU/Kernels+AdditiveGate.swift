import CGyreKernels
import GyreRecurrence
import GyreTensors

extension CPUKernel {
  static let additiveGates: [CPUKernel] = [
    CPUKernel(AdditiveGateForward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = arguments(call.inputs[0].shape)
      a.x = call.inputs[0].constant
      a.z0 = op.optional.pick(1, call.inputs)?.constant
      a.reset = op.optional.pick(2, call.inputs)?.resets
      (a.w, a.g, a.z_final) = (call.outputs[0].f32, call.outputs[1].f32, call.outputs[2].f32)
      k.scan.additive_gate_forward(&a)
      return true
    },
    CPUKernel(AdditiveGateBackward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = arguments(call.inputs[0].shape)
      (a.w, a.g) = (call.inputs[0].f32, call.inputs[1].f32)
      (a.dw, a.dg) = (call.inputs[2].constant, call.inputs[3].constant)
      a.dz_final = op.hasFinal ? call.inputs[4].constant : nil
      a.dx = call.outputs[0].f32
      a.dz0 = op.hasState ? call.outputs[1].f32 : nil
      k.scan.additive_gate_backward(&a)
      return true
    },
  ]

  private static func arguments(_ shape: Shape) -> ck_additive_gate_args {
    var a = ck_additive_gate_args()
    (a.batch, a.tokens, a.width) = (shape[0], shape[1], shape[2])
    return a
  }
}
