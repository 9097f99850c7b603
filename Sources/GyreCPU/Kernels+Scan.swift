import CGyreKernels
import GyreRecurrence
import GyreTensors

extension SequenceForm {
  var scan: (form: ck_scan_form, chunk: Int) {
    switch self {
    case .recurrent: (CK_SCAN_RECURRENT, 0)
    case .chunkwise(let size): (CK_SCAN_CHUNKWISE, size)
    case .parallel: (CK_SCAN_PARALLEL, 0)
    }
  }
}

extension CPUKernel {
  static let scans: [CPUKernel] = [
    CPUKernel(DiagonalScanForward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      var a = arguments(op, call.inputs, call.inputs[1].shape)
      a.u = UnsafePointer(call.inputs[1].f32)
      a.h = call.outputs[0].f32
      a.h_final = call.outputs[1].f32
      k.scan.forward(&a)
      return true
    },
    CPUKernel(DiagonalScanBackward.self) { op, call, k in
      guard call.isFloat32 else { return false }
      let n = op.inputCount(of: call.inputs.count)
      let rest = Array(call.inputs[n...])
      var a = arguments(op.forward, call.inputs, call.inputs[1].shape)
      a.h = rest[0].f32
      a.dh = op.extra.pick(1, rest)?.constant
      a.dh_final = op.extra.pick(2, rest)?.constant
      a.da = call.outputs[0].f32
      a.du = call.outputs[1].f32
      a.dh0 = op.forward.optional.has(2) ? call.outputs[2].f32 : nil
      k.scan.backward(&a)
      return true
    },
    CPUKernel(MinGRUForward.self) { op, call, k in
      guard let type = call.commonType(of: Array(call.inputs[..<2] + call.outputs[..<1])) else {
        return false
      }
      var a = arguments(op, call.inputs)
      a.bf16 = type == .bfloat16
      a.h = call.outputs[0].floats
      a.h_final = call.outputs[1].f32
      k.scan.min_gru_forward(&a)
      return true
    },
    CPUKernel(MinGRUBackward.self) { op, call, k in
      let n = op.scan.inputCount(of: call.inputs.count)
      let rest = Array(call.inputs[n...])
      let dh = op.scan.extra.pick(1, rest)
      let arrays = call.inputs[..<2] + rest[..<1] + [dh].compactMap(\.self) + call.outputs[..<2]
      guard let type = call.commonType(of: Array(arrays)) else { return false }
      var a = arguments(op.forward, call.inputs)
      a.bf16 = type == .bfloat16
      a.h = rest[0].floats
      a.dh = UnsafePointer(dh?.floats)
      a.dh_final = op.scan.extra.pick(2, rest)?.constant
      a.dz = call.outputs[0].floats
      a.dc = call.outputs[1].floats
      a.dh0 = op.forward.optional.has(2) ? call.outputs[2].f32 : nil
      k.scan.min_gru_backward(&a)
      return true
    },
  ]

  private static func arguments(
    _ op: DiagonalScanForward, _ inputs: [Tensor], _ shape: Shape
  ) -> ck_diagonal_scan_args {
    var a = ck_diagonal_scan_args()
    (a.batch, a.tokens, a.width) = (shape[0], shape[1], shape[2])
    (a.form, a.chunk) = op.form.scan
    a.decay =
      switch (op.isConstant, op.decayIsLog) {
      case (false, false): CK_DECAY_VALUE
      case (false, true): CK_DECAY_LOG
      case (true, false): CK_DECAY_CONSTANT
      case (true, true): CK_DECAY_CONSTANT_LOG
      }
    a.a = inputs[0].constant
    a.h0 = op.optional.pick(2, inputs)?.constant
    a.reset = op.optional.pick(3, inputs)?.resets
    return a
  }

  private static func arguments(_ op: MinGRUForward, _ inputs: [Tensor]) -> ck_min_gru_args {
    let shape = inputs[0].shape
    var a = ck_min_gru_args()
    (a.batch, a.tokens, a.width) = (shape[0], shape[1], shape[2])
    (a.form, a.chunk) = op.form.scan
    a.z = UnsafePointer(inputs[0].floats)
    a.c = UnsafePointer(inputs[1].floats)
    a.h0 = op.optional.pick(2, inputs)?.constant
    a.reset = op.optional.pick(3, inputs)?.resets
    return a
  }
}

extension Tensor {
  var constant: UnsafePointer<Float>? { UnsafePointer(f32) }
  var resets: UnsafePointer<Int32>? { UnsafePointer(i32) }
}
