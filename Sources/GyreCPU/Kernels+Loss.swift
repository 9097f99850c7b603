import CGyreKernels
import GyreTensors

extension CPUKernel {
  static let losses: [CPUKernel] = [
    CPUKernel(EmbeddingLookup.self) { op, call, k in
      if storedRows(call, k) { return true }
      let (table, out) = (call.inputs[0], call.outputs[0])
      guard table.dtype == out.dtype, [.float32, .bfloat16].contains(out.dtype),
        let tokens = call.inputs[1].i32
      else { return false }
      var a = embedding(tokens, call.inputs[1], table.shape)
      a.table = UnsafePointer(table.floats)
      a.out = out.floats
      a.bf16 = out.dtype == .bfloat16
      k.loss.embedding_gather(&a)
      return true
    },
    CPUKernel(EmbeddingLookup.Backward.self) { op, call, k in
      guard [.float32, .bfloat16].contains(call.inputs[0].dtype), let tokens = call.inputs[1].i32,
        let out = call.outputs[0].f32
      else { return false }
      zero(call.outputs[0], k)
      var a = embedding(tokens, call.inputs[1], call.outputs[0].shape)
      a.dout = UnsafePointer(call.inputs[0].floats)
      a.bf16 = call.inputs[0].dtype == .bfloat16
      a.dtable = out
      k.loss.embedding_scatter(&a)
      return true
    },
    CPUKernel(RowsAdded.self) { op, call, k in
      guard let tokens = call.inputs[2].i32, let from = call.inputs[0].f32,
        let out = call.outputs[0].f32, [.float32, .bfloat16].contains(call.inputs[1].dtype)
      else { return false }
      if from != out { out.update(from: from, count: call.outputs[0].elementCount) }
      var a = embedding(tokens, call.inputs[2], call.outputs[0].shape)
      a.dout = UnsafePointer(call.inputs[1].floats)
      a.bf16 = call.inputs[1].dtype == .bfloat16
      a.dtable = out
      k.loss.embedding_add(&a)
      return true
    },
    CPUKernel(CrossEntropy.self) { op, call, k in
      guard call.isFloat32, let targets = call.inputs[1].i32, let mean = call.outputs[0].f32,
        let logits = call.inputs[0].f32
      else { return false }
      var a = ck_cross_entropy_args()
      a.rows = call.inputs[1].elementCount
      a.columns = call.inputs[0].shape.last
      a.logits = logits
      a.logits_row = a.columns
      a.targets = UnsafePointer(targets)
      a.loss = call.outputs[1].f32
      k.loss.cross_entropy(&a)
      mean[0] = average(call.outputs[1], targets: call.inputs[1])
      return true
    },
    CPUKernel(CrossEntropy.Backward.self) { op, call, k in
      guard call.isFloat32, let targets = call.inputs[2].i32, let d = call.inputs[0].f32
      else { return false }
      let rows = call.inputs[2].elementCount
      var copy = ck_axpby_args()
      copy.count = call.outputs[0].elementCount
      copy.alpha = 1
      copy.x = UnsafePointer(call.inputs[1].f32)
      copy.y = call.outputs[0].f32
      k.pointwise.axpby(&copy)
      let scales = [Float](
        repeating: d[0] / Float(max(counted(call.inputs[2]), 1)), count: rows)
      scales.withUnsafeBufferPointer { scales in
        var a = ck_cross_entropy_args()
        a.rows = rows
        a.columns = call.inputs[1].shape.last
        a.logits = call.outputs[0].f32
        a.logits_row = a.columns
        a.targets = UnsafePointer(targets)
        a.scale = scales.baseAddress
        a.gradient = true
        k.loss.cross_entropy(&a)
      }
      return true
    },
    CPUKernel(LinearCrossEntropy.self) { op, call, k in
      let w = call.inputs[1]
      guard call.inputs[0].dtype == .float32, w.dtype.gemm != nil || w.dtype.isQuantized,
        w.dtype == .float32 || !op.computesGradients
      else { return false }
      linearCrossEntropy(op, call, k)
      return true
    },
  ]

  /// Rows of a table in another type as float32; false for other calls.
  private static func storedRows(_ call: KernelCall, _ k: KernelTables) -> Bool {
    let (table, tokens, out) = (call.inputs[0], call.inputs[1], call.outputs[0])
    guard let rows = tokens.i32, let y = out.f32, let source = table.hostAddress else {
      return false
    }
    let width = table.shape[1]
    if let type = table.dtype.block {
      var a = ck_block_unpack_args()
      (a.count, a.k) = (tokens.elementCount, width)
      a.w = UnsafeRawPointer(source)
      a.rows = UnsafePointer(rows)
      a.out = y
      a.type = type
      k.blocks.unpack(&a)
      return true
    }
    guard table.dtype == .bfloat16 || table.dtype == .float16, let type = table.dtype.c else {
      return false
    }
    for i in 0..<tokens.elementCount {
      var a = ck_cast_args()
      (a.from, a.to, a.count) = (type, CK_F32, width)
      a.x = UnsafeRawPointer(source + Int(rows[i]) * width * 2)
      a.y = UnsafeMutableRawPointer(y + i * width)
      k.pointwise.cast(&a)
    }
    return true
  }

  private static func embedding(
    _ tokens: UnsafeMutablePointer<Int32>, _ t: Tensor, _ table: Shape
  ) -> ck_embedding_args {
    var a = ck_embedding_args()
    a.count = t.elementCount
    a.vocabulary = table[0]
    a.width = table[1]
    a.tokens = UnsafePointer(tokens)
    return a
  }

  private static func zero(_ t: Tensor, _ k: KernelTables) {
    var a = ck_axpby_args()
    a.count = t.elementCount
    a.y = t.f32
    k.pointwise.axpby(&a)
  }

  private static func counted(_ targets: Tensor) -> Int {
    guard let p = targets.i32 else { return 0 }
    return (0..<targets.elementCount).reduce(0) { $0 + (p[$1] >= 0 ? 1 : 0) }
  }

  private static func average(_ rows: Tensor, targets: Tensor) -> Float {
    guard let p = rows.f32 else { return 0 }
    let sum = (0..<rows.elementCount).reduce(0.0) { $0 + Double(p[$1]) }
    return Float(sum / Double(max(counted(targets), 1)))
  }

  /// Logits of a few rows at a time: as many as keep them in the second-level caches.
  private static func linearCrossEntropy(
    _ op: LinearCrossEntropy, _ call: KernelCall, _ k: KernelTables
  ) {
    let (h, w, t) = (call.inputs[0], call.inputs[1], call.inputs[2])
    let (rows, v, d) = (t.elementCount, w.shape[0], w.shape[1])
    guard let hp = h.f32, let tp = t.i32, let losses = call.outputs[1].f32,
      let mean = call.outputs[0].f32
    else { return }
    let chunk = min(max(rows, 1), max(64, 524_288 / max(v, 1) / 16 * 16))
    let mark = ck_scratch_begin()
    defer { ck_scratch_end(mark) }
    guard
      let logits = ck_scratch(chunk * v * 4)?.assumingMemoryBound(to: Float.self),
      let scales = ck_scratch(chunk * 4)?.assumingMemoryBound(to: Float.self)
    else { return }
    let scale = 1 / Float(max(counted(t), 1))
    for i in 0..<chunk { scales[i] = scale }
    if op.computesGradients { zero(call.outputs[3], k) }
    var start = 0
    while start < rows {
      let count = min(chunk, rows - start)
      if w.dtype.isQuantized {
        _ = linear(hp + start * d, rows: count, w, bias: nil, logits, k)
      } else {
        product(k, op.precision, count, v, d, hp + start * d, w, logits, transposeB: true)
      }
      var a = ck_cross_entropy_args()
      a.rows = count
      a.columns = v
      a.logits = logits
      a.logits_row = v
      a.targets = UnsafePointer(tp + start)
      a.scale = UnsafePointer(scales)
      a.gradient = op.computesGradients
      a.loss = losses + start
      k.loss.cross_entropy(&a)
      if op.computesGradients, let dh = call.outputs[2].f32, let dw = call.outputs[3].f32 {
        product(k, op.precision, count, d, v, logits, w, dh + start * d)
        let part = h.aliased(as: [count, d], byteOffset: h.byteOffset + 4 * start * d)
        product(k, op.precision, v, d, count, logits, part, dw, transposeA: true, beta: 1)
      }
      start += count
    }
    mean[0] = average(call.outputs[1], targets: t)
  }

  private static func product(
    _ k: KernelTables, _ precision: ComputePrecision, _ m: Int, _ n: Int, _ inner: Int,
    _ a: UnsafeMutablePointer<Float>, _ b: Tensor,
    _ c: UnsafeMutablePointer<Float>, transposeA: Bool = false, transposeB: Bool = false,
    beta: Float = 0
  ) {
    var g = ck_gemm_args()
    (g.m, g.n, g.k, g.batch) = (m, n, inner, 1)
    (g.alpha, g.beta) = (1, beta)
    g.a = UnsafeRawPointer(a)
    g.b = UnsafeRawPointer(b.hostAddress)
    g.b_type = b.dtype.gemm ?? CK_GEMM_TYPE_F32
    g.c = UnsafeMutableRawPointer(c)
    g.lda = transposeA ? m : inner
    g.ldb = transposeB ? inner : n
    g.ldc = n
    g.transpose_a = transposeA
    g.transpose_b = transposeB
    g.compute = k.compute(precision)
    k.gemm.gemm(&g)
  }
}
