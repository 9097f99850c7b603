import CGyreKernels
import GyreRecurrence
import GyreTensors

extension CPUKernel {
  static let deltaRule: [CPUKernel] = [
    CPUKernel(DeltaRuleForward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = ck_delta_rule_forward_args()
      a.inputs = inputs(op, call.inputs)
      (a.form, a.chunk_size) = op.form.deltaRule
      a.y = call.outputs[0].f32
      a.final_state = call.outputs[1].f32
      if op.keepsChunks {
        a.saved_states = call.outputs[2].f32
        a.saved_writes = call.outputs[3].f32
      }
      k.deltaRule.forward(&a)
      return true
    },
    CPUKernel(DeltaRuleBackward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      let rest = Array(call.inputs[op.inputCount...])
      var a = ck_delta_rule_backward_args()
      a.inputs = inputs(op.forward, call.inputs)
      (a.form, a.chunk_size) = op.forward.form.deltaRule
      a.saved_states = op.extra.pick(0, rest)?.constant
      a.saved_writes = op.extra.pick(1, rest)?.constant
      a.dy = op.extra.pick(2, rest)?.constant
      a.d_final_state = op.extra.pick(3, rest)?.constant
      func output(_ i: Int) -> UnsafeMutablePointer<Float>? {
        op.place(i).flatMap { call.outputs[$0].f32 }
      }
      (a.dq, a.dk, a.dv, a.dg) = (output(0), output(1), output(2), output(3))
      (a.dbeta, a.da, a.db, a.d_initial_state) = (output(4), output(5), output(6), output(7))
      k.deltaRule.backward(&a)
      return true
    },
  ]

  private static func inputs(_ op: DeltaRuleForward, _ tensors: [Tensor]) -> ck_delta_rule_inputs {
    let x = op.extents(tensors.map(\.spec))
    var a = ck_delta_rule_inputs()
    a.kind = op.optional.has(4) ? CK_DELTA_RULE_BETA : CK_DELTA_RULE_DPLR
    (a.batch, a.tokens, a.heads, a.key_heads) = (x.batch, x.tokens, x.heads, x.keyHeads)
    (a.key_size, a.value_size) = (x.keySize, x.valueSize)
    a.scale = Float(op.scale)
    if let g = op.optional.pick(3, tensors) { a.gate_size = g.rank == 3 ? 1 : x.keySize }
    func input(_ i: Int) -> UnsafePointer<Float>? { op.optional.pick(i, tensors)?.constant }
    (a.q, a.k, a.v, a.g) = (input(0), input(1), input(2), input(3))
    (a.beta, a.a, a.b, a.initial_state) = (input(4), input(5), input(6), input(7))
    a.reset = op.optional.pick(8, tensors)?.resets
    return a
  }
}

extension SequenceForm {
  fileprivate var deltaRule: (ck_delta_rule_form, Int) {
    switch self {
    case .recurrent: (CK_DELTA_RULE_RECURRENT, 0)
    case .chunkwise(let size): (CK_DELTA_RULE_CHUNKWISE, size)
    case .parallel: (CK_DELTA_RULE_PARALLEL, 0)
    }
  }
}
