import CGyreKernels
import GyreTensors

extension CPUKernel {
  /// Short convolution, rotary positions, token shift.
  static let sequence: [CPUKernel] = [
    CPUKernel(ShortConvolution.self) { op, call, k in
      guard var a = arguments(op, call, y: call.outputs[..<1]) else { return false }
      a.y = call.outputs[0].floats
      a.window_final = call.outputs[1].f32
      k.convolution.forward(&a)
      return true
    },
    CPUKernel(ShortConvolution.Backward.self) { op, call, k in
      let count = op.forward.optional.gather { $0 }.count
      guard var a = arguments(op.forward, call, y: call.inputs[count...count], dx: call.outputs[0])
      else { return false }
      a.dy = UnsafePointer(call.inputs[count].floats)
      if op.hasWindowCotangent { a.dwindow_final = call.inputs[count + 1].constant }
      a.dweight = call.outputs[1].f32
      a.dbias = op.forward.optional[2].flatMap { call.outputs[$0].f32 }
      a.dwindow = op.forward.optional[3].flatMap { call.outputs[$0].f32 }
      k.convolution.backward(&a)
      return true
    },
    CPUKernel(PiecedConvolution.self) { op, call, k in
      let pieces = call.outputs[..<op.pieces.count]
      guard var a = arguments(op.convolution, call, y: pieces) else { return false }
      setPieces(&a, Array(pieces))
      a.window_final = call.outputs[op.pieces.count].f32
      k.convolution.forward(&a)
      return true
    },
    CPUKernel(PiecedConvolution.Backward.self) { op, call, k in
      let convolution = op.forward.convolution
      let (first, count) = (op.first, op.forward.pieces.count)
      let pieces = call.inputs[first..<first + count]
      guard var a = arguments(convolution, call, y: pieces, dx: call.outputs[0]) else {
        return false
      }
      setPieces(&a, Array(pieces))
      if op.hasWindowCotangent { a.dwindow_final = call.inputs[first + count].constant }
      a.dweight = call.outputs[1].f32
      a.dbias = convolution.optional[2].flatMap { call.outputs[$0].f32 }
      a.dwindow = convolution.optional[3].flatMap { call.outputs[$0].f32 }
      k.convolution.backward(&a)
      return true
    },
    CPUKernel(Rotary.self) { op, call, k in
      guard call.commonType(of: [call.inputs[0], call.outputs[0]]) != nil else { return false }
      rotate(
        call, k, offset: op.positionOffset, interleaved: op.interleaved, inverts: op.inverts,
        rates: (0..<op.rotated / 2).map {
          Functions.pow(op.base, -2 * Double($0) / Double(op.rotated))
        })
      return true
    },
    CPUKernel(RotaryAtRates.self) { op, call, k in
      guard call.commonType(of: [call.inputs[0], call.outputs[0]]) != nil else { return false }
      rotate(
        call, k, offset: op.positionOffset, interleaved: op.interleaved, inverts: op.inverts,
        rates: op.rates, magnitude: op.magnitude)
      return true
    },
    CPUKernel(TokenShift.self) { op, call, k in
      guard call.isFloat32, call.inputs[0].shape[1] > 0 else { return false }
      var a = arguments(op, call.inputs)
      a.y = call.outputs[0].f32
      a.last_final = call.outputs[1].f32
      k.rotary.token_shift(&a)
      return true
    },
    CPUKernel(TokenShift.Backward.self) { op, call, k in
      guard call.isFloat32, call.inputs[0].shape[1] > 0 else { return false }
      let count = op.forward.optional.gather { $0 }.count
      var a = arguments(op.forward, call.inputs)
      a.dy = call.inputs[count].constant
      if op.hasLastCotangent { a.dlast_final = call.inputs[count + 1].constant }
      a.dx = call.outputs[0].f32
      a.dmix = call.outputs[1].f32
      if op.forward.optional.has(2) { a.dlast = call.outputs[2].f32 }
      k.rotary.token_shift_backward(&a)
      return true
    },
  ]

  /// Turns pairs by position · rate, with tables of the call's positions.
  private static func rotate(
    _ call: KernelCall, _ k: KernelTables, offset: Int, interleaved: Bool, inverts: Bool,
    rates: [Double], magnitude: Double = 1
  ) {
    let s = call.inputs[0].shape
    let pairs = rates.count
    let table = RotaryTables.shared.table(
      .init(values: rates, magnitude: magnitude), positions: offset..<offset + s[1])
    let from = (offset - table.first) * pairs
    table.cosine.withUnsafeBufferPointer { cosine in
      table.sine.withUnsafeBufferPointer { sine in
        var a = ck_rotary_args()
        (a.batch, a.tokens, a.heads, a.key_size) = (s[0], s[1], s[2], s[3])
        a.rotated = 2 * pairs
        a.layout = interleaved ? CK_ROTARY_INTERLEAVED : CK_ROTARY_HALVES
        a.cosine = cosine.baseAddress.map { $0 + from }
        a.sine = sine.baseAddress.map { $0 + from }
        a.table_rows = s[1]
        a.x = UnsafePointer(call.inputs[0].floats)
        a.y = call.outputs[0].floats
        a.bf16 = call.inputs[0].dtype == .bfloat16
        a.x_token = s[2] * s[3]
        a.y_token = s[2] * s[3]
        (inverts ? k.rotary.rotate_backward : k.rotary.rotate)(&a)
      }
    }
  }

  /// - Parameter y: y or dy, in pieces or whole.
  private static func arguments(
    _ op: ShortConvolution, _ call: KernelCall, y: ArraySlice<Tensor>, dx: Tensor? = nil
  ) -> ck_short_convolution_args? {
    let inputs = call.inputs
    let types = ([inputs[0]] + [dx].compactMap(\.self), Array(y))
    guard let x = call.commonType(of: types.0, beside: types.1),
      let y = call.commonType(of: types.1, beside: types.0)
    else { return nil }
    let s = inputs[0].shape
    var a = ck_short_convolution_args()
    (a.batch, a.tokens, a.width, a.taps) = (s[0], s[1], s[2], inputs[1].shape[1])
    a.silu = op.activates
    (a.bf16_x, a.bf16_y, a.rounds) = (x == .bfloat16, y == .bfloat16, y == .bfloat16)
    a.x = UnsafePointer(inputs[0].floats)
    a.dx = dx?.floats
    a.weight = inputs[1].constant
    a.bias = op.optional.pick(2, inputs)?.constant
    a.window = op.optional.pick(3, inputs)?.constant
    a.reset = op.optional.pick(4, inputs)?.resets
    return a
  }

  private static func setPieces(_ a: inout ck_short_convolution_args, _ pieces: [Tensor]) {
    a.pieces = Int32(pieces.count)
    withUnsafeMutableBytes(of: &a.piece_width) { widths in
      for (i, piece) in pieces.enumerated() {
        widths.storeBytes(
          of: piece.shape.last, toByteOffset: i * MemoryLayout<Int>.stride, as: Int.self)
      }
    }
    withUnsafeMutableBytes(of: &a.piece) { addresses in
      for (i, piece) in pieces.enumerated() {
        addresses.storeBytes(
          of: piece.floats, toByteOffset: i * MemoryLayout<Int>.stride,
          as: UnsafeMutablePointer<Float>?.self)
      }
    }
  }

  private static func arguments(_ op: TokenShift, _ inputs: [Tensor]) -> ck_token_shift_args {
    let s = inputs[0].shape
    var a = ck_token_shift_args()
    (a.batch, a.tokens, a.width, a.mixes) = (s[0], s[1], s[2], op.mixes(inputs[1].shape))
    if inputs[1].rank == 3 { a.mix_batch = a.mixes * a.width }
    a.x = inputs[0].constant
    a.mix = inputs[1].constant
    a.last = op.optional.pick(2, inputs)?.constant
    a.reset = op.optional.pick(3, inputs)?.resets
    return a
  }
}
