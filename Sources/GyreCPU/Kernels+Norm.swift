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
      guard call.isFloat32 else { return false }
      var a = arguments(op, call.inputs[0], call.inputs[1], call.inputs[2])
      a.y = UnsafeMutableRawPointer(call.outputs[0].f32)
      k.norm.forward(&a)
      return true
    },
    CPUKernel(GatedNorm.Backward.self) { backward, call, k in
      guard call.isFloat32 else { return false }
      var a = arguments(backward.op, call.inputs[1], call.inputs[2], call.inputs[3])
      a.dy = UnsafeRawPointer(call.inputs[0].f32)
      a.dx = call.outputs[0].f32
      a.dz = call.outputs[1].f32
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

  private static func arguments(
    _ op: GatedNorm, _ x: Tensor, _ z: Tensor, _ weight: Tensor
  ) -> ck_norm_args {
    var a = rows(x, CK_NORM_RMS, op.epsilon)
    a.gate = op.gatesFirst ? CK_NORM_GATE_BEFORE : CK_NORM_GATE_AFTER
    a.activation = op.gate == .silu ? CK_NORM_SILU : CK_NORM_SIGMOID
    a.weight = UnsafePointer(weight.f32)
    a.weight_rows = max(1, weight.elementCount / max(a.columns, 1))
    a.z = UnsafePointer(z.f32)
    return a
  }
}
