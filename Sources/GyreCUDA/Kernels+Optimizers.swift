import CGyreCUDASources
import GyreTensors

extension CUDAKernel {
  private static let momentum = CUDAFunction("optimizer", "momentum")

  /// AdamW is not here: its steps are gathered by the device.
  static let optimizers: [CUDAKernel] = [
    CUDAKernel(MomentumStep.self) { op, call, launch in
      guard call.inputs[2].dtype == .float32, call.inputs[3].dtype == .float32 else { return false }
      var a = gyre_momentum_args()
      a.count = call.inputs[0].elementCount
      a.gradient = call.inputs[0].array
      a.factor = call.inputs[1].address
      (a.p_in, a.m_in) = (call.inputs[2].address, call.inputs[3].address)
      (a.p, a.m) = (call.outputs[0].address, call.outputs[1].address)
      a.learning_rate = Float(op.learningRate)
      a.momentum = Float(op.momentum)
      a.weight_decay = Float(op.weightDecay)
      a.nesterov = op.nesterov ? 1 : 0
      launch.run(momentum, over: a.count, each: 4, a)
      return true
    }
  ]
}
