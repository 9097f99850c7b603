import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// The diagonal scan in tiles of the sequence: one pass over the data with the next tile's loads in
/// flight, for decays that change from token to token and an even width.
struct TiledScan {
  private var a = gyre_cuda_scan_args()
  private let kernels: (forward: CUDAFunction, backward: CUDAFunction)
  private let width: Int

  private static func kernels(_ types: String, _ width: Int) -> (CUDAFunction, CUDAFunction) {
    (
      CUDAFunction("diagonal_scan", "diagonal_scan_forward_\(types)_c\(width)"),
      CUDAFunction("diagonal_scan", "diagonal_scan_backward_\(types)_c\(width)")
    )
  }
  private static let wide = ["bf16_bf16", "bf16_float", "float_float"].map { kernels($0, 64) }
  private static let narrow = ["bf16_bf16", "bf16_float", "float_float"].map { kernels($0, 16) }

  /// Nil where the kernels do not cover the call.
  init?(_ op: DiagonalScanForward, _ inputs: [Tensor]) {
    let (decay, input) = (inputs[0], inputs[1])
    let s = input.shape
    let initial = op.optional.pick(2, inputs)
    guard !op.isConstant, op.form != .recurrent, s[0] > 0, s[0] < 1 << 16, s[1] > 0, s[2] > 0,
      s[2] % 2 == 0, initial == nil || initial?.dtype == .float32
    else { return nil }
    let types: Int
    switch (input.dtype, decay.dtype) {
    case (.bfloat16, .bfloat16): types = 0
    case (.bfloat16, .float32): types = 1
    case (.float32, .float32): types = 2
    default: return nil
    }
    // Few channels: narrow blocks, so that more of the card works.
    let isNarrow = s[0] * s[2] < 6144
    kernels = (isNarrow ? Self.narrow : Self.wide)[types]
    width = isNarrow ? 16 : 64
    a.decay = .init(bitPattern: UInt(decay.address))
    a.input = .init(bitPattern: UInt(input.address))
    a.initial = .init(bitPattern: UInt(initial.address))
    a.reset = .init(bitPattern: UInt(op.optional.pick(3, inputs).address))
    (a.batch, a.tokens, a.channels) = (Int32(s[0]), Int32(s[1]), Int32(s[2]))
    a.decay_is_log = op.decayIsLog ? 1 : 0
    a.decay_is_float = decay.dtype == .float32 ? 1 : 0
  }

  private func launch(_ function: CUDAFunction, _ a: gyre_cuda_scan_args, _ launch: CUDALaunch) {
    launch.run(
      function, grid: ((Int(a.channels) + width - 1) / width, Int(a.batch), 1), threads: (512, 1), a
    )
  }

  func run(h: Tensor, final: Tensor, _ queue: CUDALaunch) {
    var a = a
    a.h = .init(bitPattern: UInt(h.address))
    a.final_state = .init(bitPattern: UInt(final.address))
    launch(kernels.forward, a, queue)
  }

  /// Outputs: d decay, d input, d initial where there is one.
  func differentiate(
    h: Tensor, dh: Tensor, dFinal: Tensor?, outputs: [Tensor], _ queue: CUDALaunch
  ) {
    var a = a
    a.h = .init(bitPattern: UInt(h.address))
    a.dh = .init(bitPattern: UInt(dh.address))
    a.d_final = .init(bitPattern: UInt(dFinal.map { queue.float32($0) } ?? 0))
    a.da = .init(bitPattern: UInt(outputs[0].address))
    a.du = .init(bitPattern: UInt(outputs[1].address))
    if outputs.count > 2 { a.d_initial = .init(bitPattern: UInt(outputs[2].address)) }
    launch(kernels.backward, a, queue)
  }
}
