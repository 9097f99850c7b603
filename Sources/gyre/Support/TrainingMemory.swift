import GyreModels
import GyreTensors

/// The memory of one training step, in bytes, counted by running it where nothing is allocated.
struct TrainingMemory: Encodable {
  var parameters, gradients, optimizer, activations, working, peak: Int

  init(_ configuration: ModelConfiguration, batch: Int, length: Int) throws {
    let device = NullDevice()
    let model = try LanguageModel(outline: configuration, on: device)
    parameters = device.memory.inUse
    var step = TrainingStep(model)
    optimizer = device.memory.inUse - parameters
    let fixed = device.memory.inUse
    let tokens = Tensor(emptyWith: TensorSpec([batch, length], .int32), on: device)
    device.resetPeakMemory()
    var kept = 0
    var made = 0
    _ = step.run(tokens, targets: tokens, afterForward: { kept = device.memory.inUse }) {
      made = $0.reduce(0) { $0 + HostAllocatorRounding.bytes($1.byteCount) }
    }
    activations = kept - fixed
    gradients = made
    peak = device.memory.peak
    working = max(0, peak - fixed - activations - gradients)
  }
}

/// The size that allocators round a tensor to; eight classes an octave.
enum HostAllocatorRounding {
  static func bytes(_ count: Int) -> Int {
    let n = max(count, 64)
    let step = max(64, 1 << (Int.bitWidth - 1 - n.leadingZeroBitCount - 3))
    return (n + step - 1) / step * step
  }
}

/// Forward, cross-entropy, backward, clipping at norm 1 and AdamW: what benchmarks and predictions
/// of memory run.
struct TrainingStep {
  let model: LanguageModel
  private let moments: [(first: Tensor, second: Tensor)]
  private var count = 0

  init(_ model: LanguageModel) {
    self.model = model
    moments = model.parameters.map {
      (.zeros($0.shape, on: model.device), .zeros($0.shape, on: model.device))
    }
  }

  /// - Returns: the mean loss in nats, `[1]`.
  @discardableResult
  mutating func run(
    _ tokens: Tensor, targets: Tensor, afterForward: () -> Void = {},
    afterBackward: ([Tensor]) -> Void = { _ in }
  ) -> Tensor {
    count += 1
    let values = model.parameters.map(\.value)
    let tape = Tape()
    tape.watch(values)
    let loss = tape.record {
      var state = model.makeState(batch: tokens.shape[0])
      state.isLast = true
      return model.loss(tokens, targets: targets, state: &state).mean
    }
    afterForward()
    let found = tape.gradients(of: loss, for: values)
    afterBackward(found.compactMap { $0 })
    let present = found.compactMap { $0 }
    guard !present.isEmpty else { return loss }
    let squares = apply(SumOfSquares(), present)[0]
    let one = Tensor.full(1, [1], on: loss.device)
    let factor = one.minimum(one / (squares.unary(.sqrt) + 1e-6))
    for (i, parameter) in model.parameters.enumerated() {
      guard let gradient = found[i] else { continue }
      let op = AdamWStep(
        learningRate: 1e-3, beta1: 0.9, beta2: 0.95, epsilon: 1e-8,
        weightDecay: parameter.decay == .matrix ? 0.1 : 0,
        correction1: 1 - Functions.pow(0.9, Double(count)),
        correction2: 1 - Functions.pow(0.95, Double(count)))
      let targets = [parameter.value, moments[i].first, moments[i].second]
      loss.device.launch(
        KernelCall(op: op, inputs: [gradient, factor] + targets, outputs: targets))
    }
    return loss
  }
}
