import CGyreCUDASources
import GyreTensors
import Synchronization

/// Steps of AdamW that wait to run in one launch. Holds their tensors until then.
struct AdamWBatch {
  private static let function = CUDAFunction("optimizer", "adamw")
  private var entries: [gyre_adamw_entry] = []
  private var calls: [KernelCall] = []
  /// Copies of parameters that are kept up to date.
  private var shadows: [CUDABuffer] = []
  private var chunks = 0

  mutating func add(_ op: AdamWStep, _ call: KernelCall, _ device: CUDADevice) {
    let launch = CUDALaunch(device, AdamWStep.name)
    // In place; where outputs are tensors of their own, from copies of the inputs.
    for (input, output) in zip(call.inputs.dropFirst(2), call.outputs) {
      launch.copy(input, to: output)
    }
    var e = gyre_adamw_entry()
    e.count = call.inputs[0].elementCount
    e.first_chunk = chunks
    e.gradient = call.inputs[0].array
    e.factor = call.inputs[1].address
    if let shadow = call.outputs[0].cudaShadow {
      shadows.append(shadow)
      e.shadow = shadow.address
    }
    (e.parameter, e.m, e.v) = (
      call.outputs[0].address, call.outputs[1].address, call.outputs[2].address
    )
    if call.inputs.count == 6 { e.control = call.inputs[5].address }
    (e.learning_rate, e.scale) = (op.learningRate, op.rateScale)
    e.weight_decay = Float(op.weightDecay)
    (e.beta1, e.beta2) = (Float(op.beta1), Float(op.beta2))
    (e.rest1, e.rest2) = (Float(1 - op.beta1), Float(1 - op.beta2))
    e.epsilon = Float(op.epsilon)
    (e.correction1, e.correction2) = (Float(op.correction1), Float(op.correction2))
    entries.append(e)
    calls.append(call)
    chunks += (e.count + Int(GYRE_ADAMW_CHUNK) - 1) / Int(GYRE_ADAMW_CHUNK)
  }

  mutating func run(_ launch: CUDALaunch) {
    guard !entries.isEmpty else { return }
    let table = entries.withUnsafeBytes { launch.upload($0) }
    launch.run(
      Self.function, grid: (chunks, 1, 1), gyre_adamw_args(entries: entries.count, entry: table))
    for (call, e) in zip(calls, entries) {
      for t in call.outputs[(e.shadow == 0 ? 0 : 1)...] { t.cudaBuffer?.changed() }
    }
    shadows.removeAll(keepingCapacity: true)
    entries.removeAll(keepingCapacity: true)
    calls.removeAll(keepingCapacity: true)
    chunks = 0
  }
}
