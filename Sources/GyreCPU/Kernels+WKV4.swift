import CGyreKernels
import GyreRecurrence
import GyreTensors

extension CPUKernel {
  static let wkv4: [CPUKernel] = [
    CPUKernel(WKV4Forward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = arguments(op, call.inputs)
      a.y = call.outputs[0].f32
      (a.num, a.den, a.max) = (call.outputs[1].f32, call.outputs[2].f32, call.outputs[3].f32)
      k.scan.wkv4_forward(&a)
      return true
    },
    CPUKernel(WKV4Backward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      let rest = Array(call.inputs[op.inputCount...])
      var a = arguments(op.forward, call.inputs)
      a.dy = op.extra.pick(0, rest)?.constant
      a.dnum = op.extra.pick(1, rest)?.constant
      a.dden = op.extra.pick(2, rest)?.constant
      func output(_ i: Int) -> UnsafeMutablePointer<Float>? {
        op.place(i).flatMap { call.outputs[$0].f32 }
      }
      (a.dw, a.du, a.dk, a.dv) = (output(0), output(1), output(2), output(3))
      (a.dnum0, a.dden0) = (output(4), output(5))
      k.scan.wkv4_backward(&a)
      return true
    },
  ]

  private static func arguments(_ op: WKV4Forward, _ inputs: [Tensor]) -> ck_wkv4_args {
    let shape = inputs[2].shape
    func input(_ i: Int) -> UnsafePointer<Float>? { op.optional.pick(i, inputs)?.constant }
    var a = ck_wkv4_args()
    (a.batch, a.tokens, a.width) = (shape[0], shape[1], shape[2])
    (a.w, a.u, a.k, a.v) = (input(0), input(1), input(2), input(3))
    (a.num0, a.den0, a.max0) = (input(4), input(5), input(6))
    a.reset = op.optional.pick(7, inputs)?.resets
    return a
  }
}
