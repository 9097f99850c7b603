import CGyreCUDASources
import GyreTensors

extension CUDAKernel {
  private static let momentum = CUDAFunction("optimizer", "momentum")
  private static let decision = CUDAFunction("optimizer", "step_decision")
  private static let update = CUDAFunction("optimizer", "state_update")

  /// AdamW is not here: its steps are gathered by the device.
  static let optimizers: [CUDAKernel] = [
    CUDAKernel(MomentumStep.self, anyType: true) { op, call, launch in
      guard call.inputs[0].isComputable, call.inputs[2].dtype == .float32,
        call.inputs[3].dtype == .float32
      else { return false }
      var a = gyre_momentum_args()
      a.count = call.inputs[0].elementCount
      a.gradient = call.inputs[0].array
      a.factor = call.inputs[1].address
      if call.inputs.count == 5 { a.control = call.inputs[4].address }
      (a.p_in, a.m_in) = (call.inputs[2].address, call.inputs[3].address)
      (a.p, a.m) = (call.outputs[0].address, call.outputs[1].address)
      (a.learning_rate, a.scale) = (op.learningRate, op.rateScale)
      a.momentum = Float(op.momentum)
      a.weight_decay = Float(op.weightDecay)
      a.nesterov = op.nesterov ? 1 : 0
      launch.run(momentum, over: a.count, each: 4, a)
      return true
    },
    CUDAKernel(StepDecision.self, anyType: true) { op, call, launch in
      let losses = call.inputs[3...]
      guard losses.count <= Int(GYRE_DECISION_LOSSES), losses.allSatisfy(\.isComputable),
        call.inputs[0].dtype == .float32
      else { return false }
      var a = gyre_decision_args()
      (a.squares, a.numbers) = (call.inputs[0].address, call.inputs[1].address)
      a.ledger_in = call.inputs[2].address
      (a.factor, a.control) = (call.outputs[0].address, call.outputs[1].address)
      (a.record, a.ledger) = (call.outputs[2].address, call.outputs[3].address)
      (a.clip_norm, a.spike_factor) = (op.rule.clipNorm ?? 0, op.rule.spikeFactor ?? 0)
      (a.losses, a.number_count) = (Int32(losses.count), Int32(call.inputs[1].elementCount))
      a.maximum_skips = Int32(op.rule.maximumSkips)
      withUnsafeMutableBytes(of: &a.loss) { memory in
        for (i, t) in losses.enumerated() {
          memory.storeBytes(
            of: t.array, toByteOffset: MemoryLayout<gyre_array>.stride * i, as: gyre_array.self)
        }
      }
      launch.run(decision, grid: (1, 1, 1), threads: (32, 1), a)
      return true
    },
    CUDAKernel(StateUpdate.self, anyType: true) { op, call, launch in
      guard call.inputs.dropFirst().allSatisfy({ $0.dtype == .float32 }) else { return false }
      let count = call.outputs.count
      for first in stride(from: 0, to: count, by: Int(GYRE_UPDATE_ENTRIES)) {
        let piece = first..<min(first + Int(GYRE_UPDATE_ENTRIES), count)
        var a = gyre_update_args()
        a.control = call.inputs[0].address
        withUnsafeMutableBytes(of: &a.entry) { memory in
          for i in piece {
            let e = gyre_update_entry(
              count: call.outputs[i].elementCount, old_value: call.inputs[1 + i].address,
              new_value: call.inputs[1 + count + i].address, out: call.outputs[i].address)
            memory.storeBytes(
              of: e, toByteOffset: MemoryLayout<gyre_update_entry>.stride * (i - first),
              as: gyre_update_entry.self)
          }
        }
        let largest = piece.map { call.outputs[$0].elementCount }.max() ?? 0
        launch.run(update, grid: (max(1, min(64, largest / 1024)), piece.count, 1), a)
      }
      return true
    },
  ]
}
