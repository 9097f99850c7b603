import CGyreKernels
import GyreRecurrence
import GyreTensors

extension CPUKernel {
  static let attention: [CPUKernel] = [
    CPUKernel(AttentionForward.self) { op, call, k in
      guard let type = call.commonType(of: Array(call.inputs[..<3] + call.outputs[..<1])) else {
        return false
      }
      if type == .float32, decode(op, call, k) { return true }
      var a = ck_attention_forward_args()
      a.shape = shape(op, call.inputs)
      a.y = call.outputs[0].floats
      if type == .bfloat16, !takesHalf(a.shape, k) { return false }
      if op.keepsSums { a.logsumexp = call.outputs[1].f32 }
      k.attention.forward(&a)
      return true
    },
    CPUKernel(AttentionBackward.self) { op, call, k in
      let (y, sums, dy) = (
        call.inputs[op.inputCount], call.inputs[op.inputCount + 1], call.inputs[op.inputCount + 2]
      )
      let arrays = call.inputs[..<3] + [y, dy] + call.outputs[..<3]
      guard let type = call.commonType(of: Array(arrays)) else { return false }
      var a = ck_attention_backward_args()
      a.shape = shape(op.forward, call.inputs)
      if type == .bfloat16, !takesHalf(a.shape, k) { return false }
      (a.y, a.dy) = (UnsafePointer(y.floats), UnsafePointer(dy.floats))
      a.logsumexp = sums.constant
      (a.dq, a.dk, a.dv) = (
        call.outputs[0].floats, call.outputs[1].floats, call.outputs[2].floats
      )
      a.dg = op.forward.optional[3].flatMap { call.outputs[$0].f32 }
      k.attention.backward(&a)
      return true
    },
  ]

  /// One query a sequence that sees all keys: streams the cache once, all heads of a token together.
  private static func decode(_ op: AttentionForward, _ call: KernelCall, _ k: KernelTables) -> Bool
  {
    let x = op.extents(call.inputs.map(\.spec))
    guard x.queries == 1, !op.keepsSums, !op.optional.has(3), !op.optional.has(4),
      op.window.map({ x.keys <= $0 }) ?? true
    else { return false }
    var a = ck_attention_decode_args()
    (a.batch, a.capacity) = (x.batch, x.keys)
    (a.query_heads, a.key_heads) = (x.heads, x.keyHeads)
    (a.key_size, a.value_size) = (x.keySize, x.valueSize)
    a.scale = Float(op.scale)
    a.q = call.inputs[0].constant
    // Without new tokens the kernel only reads the caches.
    (a.k, a.v) = (call.inputs[1].f32, call.inputs[2].f32)
    a.y = call.outputs[0].f32
    let lengths = [Int32](repeating: Int32(x.keys), count: x.batch)
    let slots = [Int32](repeating: Int32(x.keys) - 1, count: x.batch)
    lengths.withUnsafeBufferPointer { lengths in
      slots.withUnsafeBufferPointer { slots in
        a.length = lengths.baseAddress
        a.slot = slots.baseAddress
        k.attention.decode(&a)
      }
    }
    return true
  }

  /// Whether the level's kernels read and write bfloat16 arrays of that shape.
  private static func takesHalf(_ s: ck_attention_shape, _ k: KernelTables) -> Bool {
    k.gemm.has_bf16 && s.bf16 && s.query_tile == 0
      && max(s.key_size, s.value_size) <= CK_ATTENTION_STORED
  }

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
    s.q = UnsafePointer(inputs[0].floats)
    s.k = UnsafePointer(inputs[1].floats)
    s.v = UnsafePointer(inputs[2].floats)
    s.g = op.optional.pick(3, inputs)?.constant
    // Gradients of gates are differences of sums that rounded products would reach only roughly.
    s.bf16 = op.precision == .bfloat16 && s.g == nil
    s.bf16_stored = inputs[0].dtype == .bfloat16
    s.reset = op.optional.pick(4, inputs)?.resets
    return s
  }
}
