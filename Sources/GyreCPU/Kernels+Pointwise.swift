import CGyreKernels
import GyreTensors

extension Unary.Kind {
  var c: ck_unary {
    switch self {
    case .relu: CK_UNARY_RELU
    case .reluSquared: CK_UNARY_RELU2
    case .silu: CK_UNARY_SILU
    case .geluTanh: CK_UNARY_GELU_TANH
    case .gelu: CK_UNARY_GELU_ERF
    case .sigmoid: CK_UNARY_SIGMOID
    case .tanh: CK_UNARY_TANH
    case .exp: CK_UNARY_EXP
    case .log: CK_UNARY_LOG
    case .softplus: CK_UNARY_SOFTPLUS
    case .logSigmoid: CK_UNARY_LOGSIGMOID
    case .square: CK_UNARY_SQUARE
    case .sqrt: CK_UNARY_SQRT
    case .reciprocalSqrt: CK_UNARY_RSQRT
    case .negate: CK_UNARY_NEG
    case .absolute: CK_UNARY_ABS
    case .expm1: CK_UNARY_EXPM1
    case .log1p: CK_UNARY_LOG1P
    case .sine: CK_UNARY_SIN
    case .cosine: CK_UNARY_COS
    }
  }
}

extension Binary.Kind {
  fileprivate var c: ck_binary {
    switch self {
    case .add: CK_BINARY_ADD
    case .subtract: CK_BINARY_SUB
    case .multiply: CK_BINARY_MUL
    case .divide: CK_BINARY_DIV
    case .maximum: CK_BINARY_MAX
    case .minimum: CK_BINARY_MIN
    }
  }
}

extension GatedUnit.Activation {
  fileprivate var c: ck_glu {
    switch self {
    case .silu: CK_GLU_SWIGLU
    case .geluTanh: CK_GLU_GEGLU_TANH
    case .gelu: CK_GLU_GEGLU_ERF
    case .relu: CK_GLU_REGLU
    case .sigmoid: CK_GLU_SIGMOID
    }
  }
}

extension CPUKernel {
  static let pointwise: [CPUKernel] = [
    CPUKernel(RandomChoice.self) { op, call, k in
      guard let out = call.outputs[0].f32 else { return false }
      var a = ck_choice_args()
      a.count = call.outputs[0].elementCount
      var generator = op.generator
      if let step = call.inputs.first {
        guard let p = step.hostAddress?.assumingMemoryBound(to: Int64.self) else { return false }
        generator = generator.mixed(with: UInt64(bitPattern: p.pointee))
      }
      (a.seed, a.stream) = (generator.seed, generator.stream)
      a.below = op.bound
      (a.chosen, a.other) = (op.chosen, op.other)
      a.out = out
      k.pointwise.choice(&a)
      return true
    },
    CPUKernel(Fill.self) { op, call, k in
      guard let y = call.outputs[0].f32 else { return false }
      var a = ck_axpby_args()
      a.count = call.outputs[0].elementCount
      a.alpha = Float(op.value)
      a.y = y
      k.pointwise.axpby(&a)
      return true
    },
    CPUKernel(Affine.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = ck_axpby_args()
      a.count = call.outputs[0].elementCount
      a.y = call.outputs[0].f32
      a.alpha = Float(op.shift)
      if op.shift == 0 {
        a.alpha = Float(op.scale)
        a.x = UnsafePointer(call.inputs[0].f32)
        k.pointwise.axpby(&a)
        return true
      }
      k.pointwise.axpby(&a)
      a.alpha = Float(op.scale)
      a.beta = 1
      a.x = UnsafePointer(call.inputs[0].f32)
      k.pointwise.axpby(&a)
      return true
    },
    CPUKernel(Unary.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = ck_unary_args()
      a.op = op.kind.c
      a.count = call.inputs[0].elementCount
      a.x = UnsafePointer(call.inputs[0].f32)
      a.y = call.outputs[0].f32
      k.pointwise.unary(&a)
      return true
    },
    CPUKernel(UnaryBackward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = ck_unary_args()
      a.op = op.kind.c
      a.count = call.inputs[0].elementCount
      a.x = UnsafePointer(call.inputs[0].f32)
      a.dy = UnsafePointer(call.inputs[1].f32)
      a.y = call.outputs[0].f32
      k.pointwise.unary_backward(&a)
      return true
    },
    CPUKernel(Binary.self) { op, call, k in
      guard call.isFloat32 else { return false }
      return binary(op.kind.c, call.inputs[0], call.inputs[1], call.outputs[0], k)
    },
    CPUKernel(SumTo.self) { op, call, k in
      guard let p = Broadcast.pattern(op.shape, in: call.inputs[0].shape) else { return false }
      if call.inputs[0].dtype == .bfloat16 {
        return sumRounded(call.inputs[0], p, into: call.outputs[0], k)
      }
      return call.isFloat32 && sum(call.inputs[0], p, into: call.outputs[0], k)
    },
    CPUKernel(Softmax.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = ck_softmax_args()
      a.rows = call.inputs[0].shape.rowCount
      a.columns = call.inputs[0].shape.last
      a.x = UnsafePointer(call.inputs[0].f32)
      a.y = call.outputs[0].f32
      k.pointwise.softmax(&a)
      return true
    },
    CPUKernel(SoftmaxBackward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = ck_softmax_args()
      a.rows = call.inputs[0].shape.rowCount
      a.columns = call.inputs[0].shape.last
      a.y = call.inputs[0].f32
      a.dy = UnsafePointer(call.inputs[1].f32)
      a.dx = call.outputs[0].f32
      k.pointwise.softmax_backward(&a)
      return true
    },
    CPUKernel(ArgMax.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = ck_reduce_args()
      a.rows = call.outputs[0].elementCount
      a.columns = call.inputs[0].shape.last
      a.x = UnsafePointer(call.inputs[0].f32)
      a.x_row = a.columns
      a.index = call.outputs[0].i32
      k.pointwise.max_columns(&a)
      return true
    },
    CPUKernel(SumOfSquares.self) { op, call, k in
      guard call.isFloat32, let out = call.outputs[0].f32 else { return false }
      var total = 0.0
      for t in call.inputs {
        var part = 0.0
        var a = ck_sum_of_squares_args()
        a.count = t.elementCount
        a.x = UnsafePointer(t.f32)
        withUnsafeMutablePointer(to: &part) { p in
          a.out = p
          k.pointwise.sum_of_squares(&a)
        }
        total += part
      }
      out[0] = Float(total)
      return true
    },
    CPUKernel(GatedUnit.self) { op, call, k in
      guard var a = glu(op, call.inputs[0], call.inputs + call.outputs, rowsOf: call.outputs[0])
      else { return false }
      a.y = call.outputs[0].floats
      a.y_row = a.columns
      k.pointwise.glu(&a)
      return true
    },
    CPUKernel(GatedUnit.Backward.self) { op, call, k in
      guard
        var a = glu(op.unit, call.inputs[1], call.inputs + call.outputs, rowsOf: call.inputs[0])
      else { return false }
      a.dy = UnsafePointer(call.inputs[0].floats)
      a.dy_row = a.columns
      a.dgate = call.outputs[0].floats
      a.dgate_row = 2 * a.columns
      a.dup = call.outputs[0].floats(from: a.columns)
      a.dup_row = 2 * a.columns
      k.pointwise.glu_backward(&a)
      return true
    },
    CPUKernel(ValueScales.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = valueScales(call.inputs)
      (a.y, a.z) = (call.outputs[0].f32, call.outputs[1].f32)
      k.pointwise.value_scales(&a)
      return true
    },
    CPUKernel(ValueScales.Backward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = valueScales(call.inputs)
      (a.dy, a.dz) = (call.inputs[3].constant, call.inputs[4].constant)
      (a.dv, a.ds, a.dd) = (call.outputs[0].f32, call.outputs[1].f32, call.outputs[2].f32)
      k.pointwise.value_scales_backward(&a)
      return true
    },
    CPUKernel(Cast.self) { op, call, k in cast(call.inputs[0], to: call.outputs[0], k) },
  ]

  static func valueScales(_ inputs: [Tensor]) -> ck_value_scales_args {
    let shape = inputs[0].shape
    var a = ck_value_scales_args()
    (a.tokens, a.heads, a.size) = (shape[0] * shape[1], shape[2], shape[3])
    a.per_channel = inputs[2].elementCount != a.heads
    (a.v, a.s, a.d) = (inputs[0].constant, inputs[1].constant, inputs[2].constant)
    return a
  }

  /// nil where the tensors are not all float32 or all bfloat16.
  private static func glu(
    _ op: GatedUnit, _ x: Tensor, _ all: [Tensor], rowsOf y: Tensor
  ) -> ck_glu_args? {
    guard [.float32, .bfloat16].contains(x.dtype), all.allSatisfy({ $0.dtype == x.dtype }) else {
      return nil
    }
    var a = ck_glu_args()
    a.bf16 = x.dtype == .bfloat16
    a.kind = op.activation.c
    a.rows = y.shape.rowCount
    a.columns = y.shape.last
    a.gate = UnsafePointer(x.floats)
    a.gate_row = 2 * a.columns
    a.up = UnsafePointer(x.floats(from: a.columns))
    a.up_row = 2 * a.columns
    return a
  }

  /// The same numbers in another element type, one of the two float32.
  static func cast(_ x: Tensor, to y: Tensor, _ k: KernelTables) -> Bool {
    guard let from = x.dtype.c, let to = y.dtype.c, from == CK_F32 || to == CK_F32 else {
      return false
    }
    var a = ck_cast_args()
    (a.from, a.to, a.count) = (from, to, x.elementCount)
    a.x = UnsafeRawPointer(x.hostAddress)
    a.y = y.hostAddress
    k.pointwise.cast(&a)
    return true
  }

  /// Both operands of the output's shape, or one of them a row, a column or a scalar.
  private static func binary(
    _ kind: ck_binary, _ x: Tensor, _ y: Tensor, _ out: Tensor, _ k: KernelTables
  ) -> Bool {
    var a = ck_binary_args()
    a.op = kind
    a.y = out.f32
    let count = out.elementCount
    let small = x.shape == out.shape ? y : x
    guard small.shape == out.shape || x.shape == out.shape || y.shape == out.shape else {
      return false
    }
    var (rows, columns, row, column, group) = (1, count, count, 1, 0)
    if let g = Broadcast.groups(small.shape, in: out.shape) {
      (rows, columns, row, group) = (g.outer * g.group, g.inner, g.inner, g.group)
    } else if small.shape != out.shape {
      guard let p = Broadcast.pattern(small.shape, in: out.shape) else { return false }
      if p.middle == 1 {
        (row, column) = (0, 0)
      } else if p.inner == 1 {
        (rows, columns, row, column) = (p.outer, p.middle, 0, 1)
      } else if p.outer == 1 {
        (rows, columns, row, column) = (p.middle, p.inner, 1, 0)
      } else {
        // A broadcast on both sides: repeated along the inner axis the operand is a row.
        return withRepeated(small, p.inner) { row in
          a.rows = p.outer
          a.columns = p.middle * p.inner
          a.y_row = a.columns
          (a.a, a.a_row, a.a_column) = (
            small.id == y.id ? x.constant : row, small.id == y.id ? a.columns : 0, 1
          )
          (a.b, a.b_row, a.b_column) = (
            small.id == y.id ? row : y.constant, small.id == y.id ? 0 : a.columns, 1
          )
          k.pointwise.binary(&a)
        }
      }
    }
    a.rows = rows
    a.columns = columns
    a.y_row = columns
    let full = (pointer: UnsafePointer(small.id == y.id ? x.f32 : y.f32), row: columns, column: 1)
    let part = (pointer: UnsafePointer(small.f32), row: row, column: column)
    let (left, right) = small.id == y.id ? (full, part) : (part, full)
    (a.a, a.a_row, a.a_column) = (left.pointer, left.row, left.column)
    (a.b, a.b_row, a.b_column) = (right.pointer, right.row, right.column)
    (a.a_group, a.b_group) = small.id == y.id ? (0, group) : (group, 0)
    k.pointwise.binary(&a)
    return true
  }

  /// Sums [outer, middle, inner] over outer and inner.
  private static func sum(
    _ x: Tensor, _ p: (outer: Int, middle: Int, inner: Int), into y: Tensor, _ k: KernelTables
  ) -> Bool {
    var a = ck_reduce_args()
    a.x = UnsafePointer(x.f32)
    a.out = y.f32
    if p.inner == 1 {
      (a.rows, a.columns, a.x_row) = (p.outer, p.middle, p.middle)
      k.pointwise.sum_rows(&a)
    } else if p.outer == 1 {
      (a.rows, a.columns, a.x_row) = (p.middle, p.inner, p.inner)
      k.pointwise.sum_columns(&a)
    } else {
      let mark = ck_scratch_begin()
      defer { ck_scratch_end(mark) }
      let columns = p.middle * p.inner
      guard let partial = ck_scratch(max(columns, 1) * 4)?.assumingMemoryBound(to: Float.self)
      else { return false }
      (a.rows, a.columns, a.x_row, a.out) = (p.outer, columns, columns, partial)
      k.pointwise.sum_rows(&a)
      a.x = UnsafePointer(partial)
      (a.rows, a.columns, a.x_row, a.out) = (p.middle, p.inner, p.inner, y.f32)
      k.pointwise.sum_columns(&a)
    }
    return true
  }

  /// Sums of rows of bfloat16, in float32 until they are stored.
  private static func sumRounded(
    _ x: Tensor, _ p: (outer: Int, middle: Int, inner: Int), into y: Tensor, _ k: KernelTables
  ) -> Bool {
    guard p.inner == 1, y.dtype == .bfloat16 else { return false }
    let mark = ck_scratch_begin()
    defer { ck_scratch_end(mark) }
    guard let sums = ck_scratch(max(p.middle, 1) * 4)?.assumingMemoryBound(to: Float.self) else {
      return false
    }
    var a = ck_reduce_args()
    (a.rows, a.columns, a.x_row) = (p.outer, p.middle, p.middle)
    a.x = UnsafePointer(x.floats)
    a.bf16 = true
    a.out = sums
    k.pointwise.sum_rows(&a)
    var cast = ck_cast_args()
    (cast.from, cast.to, cast.count) = (CK_F32, CK_BF16, p.middle)
    (cast.x, cast.y) = (UnsafeRawPointer(sums), y.hostAddress)
    k.pointwise.cast(&cast)
    return true
  }

  /// Calls `body` with each element of `t` repeated `count` times.
  private static func withRepeated(
    _ t: Tensor, _ count: Int, _ body: (UnsafePointer<Float>) -> Void
  ) -> Bool {
    let mark = ck_scratch_begin()
    defer { ck_scratch_end(mark) }
    guard let source = t.f32,
      let row = ck_scratch(max(t.elementCount * count, 1) * 4)?.assumingMemoryBound(to: Float.self)
    else { return false }
    for i in 0..<t.elementCount { for j in 0..<count { row[i * count + j] = source[i] } }
    body(UnsafePointer(row))
    return true
  }
}

extension DType {
  /// The C kernels' name; nil where they do not have the type.
  var c: ck_dtype? {
    switch self {
    case .float32: CK_F32
    case .bfloat16: CK_BF16
    case .float16: CK_F16
    case .int8: CK_I8
    case .int32: CK_I32
    default: nil
    }
  }
}
