import CGyreCUDASources
import GyreTensors

extension CUDAKernel {
  private static let convolve = CUDAFunction("sequence", "short_convolution")
  private static let convolveBackward = CUDAFunction("sequence", "short_convolution_backward")
  private static let convolveWeights = CUDAFunction("sequence", "short_convolution_weights")
  private static let rotary = CUDAFunction("sequence", "rotary")
  private static let shift = CUDAFunction("sequence", "token_shift")
  private static let shiftBackward = CUDAFunction("sequence", "token_shift_backward")
  private static let shiftMixes = CUDAFunction("sequence", "token_shift_mix_gradient")

  /// Short convolution, rotary positions, token shift.
  static let sequence: [CUDAKernel] = [
    CUDAKernel(ShortConvolution.self) { op, call, launch in
      var a = arguments(op, call.inputs, launch)
      a.y = call.outputs[0].array
      a.window_final = call.outputs[1].array
      launch.run(convolve, grid: grid(a), threads: threads(a), a)
      return true
    },
    CUDAKernel(ShortConvolution.Backward.self) { op, call, launch in
      guard call.inputs[0].shape[1] > 0 else { return false }
      let count = op.forward.optional.gather { $0 }.count
      var a = arguments(op.forward, call.inputs, launch)
      a.dy = call.inputs[count].array
      if op.hasWindowCotangent { a.dwindow_final = call.inputs[count + 1].array }
      a.dx = call.outputs[0].array
      a.dwindow = op.forward.optional[3].map { call.outputs[$0] }.array
      let parts = grid(a).1
      a.partial = launch.floats(parts * (Int(a.taps) + 1) * a.width)
      launch.run(convolveBackward, grid: grid(a), threads: threads(a), a)
      var sum = gyre_convolution_sum_args()
      (sum.parts, sum.width, sum.taps) = (parts, a.width, a.taps)
      sum.partial = a.partial
      sum.dweight = call.outputs[1].array
      sum.dbias = op.forward.optional[2].map { call.outputs[$0] }.array
      launch.run(
        convolveWeights, grid: ((a.width + 63) / 64, Int(a.taps) + 1, 1), threads: (64, 1), sum)
      return true
    },
    CUDAKernel(Rotary.self) { op, call, launch in
      let s = call.inputs[0].shape
      var a = gyre_rotary_args()
      (a.batch, a.tokens, a.heads, a.size) = (s[0], s[1], s[2], s[3])
      (a.rotated, a.offset) = (op.rotated, op.positionOffset)
      a.base = op.base
      (a.interleaved, a.inverts) = (op.interleaved ? 1 : 0, op.inverts ? 1 : 0)
      (a.x, a.y) = (call.inputs[0].array, call.outputs[0].array)
      let across = max(op.rotated / 2, s[3] - op.rotated)
      let blocks = (s[1] * across + 255) / 256
      let rows = max(1, min(s[0] * s[2], launch.device.multiprocessors * 8 / max(blocks, 1)))
      launch.run(rotary, grid: (blocks, rows, 1), a)
      return true
    },
    CUDAKernel(TokenShift.self) { op, call, launch in
      guard call.inputs[0].shape[1] > 0, call.inputs[1].rank == 2 else { return false }
      var a = arguments(op, call.inputs)
      a.y = call.outputs[0].array
      a.last_final = call.outputs[1].array
      launch.run(shift, over: a.batch * a.tokens * a.width, a)
      return true
    },
    CUDAKernel(TokenShift.Backward.self) { op, call, launch in
      guard call.inputs[0].shape[1] > 0 else { return false }
      let count = op.forward.optional.gather { $0 }.count
      var a = arguments(op.forward, call.inputs)
      a.dy = call.inputs[count].array
      if op.hasLastCotangent { a.dlast_final = call.inputs[count + 1].array }
      a.dx = call.outputs[0].array
      if op.forward.optional.has(2) { a.dlast = call.outputs[2].array }
      launch.run(shiftBackward, over: a.batch * a.tokens * a.width, a)
      let blocks = (a.width + 255) / 256
      a.splits = launch.splits(a.batch * a.tokens, blocks: blocks * a.mixes)
      a.dmix = launch.floats(a.splits * a.mixes * a.width)
      launch.run(shiftMixes, grid: (blocks, a.splits, a.mixes), a)
      launch.sumColumns(
        .floats(a.dmix), rows: a.splits, columns: a.mixes * a.width,
        into: call.outputs[1].array)
      return true
    },
  ]

  private static func arguments(
    _ op: ShortConvolution, _ inputs: [Tensor], _ launch: CUDALaunch
  ) -> gyre_convolution_args {
    let s = inputs[0].shape
    var a = gyre_convolution_args()
    (a.batch, a.tokens, a.width) = (s[0], s[1], s[2])
    a.taps = Int32(inputs[1].shape[1])
    a.silu = op.activates ? 1 : 0
    // Enough threads to fill the card, and not so many that the partial sums cost more than the work.
    let wanted = launch.device.multiprocessors * 1024
    let chunks = max(1, min(s[1] / 32, wanted / max(s[0] * s[2], 1), 60_000 / max(s[0], 1)))
    a.chunk = Int32(max(1, (s[1] + chunks - 1) / chunks))
    (a.x, a.weight) = (inputs[0].array, inputs[1].array)
    a.bias = op.optional.pick(2, inputs).array
    a.window = op.optional.pick(3, inputs).array
    a.reset = op.optional.pick(4, inputs).address
    return a
  }

  private static func threads(_ a: gyre_convolution_args) -> (Int, Int) {
    (min(128, max(32, (a.width + 31) / 32 * 32)), 1)
  }

  private static func grid(_ a: gyre_convolution_args) -> (Int, Int, Int) {
    let chunks = max(1, (a.tokens + Int(a.chunk) - 1) / Int(a.chunk))
    let threads = threads(a).0
    return ((a.width + threads - 1) / threads, a.batch * chunks, 1)
  }

  private static func arguments(_ op: TokenShift, _ inputs: [Tensor]) -> gyre_token_shift_args {
    let s = inputs[0].shape
    var a = gyre_token_shift_args()
    (a.batch, a.tokens, a.width, a.mixes) = (s[0], s[1], s[2], inputs[1].shape[0])
    (a.x, a.mix) = (inputs[0].array, inputs[1].array)
    a.last = op.optional.pick(2, inputs).array
    a.reset = op.optional.pick(3, inputs).address
    return a
  }
}
