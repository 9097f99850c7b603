import CGyreKernels
import GyreRecurrence
import GyreTensors

extension CPUKernel {
  static let selectiveScans: [CPUKernel] = [
    CPUKernel(ComplexScanForward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = arguments(op, call.inputs)
      (a.u, a.u_im) = (call.inputs[2].constant, call.inputs[3].constant)
      (a.h, a.h_im) = (call.outputs[0].f32, call.outputs[1].f32)
      (a.h_final, a.h_final_im) = (call.outputs[2].f32, call.outputs[3].f32)
      k.scan.complex_forward(&a)
      return true
    },
    CPUKernel(ComplexScanBackward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      let rest = Array(call.inputs[op.inputCount...])
      var a = arguments(op.forward, call.inputs)
      (a.h, a.h_im) = (rest[0].f32, rest[1].f32)
      (a.dh, a.dh_im) = (rest[2].constant, rest[3].constant)
      if op.hasFinal { (a.dh_final, a.dh_final_im) = (rest[4].constant, rest[5].constant) }
      func output(_ i: Int) -> UnsafeMutablePointer<Float>? {
        op.place(i).flatMap { call.outputs[$0].f32 }
      }
      (a.da, a.da_im, a.du, a.du_im) = (output(0), output(1), output(2), output(3))
      (a.dh0, a.dh0_im) = (output(4), output(5))
      k.scan.complex_backward(&a)
      return true
    },
    CPUKernel(SelectiveScanForward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = arguments(op, call.inputs)
      a.y = call.outputs[0].f32
      a.h_final = call.outputs[1].f32
      if op.keepsStates { a.checkpoints = call.outputs[2].f32 }
      k.scan.selective_forward(&a)
      return true
    },
    CPUKernel(SelectiveScanBackward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      let rest = Array(call.inputs[op.inputCount...])
      var a = arguments(op.forward, call.inputs)
      a.checkpoints = rest[0].f32
      a.dy = rest[1].constant
      if op.hasFinal { a.dh_final = rest[2].constant }
      func output(_ i: Int) -> UnsafeMutablePointer<Float>? {
        op.place(i).flatMap { call.outputs[$0].f32 }
      }
      (a.dx, a.ddt, a.dA, a.dB) = (output(0), output(1), output(2), output(3))
      (a.dC, a.dskip, a.dh0) = (output(4), output(5), output(6))
      k.scan.selective_backward(&a)
      return true
    },
  ]

  private static func arguments(
    _ op: ComplexScanForward, _ inputs: [Tensor]
  ) -> ck_diagonal_scan_args {
    let shape = inputs[2].shape
    var a = ck_diagonal_scan_args()
    (a.batch, a.tokens, a.width) = (shape[0], shape[1], shape[2])
    (a.form, a.chunk) = op.form.scan
    a.decay = op.isConstant ? CK_DECAY_CONSTANT : CK_DECAY_VALUE
    (a.a, a.a_im) = (inputs[0].constant, inputs[1].constant)
    a.h0 = op.optional.pick(4, inputs)?.constant
    a.h0_im = op.optional.pick(5, inputs)?.constant
    a.reset = op.optional.pick(6, inputs)?.resets
    return a
  }

  private static func arguments(
    _ op: SelectiveScanForward, _ inputs: [Tensor]
  ) -> ck_selective_scan_args {
    let shape = inputs[0].shape
    var a = ck_selective_scan_args()
    (a.batch, a.tokens, a.width) = (shape[0], shape[1], shape[2])
    a.states = inputs[2].shape[1]
    (a.form, a.chunk) = op.form.scan
    (a.x, a.dt, a.A) = (inputs[0].constant, inputs[1].constant, inputs[2].constant)
    (a.B, a.C) = (inputs[3].constant, inputs[4].constant)
    a.skip = op.optional.pick(5, inputs)?.constant
    a.h0 = op.optional.pick(6, inputs)?.constant
    a.reset = op.optional.pick(7, inputs)?.resets
    return a
  }
}
