import CGyreKernels
import GyreRecurrence
import GyreTensors

extension CPUKernel {
  static let mesa: [CPUKernel] = [
    CPUKernel(MesaForward.self) { op, call, k in
      guard call.isFloat32, !op.roundsToHalf else { return false }
      var a = arguments(op, call.inputs)
      (a.y, a.x) = (call.outputs[0].f32, call.outputs[1].f32)
      (a.H, a.G) = (call.outputs[2].f32, call.outputs[3].f32)
      k.mesa.forward(&a)
      return true
    },
    CPUKernel(MesaBackward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      let rest = Array(call.inputs[op.inputCount...])
      var a = arguments(op.forward, call.inputs)
      a.x = rest[0].f32
      a.dy = rest[1].constant
      a.dH = op.extra.pick(2, rest)?.constant
      a.dG = op.extra.pick(3, rest)?.constant
      func output(_ i: Int) -> UnsafeMutablePointer<Float>? {
        op.place(i).flatMap { call.outputs[$0].f32 }
      }
      (a.dq, a.dk, a.dv) = (output(0), output(1), output(2))
      (a.dlog_decay, a.dbeta, a.dridge) = (output(3), output(4), output(5))
      (a.dH0, a.dG0) = (output(6), output(7))
      k.mesa.backward(&a)
      return true
    },
  ]

  private static func arguments(_ op: MesaForward, _ inputs: [Tensor]) -> ck_mesa_args {
    let x = op.extents(inputs.map(\.spec))
    func input(_ i: Int) -> UnsafePointer<Float>? { op.optional.pick(i, inputs)?.constant }
    var a = ck_mesa_args()
    (a.batch, a.tokens, a.heads) = (x.batch, x.tokens, x.heads)
    (a.key_width, a.value_width, a.steps) = (x.keySize, x.valueSize, op.steps)
    a.epsilon = Float(op.epsilon)
    (a.q, a.k, a.v) = (input(0), input(1), input(2))
    (a.log_decay, a.beta, a.ridge) = (input(3), input(4), input(5))
    (a.H0, a.G0) = (input(6), input(7))
    a.reset = op.optional.pick(8, inputs)?.resets
    return a
  }
}
