import CGyreCUDASources
import GyreTensors

extension CUDAKernel {
  private static let affine = CUDAFunction("pointwise", "affine")
  private static let binary = CUDAFunction("pointwise", "binary")
  private static let choose = CUDAFunction("pointwise", "choose")
  /// A function of each kind of `Unary`, in its order.
  private static func each(_ name: String) -> [CUDAFunction] {
    Unary.Kind.allCases.map { CUDAFunction("unary", name, ["-DKIND=\($0.rawValue)"]) }
  }
  private static let unary = each("unary")
  private static let unaryBackward = each("unary_backward")
  private static let gatedUnit = each("gated_unit")
  private static let gatedUnitBackward = each("gated_unit_backward")

  static let pointwise: [CUDAKernel] = [
    CUDAKernel(Fill.self, anyType: true) { op, call, launch in
      launch.fill(call.outputs[0], op.value)
      return true
    },
    CUDAKernel(Cast.self, anyType: true) { op, call, launch in
      launch.cast(
        call.inputs[0].array, to: call.outputs[0].array, count: call.inputs[0].elementCount)
      return true
    },
    CUDAKernel(Affine.self) { op, call, launch in
      let count = call.inputs[0].elementCount
      if op.scale == 1, op.shift == 0, call.inputs[0].dtype == call.outputs[0].dtype {
        launch.copy(call.inputs[0], to: call.outputs[0])
        return true
      }
      launch.run(
        affine, over: count, each: 8,
        gyre_affine_args(
          count: count, scale: Float(op.scale), shift: Float(op.shift), x: call.inputs[0].array,
          y: call.outputs[0].array))
      return true
    },
    CUDAKernel(Unary.self) { op, call, launch in
      var a = gyre_unary_args()
      a.count = call.inputs[0].elementCount
      a.x = call.inputs[0].array
      a.y = call.outputs[0].array
      launch.run(unary[op.kind.rawValue], over: a.count, each: 8, a)
      return true
    },
    CUDAKernel(UnaryBackward.self) { op, call, launch in
      var a = gyre_unary_args()
      a.count = call.inputs[0].elementCount
      a.x = call.inputs[0].array
      a.dy = call.inputs[1].array
      a.y = call.outputs[0].array
      launch.run(unaryBackward[op.kind.rawValue], over: a.count, each: 8, a)
      return true
    },
    CUDAKernel(Binary.self) { op, call, launch in
      guard var a = operands(call, op.kind) else { return false }
      a.y = call.outputs[0].array
      launch.run(binary, over: a.count, each: 8, a)
      return true
    },
    CUDAKernel(Choose.self) { op, call, launch in
      guard var a = operands(call, op.takesLargest ? .maximum : .minimum) else { return false }
      a.dy = call.inputs[2].array
      (a.y, a.db) = (call.outputs[0].array, call.outputs[1].array)
      launch.run(choose, over: a.count, a)
      return true
    },
    CUDAKernel(GatedUnit.self) { op, call, launch in
      var a = gyre_glu_args()
      (a.rows, a.columns) = (call.outputs[0].shape.rowCount, call.outputs[0].shape.last)
      a.x = call.inputs[0].array
      a.y = call.outputs[0].array
      launch.run(gatedUnit[op.unary.rawValue], over: a.rows * a.columns, each: 8, a)
      return true
    },
    CUDAKernel(GatedUnit.Backward.self) { op, call, launch in
      var a = gyre_glu_args()
      (a.rows, a.columns) = (call.inputs[0].shape.rowCount, call.inputs[0].shape.last)
      a.x = call.inputs[1].array
      a.dy = call.inputs[0].array
      a.dx = call.outputs[0].array
      launch.run(
        gatedUnitBackward[op.unit.unary.rawValue], over: a.rows * a.columns, each: 8, a)
      return true
    },
  ]

  /// The operands of a binary op, and how they lie in the output. Nil beyond eight axes.
  private static func operands(_ call: KernelCall, _ kind: Binary.Kind) -> gyre_binary_args? {
    let out = call.outputs[0].shape
    guard out.rank <= 8 else { return nil }
    var a = gyre_binary_args()
    a.count = out.elementCount
    a.kind = Int32(kind.rawValue)
    a.rank = Int32(out.rank)
    setAxes(&a.shape, out.dimensions)
    a.a = operand(call.inputs[0], out)
    a.b = operand(call.inputs[1], out)
    return a
  }

  private static func operand(_ t: Tensor, _ out: Shape) -> gyre_operand {
    var o = gyre_operand()
    o.array = t.array
    (o.inner, o.middle) = (1, 1)
    if t.shape == out {
      o.mode = Int32(GYRE_SAME)
    } else if let p = Broadcast.pattern(t.shape, in: out) {
      o.mode = Int32(GYRE_PERIODIC)
      (o.inner, o.middle) = (max(p.inner, 1), max(p.middle, 1))
    } else {
      o.mode = Int32(GYRE_STRIDED)
      setAxes(&o.stride, t.shape.broadcastStrides(in: out))
    }
    return o
  }
}

/// Writes numbers into a C array of words.
func setAxes<Axes>(_ axes: inout Axes, _ values: [Int]) {
  withUnsafeMutableBytes(of: &axes) { memory in
    for (i, value) in values.enumerated() where (i + 1) * 8 <= memory.count {
      memory.storeBytes(of: value, toByteOffset: 8 * i, as: Int.self)
    }
  }
}

extension Shape {
  /// Elements from one to the next along each axis, row-major.
  var strides: [Int] {
    var result = [Int](repeating: 1, count: rank)
    for i in stride(from: rank - 2, through: 0, by: -1) {
      result[i] = result[i + 1] * dimensions[i + 1]
    }
    return result
  }

  /// Strides with which a tensor of this shape is read along the axes of `out`; 0 where it repeats.
  func broadcastStrides(in out: Shape) -> [Int] {
    let own = strides
    let first = out.rank - rank
    return (0..<out.rank).map { i in
      i < first || dimensions[i - first] == 1 ? 0 : own[i - first]
    }
  }
}
