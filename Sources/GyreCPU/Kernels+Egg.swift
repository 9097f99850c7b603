import CGyreKernels
import GyreRecurrence
import GyreTensors

extension CPUKernel {
  static let egg: [CPUKernel] = [
    CPUKernel(EggForward.self) { op, call, k in
      var a = ck_egg_forward_args()
      guard
        let weights = call.inputs[0].bytes(Int8.self),
        let text = call.inputs[1].bytes(UInt8.self),
        let state = call.inputs[2].bytes(Int8.self), let fitness = call.outputs[0].i32,
        let after = call.outputs[1].bytes(Int8.self)
      else { return false }
      a.model = model(op.shape, weights)
      a.members = call.inputs[2].shape[0]
      a.tokens = call.inputs[1].shape[1] - 1
      a.group = op.group
      a.text = UnsafePointer(text)
      a.state = UnsafePointer(state)
      a.state_out = after
      a.fitness = fitness
      if op.keepsLogits { a.logits = call.outputs[2].bytes(Int8.self) }
      return withNoise(op.noise, call.inputs.dropFirst(3).first) {
        a.noise = $0
        k.egg.forward(&a)
      }
    },
    CPUKernel(EggUpdate.self) { op, call, k in
      var a = ck_egg_update_args()
      guard
        let weights = call.inputs[0].bytes(Int8.self),
        let signs = call.inputs[1].bytes(Int8.self), let out = call.outputs[0].bytes(Int8.self)
      else { return false }
      a.model = model(op.shape, weights)
      a.pairs = call.inputs[1].shape[0]
      a.signs = UnsafePointer(signs)
      a.limit = Int32(clamping: op.limit(pairs: a.pairs))
      a.weights_out = out
      if op.carriedLimit != nil {
        guard let from = call.inputs[2].i32, let to = call.outputs[1].i32 else { return false }
        if from != to { to.update(from: from, count: op.shape.parameterCount) }
        a.carried = to
      }
      let stored = call.inputs.dropFirst(op.carriedLimit == nil ? 2 : 3).first
      return withNoise(op.noise, stored) {
        a.noise = $0
        k.egg.update(&a)
      }
    },
  ]

  private static func model(_ shape: EggShape, _ weights: UnsafeMutablePointer<Int8>)
    -> ck_egg_model
  {
    ck_egg_model(width: shape.width, layers: shape.layers, weights: UnsafePointer(weights))
  }

  private static func withNoise(
    _ noise: EggNoise, _ stored: Tensor?, _ body: (ck_egg_noise) -> Void
  ) -> Bool {
    EggNoise.magnitudes.withUnsafeBufferPointer { magnitudes in
      var n = ck_egg_noise()
      n.shift = Int32(4 + noise.sigmaShift)
      n.magnitudes = magnitudes.baseAddress
      switch noise.source {
      case .none: n.kind = CK_EGG_NOISE_NONE
      case .stored:
        guard let numbers = stored?.bytes(Int8.self) else { return false }
        n.kind = CK_EGG_NOISE_STORED
        n.stored = UnsafePointer(numbers)
      case .generated(let seed, let epoch, let firstPair):
        n.kind = CK_EGG_NOISE_GENERATED
        (n.seed, n.epoch, n.first_pair) = (seed, epoch, firstPair)
      }
      body(n)
      return true
    }
  }
}

extension Tensor {
  /// The first element of a tensor of this type on the host.
  fileprivate func bytes<S: HostScalar>(_: S.Type) -> UnsafeMutablePointer<S>? {
    dtype == S.dtype ? hostAddress?.assumingMemoryBound(to: S.self) : nil
  }
}
