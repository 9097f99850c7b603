import CGyreKernels
import GyreTensors

extension CPUKernel {
  static let optimizers: [CPUKernel] = [
    CPUKernel(AdamWStep.self) { op, call, k in
      var op = op
      if call.inputs.count == 6 {
        guard let control = StepControl(call.inputs[5]) else { return false }
        guard control.isTaken else { return updatesInPlace(call, k) }
        op = op.controlled(by: control)
      }
      guard isFloat32(call, tensors: 5), let factor = call.inputs[1].f32 else { return false }
      var a = ck_adamw_args()
      a.count = call.inputs[0].elementCount
      a.learning_rate = Float(op.learningRate)
      a.beta1 = Float(op.beta1)
      a.beta2 = Float(op.beta2)
      a.eps = Float(op.epsilon)
      a.weight_decay = Float(op.weightDecay)
      a.bias1 = Float(op.correction1)
      a.bias2 = Float(op.correction2)
      a.gradient_scale = factor[0]
      a.gradient = UnsafePointer(call.inputs[0].f32)
      guard updatesInPlace(call, k) else { return false }
      a.parameter = call.outputs[0].f32
      a.m = call.outputs[1].f32
      a.v = call.outputs[2].f32
      k.optimizer.adamw(&a)
      return true
    },
    CPUKernel(MomentumStep.self) { op, call, k in
      var op = op
      if call.inputs.count == 5 {
        guard let control = StepControl(call.inputs[4]) else { return false }
        guard control.isTaken else { return updatesInPlace(call, k) }
        op = op.controlled(by: control)
      }
      guard isFloat32(call, tensors: 4), let factor = call.inputs[1].f32 else { return false }
      var a = ck_sgd_args()
      a.count = call.inputs[0].elementCount
      a.learning_rate = Float(op.learningRate)
      a.momentum = Float(op.momentum)
      a.weight_decay = Float(op.weightDecay)
      a.gradient_scale = factor[0]
      a.nesterov = op.nesterov
      a.gradient = UnsafePointer(call.inputs[0].f32)
      guard updatesInPlace(call, k) else { return false }
      a.parameter = call.outputs[0].f32
      a.m = call.outputs[1].f32
      k.optimizer.sgd(&a)
      return true
    },
  ]

  /// Whether all is float32 but the control, which follows the other inputs.
  private static func isFloat32(_ call: KernelCall, tensors: Int) -> Bool {
    (call.inputs.prefix(tensors) + call.outputs).allSatisfy { $0.dtype == .float32 }
  }

  /// The kernels update in place: where outputs are tensors of their own, copies the inputs first.
  private static func updatesInPlace(_ call: KernelCall, _ k: KernelTables) -> Bool {
    for (input, output) in zip(call.inputs.dropFirst(2), call.outputs) {
      guard let x = input.f32, let y = output.f32 else { return false }
      if x == y { continue }
      var copy = ck_axpby_args()
      copy.count = input.elementCount
      copy.alpha = 1
      copy.x = UnsafePointer(x)
      copy.y = y
      k.pointwise.axpby(&copy)
    }
    return true
  }
}
