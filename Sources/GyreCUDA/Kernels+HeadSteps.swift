import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// One token of a recurrence together with what surrounds it (`head_step.cu`).
extension CUDAKernel {
  static let headSteps: [CUDAKernel] = [
    headStep(GatedDeltaStep.self) { op, call, a in
      let i = call.inputs
      a.surrounds = Int32(GYRE_STEP_DELTA)
      a.strength = Float(op.strength)
      (a.key_epsilon, a.norm_epsilon) = (Float(GatedDeltaStep.keyEpsilon), Float(op.normEpsilon))
      a.gate_is_silu = op.gate == .silu ? 1 : 0
      (a.z, a.bias, a.log_rate) = (i[3].array, i[4].array, i[5].array)
      (a.gate, a.weight) = (i[6].array, i[7].array)
    },
    headStep(MatrixLSTMStep.self) { op, call, a in
      let i = call.inputs
      a.surrounds = Int32(GYRE_STEP_MLSTM)
      a.strength = Float(op.cap)
      (a.z, a.bias) = (i[3].array, i[4].array)
      (a.of.divisor, a.of.epsilon) = (Int32(GYRE_DIVISOR_EXPONENTIAL), Float(op.epsilon))
      (a.of.norm_state, a.of.max_state) = (i[6].array, i[7].array)
      (a.of.final_norm, a.of.final_max) = (call.outputs[2].array, call.outputs[3].array)
    },
    headStep(RWKV7Step.self) { op, call, a in
      let i = call.inputs
      a.surrounds = Int32(GYRE_STEP_RWKV7)
      (a.key_epsilon, a.norm_epsilon) = (Float(op.keyEpsilon), Float(op.normEpsilon))
      (a.rate, a.decay, a.gate) = (i[3].array, i[4].array, i[5].array)
      (a.key_scale, a.key_rate) = (i[6].array, i[7].array)
      (a.bias, a.decay_bias, a.bonus) = (i[8].array, i[9].array, i[10].array)
      (a.weight, a.norm_bias) = (i[11].array, i[12].array)
      if op.blends { (a.first, a.amount, a.amount_bias) = (i[14].array, i[15].array, i[16].array) }
    },
  ]

  /// The kernel of one op; `describe` adds what surrounds its recurrence.
  private static func headStep<O: HeadStepOp>(
    _ type: O.Type,
    _ describe: @escaping @Sendable (O, KernelCall, inout gyre_head_step_args) -> Void
  ) -> CUDAKernel {
    CUDAKernel(type) { op, call, launch in
      guard call.isAligned, let step = HeadStep(op, call.inputs, launch.device) else {
        return false
      }
      var a = arguments(op, call)
      describe(op, call, &a)
      step.run(a, launch)
      return true
    }
  }

  private static func arguments(
    _ op: some HeadStepOp, _ call: KernelCall
  ) -> gyre_head_step_args {
    let i = call.inputs
    let x = op.extents(i.map(\.spec))
    var a = gyre_head_step_args()
    (a.of.batch, a.of.tokens, a.of.heads, a.of.key_heads) = (x.batch, 1, x.heads, x.keyHeads)
    (a.of.key_size, a.of.value_size) = (x.keySize, x.valueSize)
    a.of.scale = Float(op.scale)
    (a.of.q, a.of.k, a.of.v) = (i[0].array, i[1].array, i[2].array)
    a.of.state = i[op.stateInput].array
    (a.of.y, a.of.final_state) = (call.outputs[0].array, call.outputs[1].array)
    return a
  }
}
