import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// Choices of routers and the order of what they choose, rotary positions at rates.
extension CUDAKernel {
  private static let topMask = CUDAFunction("selection", "top_mask")
  private static let selectedHistory = CUDAFunction("selection", "selected_history")
  private static let longHistory = CUDAFunction("selection", "selected_history_long")
  private static let memoryChoices = CUDAFunction("memory_order", "memory_choices")
  private static let memorySort = CUDAFunction("memory_order", "memory_sort")
  private static let memoryPlaces = CUDAFunction("memory_order", "memory_places")
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
      guard s[0] * s[2] * (op.width + s[1]) <= Int(Int32.max) else { return false }
      var a = gyre_selected_history_args()
      (a.batch, a.tokens, a.lanes, a.width) = (s[0], s[1], s[2], Int32(op.width))
      a.mask = call.inputs[0].array
      if op.hasReset { a.reset = call.inputs[1].address }
      a.last = call.outputs[op.width - 1].address
      let (outputs, most) = (call.outputs.dropLast(), Int(GYRE_SELECTED_WIDTH))
      for first in stride(from: 0, to: outputs.count, by: most) {
        a.first = Int32(first)
        withUnsafeMutableBytes(of: &a.out) { bytes in
          for (i, out) in outputs[first...].prefix(most).enumerated() {
            bytes.storeBytes(of: out.address, toByteOffset: 8 * i, as: UInt64.self)
          }
        }
        launch.run(
          outputs.count > most ? longHistory : selectedHistory, channels: s[0] * s[2], a)
      }
      return true
    },
    CUDAKernel(MemoryOrder.self) { op, call, launch in
      let (s, count) = (call.inputs[0].shape, call.inputs[0].shape[0] * call.inputs[0].shape[1])
      let lanes = call.outputs[0].shape[2]
      // Rows, keys and pairs of them are 32-bit numbers.
      guard count * max(lanes, 2 * op.count) <= Int(Int32.max) else { return false }
      guard count > 0 else { return true }
      var a = gyre_memory_order_args()
      (a.batch, a.tokens, a.memories, a.lanes) = (s[0], s[1], s[2], lanes)
      let choices = count * op.count
      (a.count, a.p) = (Int32(op.count), call.inputs[0].array)
      a.keys = launch.floats(choices)
      let depth = op.sortDepth(choices: choices)
      if depth != nil { a.items = launch.floats(2 * choices) }
      launch.run(memoryChoices, over: count, a)
      if let depth {
        a.depth = Int32(depth)
        (a.places, a.pieces) = (launch.floats(2 * choices), launch.floats(4 * choices))
        launch.run(memorySort, grid: (1, 1, 1), threads: (1024, 1), a)
      }
      a.taken = call.outputs[0].array
      (a.order, a.inverse) = (call.outputs[1].address, call.outputs[2].address)
      launch.run(memoryPlaces, grid: (s[0] * lanes, 1, 1), a)
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
      var a = gyre_rotary_rates_args()
      let s = call.inputs[0].shape
      (a.rows, a.tokens, a.heads, a.size) = (s[0] * s[1] * s[2], s[1], s[2], s[3])
      (a.offset, a.pairs, a.magnitude) = (op.positionOffset, Int32(op.rates.count), op.magnitude)
      (a.interleaved, a.inverts) = (op.interleaved ? 1 : 0, op.inverts ? 1 : 0)
      (a.x, a.y) = (call.inputs[0].array, call.outputs[0].array)
      let most = Int(GYRE_ROTARY_RATES)
      for first in stride(from: 0, to: max(op.rates.count, 1), by: most) {
        let rates = Array(op.rates.dropFirst(first).prefix(most))
        (a.first, a.count) = (Int32(first), Int32(rates.count))
        withUnsafeMutableBytes(of: &a.rates) { bytes in
          rates.withUnsafeBytes { bytes.copyMemory(from: $0) }
        }
        launch.run(rotaryAtRates, over: a.rows * max(rates.count, s[3] - 2 * op.rates.count), a)
      }
      return true
    },
  ]
}
