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
      setGradients(&a, op, call.outputs)
      k.linearAttention.backward(&a)
      return true
    },
    CPUKernel(ScaledLinearAttention.self) { op, call, k in
      let arrays = call.inputs[..<3] + call.outputs[..<1]
      guard let p = stored(Array(arrays), call, problem(op.attention, call.inputs), k) else {
        return false
      }
      var a = ck_linear_attention_forward_args()
      a.y = call.outputs[0].floats
      a.final_state = call.outputs[1].f32
      let values = [call.inputs[2]] + call.inputs.suffix(2)
      scaled(values, p, k) { problem, scales in
        a.problem = problem
        k.linearAttention.forward(&a)
        guard let scales else { return }
        var sum = ck_binary_args()
        sum.op = CK_BINARY_ADD
        (sum.rows, sum.columns) = (1, call.outputs[0].elementCount)
        (sum.a, sum.b, sum.y) = (UnsafePointer(a.y), UnsafePointer(scales.z), a.y)
        (sum.a_column, sum.b_column) = (1, 1)
        (sum.a_row, sum.b_row, sum.y_row) = (sum.columns, sum.columns, sum.columns)
        k.pointwise.binary(&sum)
      }
      return true
    },
    CPUKernel(ScaledLinearAttention.Backward.self) { op, call, k in
      let arrays = call.inputs[..<3] + [call.inputs[op.first]] + call.outputs[..<3]
      guard
        let p = stored(Array(arrays), call, problem(op.attention.forward, call.inputs), k)
      else { return false }
      var a = ck_linear_attention_backward_args()
      a.dy = UnsafePointer(call.inputs[op.first].floats)
      if op.attention.hasState { a.d_final_state = call.inputs[op.first + 1].constant }
      setGradients(&a, op.attention, call.outputs)
      let last = call.outputs.count - 1
      (a.dvalue_scale, a.dskip) = (call.outputs[last - 1].f32, call.outputs[last].f32)
      let values = [call.inputs[2], call.inputs[op.first - 2], call.inputs[op.first - 1]]
      scaled(values, p, k) { problem, scales in
        a.problem = problem
        guard var scales else { return k.linearAttention.backward(&a) }
        // d ∘ v is not needed: its memory takes the gradient of s v.
        let dv = a.dv
        a.dv = scales.z
        k.linearAttention.backward(&a)
        (scales.dy, scales.dz) = (UnsafePointer(scales.z), a.dy)
        (scales.dv, scales.ds, scales.dd) = (dv, a.dvalue_scale, a.dskip)
        k.pointwise.value_scales_backward(&scales)
      }
      return true
    },
  ]

  private static func setGradients(
    _ a: inout ck_linear_attention_backward_args, _ op: LinearAttentionBackward,
    _ outputs: [Tensor]
  ) {
    func output(_ i: Int) -> UnsafeMutablePointer<Float>? {
      op.place(i).flatMap { outputs[$0].floats }
    }
    (a.dq, a.dk, a.dv) = (output(0), output(1), output(2))
    (a.dlog_decay, a.dinput_gate, a.dbonus) = (output(3), output(4), output(5))
    (a.dstate, a.dnorm_state) = (output(6), output(7))
  }

  /// The problem with the type of its arrays; nil where no kernel takes that.
  private static func stored(
    _ arrays: [Tensor], _ call: KernelCall, _ problem: ck_linear_attention_problem,
    _ k: KernelTables
  ) -> ck_linear_attention_problem? {
    guard let type = call.commonType(of: arrays) else { return nil }
    var problem = problem
    problem.bf16_stored = type == .bfloat16
    return type == .float32 || k.linearAttention.takes_scales(&problem) ? problem : nil
  }

  /// Gives the kernel the scales of values, or where it takes none scaled values in their place, beside
  /// d ∘ v, for the time of `body`.
  private static func scaled(
    _ values: [Tensor], _ problem: ck_linear_attention_problem, _ k: KernelTables,
    _ body: (ck_linear_attention_problem, ck_value_scales_args?) -> Void
  ) {
    var (a, problem) = (valueScales(values), problem)
    if k.linearAttention.takes_scales(&problem) {
      (problem.value_scale, problem.skip) = (a.s, a.d)
      problem.skip_per_channel = a.per_channel
      return body(problem, nil)
    }
    let mark = ck_scratch_begin()
    defer { ck_scratch_end(mark) }
    func floats() -> UnsafeMutablePointer<Float>? {
      ck_scratch(values[0].elementCount * MemoryLayout<Float>.stride)?
        .assumingMemoryBound(to: Float.self)
    }
    (a.y, a.z) = (floats(), floats())
    k.pointwise.value_scales(&a)
    problem.v = UnsafePointer(a.y)
    body(problem, a)
  }

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
    func input(_ i: Int) -> UnsafePointer<Float>? {
      UnsafePointer(op.optional.pick(i, inputs)?.floats)
    }
    (p.q, p.k, p.v) = (input(0), input(1), input(2))
    (p.log_decay, p.input_gate, p.bonus) = (input(3), input(4), input(5))
    (p.state, p.norm_state, p.max_state) = (input(6), input(7), input(8))
    p.reset = op.optional.pick(9, inputs)?.resets
    return p
  }
}
