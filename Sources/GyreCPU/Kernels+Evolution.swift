import CGyreKernels
import GyreTensors

extension CPUKernel {
  static let evolution: [CPUKernel] = [
    CPUKernel(EvolutionNoise.self) { op, call, k in
      guard let members = call.inputs[0].i32, let out = call.outputs[0].f32 else { return false }
      var a = ck_noise_args()
      a.rows = call.inputs[0].elementCount
      a.count = op.count
      a.members = UnsafePointer(members)
      a.seed = op.seed
      a.leaf = op.leaf
      a.epoch = op.epoch
      a.first = op.first
      a.scale = op.factor
      a.is_signed = op.isSigned
      a.out = out
      k.evolution.noise(&a)
      return true
    },
    CPUKernel(LowRankAdd.self) { _, call, k in
      let (y, x, down, up) = (call.inputs[0], call.inputs[1], call.inputs[2], call.inputs[3])
      guard call.isFloat32, let from = y.f32, let to = call.outputs[0].f32, let first = down.f32,
        let second = up.f32
      else { return false }
      if from != to {
        var copy = ck_axpby_args()
        copy.count = y.elementCount
        copy.alpha = 1
        copy.x = UnsafePointer(from)
        copy.y = to
        k.pointwise.axpby(&copy)
      }
      var a = ck_low_rank_args()
      a.rows = down.shape[0]
      a.tokens = y.shape.rowCount / max(a.rows, 1)
      a.rank = down.shape[1]
      a.inputs = down.shape[2]
      a.outputs = up.shape[2]
      if x.dtype == .int32 { a.ids = UnsafePointer(x.i32) } else { a.x = UnsafePointer(x.f32) }
      a.down = UnsafePointer(first)
      a.up = UnsafePointer(second)
      a.y = to
      k.evolution.low_rank(&a)
      return true
    },
  ]
}
