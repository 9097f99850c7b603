import CGyreCUDASources
import GyreTensors

extension CUDAKernel {
  private static let convolve = CUDAFunction("sequence", "short_convolution")
  private static let convolveBackward = CUDAFunction("sequence", "short_convolution_backward")
  private static let convolveWeights = CUDAFunction("sequence", "short_convolution_weights")
  private static let convolveFour = ["convolution", "convolution_half"].map {
    CUDAFunction("convolution", $0)
  }
  private static let convolveStep = CUDAFunction("convolution", "convolution_step")
  private static let convolveFourBackward = [
    "convolution_backward", "convolution_backward_half",
  ].map { CUDAFunction("convolution", $0) }
  private static let rotary = CUDAFunction("sequence", "rotary")
  private static let rotaryWide = ["rotary_wide", "rotary_wide_half"].map {
    CUDAFunction("sequence", $0)
  }
  private static let shift = CUDAFunction("sequence", "token_shift")
  private static let shiftBackward = CUDAFunction("sequence", "token_shift_backward")
  private static let shiftMixes = CUDAFunction("sequence", "token_shift_mix_gradient")

  /// Short convolution, rotary positions, token shift.
  static let sequence: [CUDAKernel] = [
    CUDAKernel(ShortConvolution.self) { op, call, launch in
      convolve(op, call.inputs, to: [call.outputs[0]], window: call.outputs[1], launch)
    },
    CUDAKernel(PiecedConvolution.self) { op, call, launch in
      let count = op.pieces.count
      return convolve(
        op.convolution, call.inputs, to: Array(call.outputs[..<count]),
        window: call.outputs[count], launch)
    },
    CUDAKernel(ShortConvolution.Backward.self) { op, call, launch in
      let count = op.forward.optional.gather { $0 }.count
      return differentiate(
        op.forward, call.inputs, dy: [call.inputs[count]],
        dWindow: op.hasWindowCotangent ? call.inputs[count + 1] : nil, call.outputs, launch)
    },
    CUDAKernel(PiecedConvolution.Backward.self) { op, call, launch in
      let end = op.first + op.forward.pieces.count
      return differentiate(
        op.forward.convolution, call.inputs, dy: Array(call.inputs[op.first..<end]),
        dWindow: op.hasWindowCotangent ? call.inputs[end] : nil, call.outputs, launch)
    },
    CUDAKernel(Rotary.self) { op, call, launch in
      let s = call.inputs[0].shape
      var a = gyre_rotary_args()
      (a.batch, a.tokens, a.heads, a.size) = (s[0], s[1], s[2], s[3])
      (a.rotated, a.offset) = (op.rotated, op.positionOffset)
      a.base = op.base
      (a.interleaved, a.inverts) = (op.interleaved ? 1 : 0, op.inverts ? 1 : 0)
      (a.x, a.y) = (call.inputs[0].array, call.outputs[0].array)
      let rows = s[1] * s[2]
      let groups = op.rotated / 16 + (s[3] - op.rotated) / 8
      if op.rotated % 16 == 0, (s[3] - op.rotated) % 8 == 0, a.x.data % 16 == 0,
        a.y.data % 16 == 0, a.x.dtype == a.y.dtype, op.rotated <= 2 * Int(GYRE_ROTARY_PAIRS),
        rows * groups > 0, rows * groups < 1 << 30
      {
        let blocks = (rows * groups + 255) / 256
        let parts = max(1, min(s[0], launch.device.multiprocessors * 8 / blocks))
        launch.run(
          rotaryWide[isHalf([call.inputs[0]]) ? 1 : 0], grid: (blocks, parts, 1), a)
        return true
      }
      let across = max(op.rotated / 2, s[3] - op.rotated)
      let blocks = (s[1] * across + 255) / 256
      let parts = max(1, min(s[0] * s[2], launch.device.multiprocessors * 8 / max(blocks, 1)))
      launch.run(rotary, grid: (blocks, parts, 1), a)
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

  private static func convolve(
    _ op: ShortConvolution, _ inputs: [Tensor], to pieces: [Tensor], window: Tensor,
    _ launch: CUDALaunch
  ) -> Bool {
    var a = arguments(op, inputs, launch)
    a.window_final = window.array
    if divideFour(&a, pieces, launch) {
      let half = isHalf([inputs[0]] + pieces) ? 1 : 0
      if half == 1, a.tokens == 1, a.taps == 4, a.weight.dtype == Int32(GYRE_F32),
        a.weight.data % 16 == 0, a.window.dtype == Int32(GYRE_F32),
        a.window_final.dtype == Int32(GYRE_F32)
      {
        launch.run(convolveStep, grid: grid(a, 4), threads: threads(a, 4), a)
        return true
      }
      launch.run(convolveFour[half], grid: grid(a, 4), threads: threads(a, 4), a)
      return true
    }
    guard pieces.count == 1 else { return false }
    a.y = pieces[0].array
    launch.run(convolve, grid: grid(a, 1), threads: threads(a, 1), a)
    return true
  }

  private static func differentiate(
    _ op: ShortConvolution, _ inputs: [Tensor], dy: [Tensor], dWindow: Tensor?,
    _ outputs: [Tensor], _ launch: CUDALaunch
  ) -> Bool {
    guard inputs[0].shape[1] > 0 else { return false }
    var a = arguments(op, inputs, launch)
    a.dwindow_final = dWindow.array
    a.dx = outputs[0].array
    a.dwindow = op.optional[3].map { outputs[$0] }.array
    let isFour = divideFour(&a, dy, launch)
    guard isFour || dy.count == 1 else { return false }
    let each = isFour ? 4 : 1
    let grid = grid(a, each)
    a.partial = launch.floats(grid.1 * (Int(a.taps) + 1) * a.width)
    if !isFour { a.dy = dy[0].array }
    let half = isHalf([inputs[0], outputs[0]] + dy) ? 1 : 0
    launch.run(
      isFour ? convolveFourBackward[half] : convolveBackward, grid: grid,
      threads: threads(a, each), a)
    var sum = gyre_convolution_sum_args()
    (sum.parts, sum.width, sum.taps) = (grid.1, a.width, a.taps)
    sum.partial = a.partial
    sum.dweight = outputs[1].array
    sum.dbias = op.optional[2].map { outputs[$0] }.array
    launch.run(
      convolveWeights, grid: ((a.width + 63) / 64, Int(a.taps) + 1, 1), threads: (64, 1), sum)
    return true
  }

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

  /// Has threads take four channels, and sets the pieces of y or dy. False where that does not fit:
  /// no resets, few taps, aligned rows.
  private static func divideFour(
    _ a: inout gyre_convolution_args, _ pieces: [Tensor], _ launch: CUDALaunch
  ) -> Bool {
    let arrays = [a.x, a.bias, a.window, a.window_final, a.dwindow_final, a.dx, a.dwindow]
    guard a.taps <= 4, a.reset == 0, a.tokens > 0, a.width > 0,
      pieces.count <= Int(GYRE_CONVOLUTION_PIECES),
      (arrays + pieces.map(\.array)).allSatisfy({ $0.data % 16 == 0 }),
      pieces.allSatisfy({ $0.shape.last % 4 == 0 })
    else { return false }
    var end = 0
    let ends = (0..<Int(GYRE_CONVOLUTION_PIECES)).map { i in
      if i < pieces.count { end += pieces[i].shape.last }
      return end
    }
    setAxes(&a.end, ends)
    withUnsafeMutableBytes(of: &a.piece) { memory in
      for (i, t) in pieces.enumerated() {
        memory.storeBytes(
          of: t.array, toByteOffset: MemoryLayout<gyre_array>.stride * i, as: gyre_array.self)
      }
    }
    let wanted = launch.device.multiprocessors * 512
    let chunks = max(
      1, min(a.tokens / 32, wanted / max(a.batch * a.width / 4, 1), 60_000 / max(a.batch, 1)))
    a.chunk = Int32(max(1, (a.tokens + chunks - 1) / chunks))
    return true
  }

  private static func isHalf(_ tensors: [Tensor]) -> Bool {
    tensors.allSatisfy { $0.dtype == .bfloat16 }
  }

  private static func threads(_ a: gyre_convolution_args, _ each: Int) -> (Int, Int) {
    (min(128, max(32, (a.width / each + 31) / 32 * 32)), 1)
  }

  private static func grid(_ a: gyre_convolution_args, _ each: Int) -> (Int, Int, Int) {
    let chunks = max(1, (a.tokens + Int(a.chunk) - 1) / Int(a.chunk))
    let threads = threads(a, each).0
    return ((a.width / each + threads - 1) / threads, a.batch * chunks, 1)
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
