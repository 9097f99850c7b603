import CGyreCUDASources
import GyreTensors

extension CUDAKernel {
  private static let forward = CUDAFunction("norm", "norm_forward")
  private static let backward = CUDAFunction("norm", "norm_backward")
  private static let weightGradient = CUDAFunction("norm", "norm_weight_gradient")

  static let norms: [CUDAKernel] = [
    CUDAKernel(Norm.self) { op, call, launch in
      var a = arguments(op, call.inputs[0], call.inputs.dropFirst().first)
      a.bias = (call.inputs.count > 2 ? call.inputs[2] : nil).array
      a.y = call.outputs[0].array
      launch.run(forward, rows: a.rows, columns: a.columns, a)
      return true
    },
    CUDAKernel(NormBackward.self) { op, call, launch in
      let a = arguments(op.norm, call.inputs[1], call.inputs.dropFirst(2).first)
      differentiate(
        a, dy: call.inputs[0], dx: call.outputs[0],
        dweight: op.inputCount > 1 ? call.outputs[1] : nil,
        dbias: op.inputCount > 2 ? call.outputs[2] : nil, launch)
      return true
    },
    CUDAKernel(GatedNorm.self) { op, call, launch in
      var a = arguments(op, call.inputs[0], call.inputs[1], call.inputs[2])
      a.y = call.outputs[0].array
      launch.run(forward, rows: a.rows, columns: a.columns, a)
      return true
    },
    CUDAKernel(GatedNorm.Backward.self) { op, call, launch in
      var a = arguments(op.op, call.inputs[1], call.inputs[2], call.inputs[3])
      a.dz = call.outputs[1].array
      differentiate(
        a, dy: call.inputs[0], dx: call.outputs[0], dweight: call.outputs[2], dbias: nil, launch)
      return true
    },
    CUDAKernel(L2Normalize.self) { op, call, launch in
      var a = rows(call.inputs[0], Int32(GYRE_NORM_L2), op.epsilon)
      a.y = call.outputs[0].array
      launch.run(forward, rows: a.rows, columns: a.columns, a)
      return true
    },
    CUDAKernel(L2Normalize.Backward.self) { op, call, launch in
      let a = rows(call.inputs[1], Int32(GYRE_NORM_L2), op.epsilon)
      differentiate(
        a, dy: call.inputs[0], dx: call.outputs[0], dweight: nil, dbias: nil, launch)
      return true
    },
  ]

  private static func rows(_ x: Tensor, _ kind: Int32, _ epsilon: Double) -> gyre_norm_args {
    var a = gyre_norm_args()
    (a.rows, a.columns) = (x.shape.rowCount, x.shape.last)
    a.period = max(a.columns, 1)
    a.kind = kind
    a.epsilon = Float(epsilon)
    a.x = x.array
    return a
  }

  private static func arguments(_ op: Norm, _ x: Tensor, _ weight: Tensor?) -> gyre_norm_args {
    var a = rows(x, Int32(op.centers ? GYRE_NORM_LAYER : GYRE_NORM_RMS), op.epsilon)
    a.weight = weight.array
    if let weight { a.period = max(weight.elementCount, 1) }
    return a
  }

  private static func arguments(
    _ op: GatedNorm, _ x: Tensor, _ z: Tensor, _ weight: Tensor
  ) -> gyre_norm_args {
    var a = rows(x, Int32(GYRE_NORM_RMS), op.epsilon)
    a.gate = Int32(op.gatesFirst ? GYRE_GATE_BEFORE : GYRE_GATE_AFTER)
    a.gate_is_silu = op.gate == .silu ? 1 : 0
    a.z = z.array
    a.weight = weight.array
    a.period = max(weight.elementCount, 1)
    return a
  }

  private static func differentiate(
    _ arguments: gyre_norm_args, dy: Tensor, dx: Tensor, dweight: Tensor?, dbias: Tensor?,
    _ launch: CUDALaunch
  ) {
    var a = arguments
    (a.dy, a.dx) = (dy.array, dx.array)
    if dweight != nil { a.statistics = launch.floats(2 * a.rows) }
    launch.run(backward, rows: a.rows, columns: a.columns, a)
    guard let dweight else { return }
    let blocks = (a.period + 255) / 256
    a.splits = launch.splits(a.rows * a.columns / a.period, blocks: blocks)
    a.dweight = launch.floats(a.splits * a.period)
    if dbias != nil { a.dbias = launch.floats(a.splits * a.period) }
    launch.run(weightGradient, grid: (blocks, a.splits, 1), a)
    launch.sumColumns(
      .floats(a.dweight), rows: a.splits, columns: a.period, into: dweight.array)
    if let dbias {
      launch.sumColumns(.floats(a.dbias), rows: a.splits, columns: a.period, into: dbias.array)
    }
  }
}
