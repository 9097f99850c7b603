import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// Choices of routers, rotary positions at rates.
extension CUDAKernel {
  private static let topMask = CUDAFunction("selection", "top_mask")
  private static let selectedHistory = CUDAFunction("selection", "selected_history")
  private static let randomChoice = CUDAFunction("selection", "random_choice")
  private static let rotaryAtRates = CUDAFunction("selection", "rotary_at_rates")

  static let selection: [CUDAKernel] = [
    CUDAKernel(TopMask.self) { op, call, launch in
      var a = gyre_top_mask_args()
      let s = call.inputs[0].shape
      (a.rows, a.columns, a.chosen) = (s.rowCount, s.last, op.count)
      (a.x, a.y) = (call.inputs[0].array, call.outputs[0].array)
      let blocks = min((a.rows + 3) / 4, launch.device.multiprocessors * 16)
      launch.run(topMask, grid: (blocks, 1, 1), threads: (128, 1), a)
      return true
    },
    CUDAKernel(SelectedHistory.self) { op, call, launch in
      let s = call.inputs[0].shape
      // Rows of the table are 32-bit numbers.
      guard op.width - 1 <= Int(GYRE_SELECTED_WIDTH),
        s[0] * s[2] * (op.width + s[1]) <= Int(Int32.max)
      else { return false }
      var a = gyre_selected_history_args()
      (a.batch, a.tokens, a.lanes, a.width) = (s[0], s[1], s[2], Int32(op.width))
      a.mask = call.inputs[0].array
      if op.hasReset { a.reset = call.inputs[1].address }
      withUnsafeMutableBytes(of: &a.out) { bytes in
        for (i, out) in call.outputs.dropLast().enumerated() {
          bytes.storeBytes(of: out.address, toByteOffset: 8 * i, as: UInt64.self)
        }
      }
      a.last = call.outputs[op.width - 1].address
      launch.run(selectedHistory, channels: s[0] * s[2], a)
      return true
    },
    CUDAKernel(RandomChoice.self) { op, call, launch in
      var a = gyre_choice_args()
      a.count = call.outputs[0].elementCount
      (a.seed, a.stream) = (UInt(op.generator.seed), UInt(op.generator.stream))
      if let step = call.inputs.first { a.step = step.address }
      (a.below, a.chosen, a.other) = (op.bound, op.chosen, op.other)
      a.y = call.outputs[0].array
      launch.run(randomChoice, over: (a.count + 3) / 4, a)
      return true
    },
    CUDAKernel(RotaryAtRates.self) { op, call, launch in
      guard op.rates.count <= Int(GYRE_ROTARY_RATES) else { return false }
      var a = gyre_rotary_rates_args()
      let s = call.inputs[0].shape
      (a.rows, a.tokens, a.heads, a.size) = (s[0] * s[1] * s[2], s[1], s[2], s[3])
      (a.offset, a.pairs, a.magnitude) = (op.positionOffset, Int32(op.rates.count), op.magnitude)
      (a.interleaved, a.inverts) = (op.interleaved ? 1 : 0, op.inverts ? 1 : 0)
      (a.x, a.y) = (call.inputs[0].array, call.outputs[0].array)
      withUnsafeMutableBytes(of: &a.rates) { bytes in
        op.rates.withUnsafeBytes { bytes.copyMemory(from: $0) }
      }
      launch.run(rotaryAtRates, over: a.rows * max(op.rates.count, s[3] - 2 * op.rates.count), a)
      return true
    },
  ]
}
