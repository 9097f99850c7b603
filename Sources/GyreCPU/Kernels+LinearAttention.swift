import CGyreKernels
import GyreRecurrence
import GyreTensors

extension CPUKernel {
  static let linearAttention: [CPUKernel] = [
    CPUKernel(LinearAttentionForward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = ck_linear_attention_forward_args()
      a.problem = problem(op, call.inputs)
      a.y = call.outputs[0].f32
      a.final_state = call.outputs[1].f32
      if call.outputs.count > 2 { a.final_norm_state = call.outputs[2].f32 }
      if call.outputs.count > 3 { a.final_max_state = call.outputs[3].f32 }
      k.linearAttention.forward(&a)
      return true
    },
    CPUKernel(LinearAttentionBackward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      let rest = Array(call.inputs[op.inputCount...])
      var a = ck_linear_attention_backward_args()
      a.problem = problem(op.forward, call.inputs)
      a.y = rest[0].constant
      a.dy = rest[1].constant
      a.d_final_state = op.extra.pick(2, rest)?.constant
      a.d_final_norm_state = op.extra.pick(3, rest)?.constant
      func output(_ i: Int) -> UnsafeMutablePointer<Float>? {
        op.place(i).flatMap { call.outputs[$0].f32 }
      }
      (a.dq, a.dk, a.dv) = (output(0), output(1), output(2))
      (a.dlog_decay, a.dinput_gate, a.dbonus) = (output(3), output(4), output(5))
      (a.dstate, a.dnorm_state) = (output(6), output(7))
      k.linearAttention.backward(&a)
      return true
    },
  ]

  private static func problem(
    _ op: LinearAttentionForward, _ inputs: [Tensor]
  ) -> ck_linear_attention_problem {
    let x = op.extents(inputs.map(\.spec))
    var p = ck_linear_attention_problem()
    (p.batch, p.time, p.heads, p.key_heads) = (x.batch, x.tokens, x.heads, x.keyHeads)
    (p.key_width, p.value_width) = (x.keySize, x.valueSize)
    switch op.form {
    case .recurrent: p.form = CK_LINEAR_ATTENTION_RECURRENT
    case .chunkwise(let size):
      p.form = CK_LINEAR_ATTENTION_CHUNKWISE
      p.chunk = SequenceForm.chunkwise == op.form ? 0 : size  // 0: the kernel's best
    case .parallel: p.form = CK_LINEAR_ATTENTION_PARALLEL
    }
    p.decay =
      switch op.decay {
      case .none: CK_LINEAR_ATTENTION_DECAY_NONE
      case .constant: CK_LINEAR_ATTENTION_DECAY_HEAD
      case .scalar: CK_LINEAR_ATTENTION_DECAY_SCALAR
      case .vector: CK_LINEAR_ATTENTION_DECAY_VECTOR
      }
    switch op.normalizer {
    case .none: p.normaliser = CK_LINEAR_ATTENTION_NORMALISER_NONE
    case .sum(let epsilon):
      p.normaliser = CK_LINEAR_ATTENTION_NORMALISER_SUM
      p.epsilon = Float(epsilon)
    case .floor(let floor, let epsilon):
      p.normaliser = CK_LINEAR_ATTENTION_NORMALISER_FLOOR
      (p.floor, p.epsilon) = (Float(floor), Float(epsilon))
    case .exponential(let epsilon):
      p.normaliser = CK_LINEAR_ATTENTION_NORMALISER_EXPONENTIAL
      p.epsilon = Float(epsilon)
    }
    p.scale = Float(op.scale)
    p.bf16 = op.precision == .bfloat16
    func input(_ i: Int) -> UnsafePointer<Float>? { op.optional.pick(i, inputs)?.constant }
    (p.q, p.k, p.v) = (input(0), input(1), input(2))
    (p.log_decay, p.input_gate, p.bonus) = (input(3), input(4), input(5))
    (p.state, p.norm_state, p.max_state) = (input(6), input(7), input(8))
    p.reset = op.optional.pick(9, inputs)?.resets
    return p
  }
}
