import CGyreKernels
import GyreTensors

extension CPUKernel {
  static let norms: [CPUKernel] = [
    CPUKernel(Norm.self) { op, call, k in
      guard call.isFloat32, !op.hasOwnWeights else { return false }
      var a = arguments(op, x: call.inputs[0], weight: call.inputs.dropFirst().first)
      if call.inputs.count > 2 { a.bias = UnsafePointer(call.inputs[2].f32) }
      a.y = UnsafeMutableRawPointer(call.outputs[0].f32)
      k.norm.forward(&a)
      return true
    },
    CPUKernel(NormBackward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = arguments(op.norm, x: call.inputs[1], weight: call.inputs.dropFirst(2).first)
      a.dy = UnsafeRawPointer(call.inputs[0].f32)
      gradients(op, call, &a)
      k.norm.backward(&a)
      return true
    },
    CPUKernel(NormedSum.self) { op, call, k in
      let i = call.inputs
      let (y, z) = (i[1], call.outputs[1])
      guard call.isFloat32(but: [y, z]), !op.norm.hasOwnWeights,
        let residual = y.floats, let normed = z.floats
      else { return false }
      var a = arguments(op.norm, x: i[0], weight: i[2])
      if i.count > 3 { a.bias = UnsafePointer(i[3].f32) }
      (a.residual, a.sum) = (UnsafeRawPointer(residual), call.outputs[0].f32)
      a.y = UnsafeMutableRawPointer(normed)
      (a.bf16_residual, a.bf16_y) = (y.dtype == .bfloat16, z.dtype == .bfloat16)
      k.norm.forward(&a)
      return true
    },
    CPUKernel(NormedSum.Backward.self) { op, call, k in
      let i = call.inputs
      let terms = op.hasSecond ? [i[0], i[3]] : [i[0]]
      guard call.isFloat32(but: terms), terms.allSatisfy({ $0.dtype == i[0].dtype }),
        let dz = i[0].floats
      else { return false }
      var a = arguments(op.norm.norm, x: i[1], weight: i[2])
      a.dy = UnsafeRawPointer(dz)
      a.bf16_y = i[0].dtype == .bfloat16
      if op.hasSecond { a.dy_more = UnsafeRawPointer(i[3].floats) }
      if op.hasSum { a.dsum = UnsafePointer(i[i.count - 1].f32) }
      gradients(op.norm, call, &a)
      k.norm.backward(&a)
      return true
    },
    CPUKernel(GatedNorm.self) { op, call, k in
      guard
        var a = arguments(
          op, call, x: [call.inputs[0]], z: [call.inputs[1]], y: call.outputs[0],
          weight: call.inputs[2])
      else { return false }
      a.y = UnsafeMutableRawPointer(call.outputs[0].floats)
      k.norm.forward(&a)
      return true
    },
    CPUKernel(GatedNorm.Backward.self) { backward, call, k in
      guard
        var a = arguments(
          backward.op, call, x: [call.inputs[1], call.outputs[0]],
          z: [call.inputs[2], call.outputs[1]], y: call.inputs[0], weight: call.inputs[3])
      else { return false }
      a.dy = UnsafeRawPointer(call.inputs[0].floats)
      a.dx = call.outputs[0].floats
      a.dz = call.outputs[1].floats
      a.dweight = call.outputs[2].f32
      k.norm.backward(&a)
      return true
    },
    CPUKernel(L2Normalize.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = rows(call.inputs[0], CK_NORM_L2, op.epsilon)
      a.y = UnsafeMutableRawPointer(call.outputs[0].f32)
      k.norm.forward(&a)
      return true
    },
    CPUKernel(L2Normalize.Backward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = rows(call.inputs[1], CK_NORM_L2, op.epsilon)
      a.dy = UnsafeRawPointer(call.inputs[0].f32)
      a.dx = call.outputs[0].f32
      k.norm.backward(&a)
      return true
    },
  ]

  /// Where the gradients of a norm's inputs go.
  private static func gradients(_ op: NormBackward, _ call: KernelCall, _ a: inout ck_norm_args) {
    a.dx = call.outputs[0].f32
    if op.inputCount > 1 { a.dweight = call.outputs[1].f32 }
    if op.inputCount > 2 { a.dbias = call.outputs[2].f32 }
  }

  private static func rows(_ x: Tensor, _ kind: ck_norm, _ epsilon: Double) -> ck_norm_args {
    var a = ck_norm_args()
    a.kind = kind
    a.rows = x.shape.rowCount
    a.columns = x.shape.last
    a.eps = Float(epsilon)
    a.weight_rows = 1
    a.x = UnsafePointer(x.f32)
    return a
  }

  private static func arguments(_ op: Norm, x: Tensor, weight: Tensor?) -> ck_norm_args {
    var a = rows(x, op.centers ? CK_NORM_LAYER : CK_NORM_RMS, op.epsilon)
    if let weight {
      a.weight = UnsafePointer(weight.f32)
      a.weight_rows = max(1, weight.elementCount / max(a.columns, 1))
    }
    return a
  }

  /// - Parameters:
  ///   - x: x and its gradient where there is one, `z` likewise.
  ///   - y: y or its gradient.
  private static func arguments(
    _ op: GatedNorm, _ call: KernelCall, x: [Tensor], z: [Tensor], y: Tensor, weight: Tensor
  ) -> ck_norm_args? {
    guard let xType = call.commonType(of: x, beside: z + [y]),
      let zType = call.commonType(of: z, beside: x + [y]),
      let yType = call.commonType(of: [y], beside: x + z)
    else { return nil }
    var a = rows(x[0], CK_NORM_RMS, op.epsilon)
    a.gate = op.gatesFirst ? CK_NORM_GATE_BEFORE : CK_NORM_GATE_AFTER
    a.activation = op.gate == .silu ? CK_NORM_SILU : CK_NORM_SIGMOID
    a.weight = UnsafePointer(weight.f32)
    a.weight_rows = max(1, weight.elementCount / max(a.columns, 1))
    (a.x, a.z) = (UnsafePointer(x[0].floats), UnsafePointer(z[0].floats))
    (a.bf16_x, a.bf16_z, a.bf16_y) = (xType == .bfloat16, zType == .bfloat16, yType == .bfloat16)
    return a
  }
}
