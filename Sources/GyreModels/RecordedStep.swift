import GyreRecurrence
import GyreTensors

/// One recurrent step of a model, recorded once and queued again for every token: the cost of a launch
/// is paid once a token rather than once a kernel. States whose kernel reads every element before it writes
/// it are changed where they lie (`Overwriting`).
public struct RecordedStep {
  private let token: Tensor
  private let logits: Tensor
  private let work: any RecordedWork
  /// The tensors that hold the state from step to step.
  private let state: ModelState

  /// Records a step that goes on from `state`; nil where the device does not record, or the state
  /// grows with the tokens.
  ///
  /// - Parameter tokens: where given, each step reads what the one before found most probable, these
  ///   tokens first.
  public init?(_ model: LanguageModel, from state: ModelState, reading tokens: [Int32]? = nil) {
    let isFixed = state.layers.allSatisfy { layer in
      layer.spec.entries.allSatisfy { entry in
        if case .cache = entry.kind { return false }
        return layer[entry.name] != nil
      }
    }
    // An empty recording tells whether the device records at all.
    guard isFixed, !state.layers.isEmpty, model.device.record({}) != nil else { return nil }
    var own = state
    for i in own.layers.indices {
      for (name, tensor) in own.layers[i].tensors { own.layers[i][name] = tensor.affine(1) }
    }
    let token = Tensor(
      tokens ?? [Int32](repeating: 0, count: state.batch), shape: [state.batch, 1], on: model.device
    )
    var result: Tensor?
    // What the first run prepares (compiled kernels, converted weights) is not part of a recording.
    var trial = own
    let first = model.logits(model.hidden(token, state: &trial, form: .recurrent))
    if tokens != nil { _ = first.argmax() }
    let work = model.device.record {
      var next = own
      let hidden = Overwriting.storage(of: own.layers.flatMap { $0.tensors.map(\.tensor) }) {
        model.hidden(token, state: &next, form: .recurrent)
      }
      let logits = model.logits(hidden)
      result = logits
      if tokens != nil { token.assign(logits.argmax().reshaped(token.shape)) }
      for i in own.layers.indices {
        for (name, tensor) in own.layers[i].tensors {
          if let new = next.layers[i][name] { tensor.assign(new) }
        }
      }
    }
    guard let work, let result else { return nil }
    self.token = token
    self.work = work
    self.state = own
    logits = result
  }

  /// Queues a step that reads what the last one found.
  public func replay() { work.replay() }

  /// The logits after one more token of each sequence.
  public func next(_ tokens: [Int32]) throws(DeviceError) -> [Float] {
    precondition(tokens.count == token.elementCount, "recorded step: one token a sequence")
    guard let buffer = token.buffer else { return try logits.floats() }
    tokens.withUnsafeBytes { token.device.write($0, to: buffer, offset: 0) }
    work.replay()
    return try logits.floats()
  }
}
