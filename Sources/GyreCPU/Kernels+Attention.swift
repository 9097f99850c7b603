import CGyreKernels
import GyreRecurrence
import GyreTensors

extension CPUKernel {
  static let attention: [CPUKernel] = [
    CPUKernel(AttentionForward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = ck_attention_forward_args()
      a.shape = shape(op, call.inputs)
      a.y = call.outputs[0].f32
      if op.keepsSums { a.logsumexp = call.outputs[1].f32 }
      k.attention.forward(&a)
      return true
    },
    CPUKernel(AttentionBackward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = ck_attention_backward_args()
      a.shape = shape(op.forward, call.inputs)
      a.y = call.inputs[op.inputCount].constant
      a.logsumexp = call.inputs[op.inputCount + 1].constant
      a.dy = call.inputs[op.inputCount + 2].constant
      (a.dq, a.dk, a.dv) = (call.outputs[0].f32, call.outputs[1].f32, call.outputs[2].f32)
      a.dg = op.forward.optional[3].flatMap { call.outputs[$0].f32 }
      k.attention.backward(&a)
      return true
    },
  ]

  private static func shape(_ op: AttentionForward, _ inputs: [Tensor]) -> ck_attention_shape {
    let x = op.extents(inputs.map(\.spec))
    var s = ck_attention_shape()
    (s.batch, s.query_tokens, s.key_tokens) = (x.batch, x.queries, x.keys)
    (s.query_heads, s.key_heads) = (x.heads, x.keyHeads)
    (s.key_size, s.value_size) = (x.keySize, x.valueSize)
    s.window = op.window ?? 0
    s.scale = Float(op.scale)
    switch op.form {
    case .recurrent: s.query_tile = 1
    case .chunkwise(let size):
      // The default size stands for the kernel's best tiles.
      if SequenceForm.chunkwise != op.form { (s.query_tile, s.key_tile) = (size, size) }
    case .parallel: (s.query_tile, s.key_tile) = (max(x.queries, 1), max(x.keys, 1))
    }
    (s.q, s.k, s.v) = (inputs[0].constant, inputs[1].constant, inputs[2].constant)
    s.g = op.optional.pick(3, inputs)?.constant
    s.reset = op.optional.pick(4, inputs)?.resets
    return s
  }
}
