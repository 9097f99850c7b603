import GyreRecurrence
import GyreTensors

/// One step of a model, recorded once and queued again for every token: the cost of a launch is paid once a
/// token rather than once a kernel. States whose kernel reads every element before it writes it are changed
/// where they lie (`Overwriting`). Caches of attention have room for more tokens and the position lies on the
/// device (`CacheStep`); when the room is used up they move to larger ones, and the step is recorded anew.
public final class RecordedStep {
  private let model: LanguageModel
  private let token: Tensor
  /// Whether each step reads what the one before found most probable.
  private let feedsItself: Bool
  /// Tokens that caches get more room for at least.
  private let room: Int
  /// Tokens before the next one, float32 `[1]`, and the same on the host.
  private let position: Tensor
  private var count: Int
  /// Tokens that caches have room for; nil without caches.
  private var capacity: Int?
  private var logits: Tensor
  private var work: any RecordedWork
  /// The tensors that hold the state from step to step.
  private var state: ModelState

  /// Records a step that goes on from `state`; nil where the device does not record, or some state grows
  /// with the tokens in a way that is not recorded.
  ///
  /// - Parameters:
  ///   - tokens: where given, each step reads what the one before found most probable, these tokens
  ///     first.
  ///   - room: tokens that caches get more room for at least, each time that they grow.
  public init?(
    _ model: LanguageModel, from state: ModelState, reading tokens: [Int32]? = nil, room: Int = 64
  ) {
    // An empty recording tells whether the device records at all.
    guard !state.layers.isEmpty, room > 0, model.device.record({}) != nil else { return nil }
    var count: Int?
    for layer in state.layers {
      for entry in layer.spec.entries {
        if case .cache(let limit, let every) = entry.kind {
          guard let cache = layer[entry.name] else { continue }
          // All caches have every token.
          guard limit == nil, every == 1, count == nil || count == cache.shape[1] else {
            return nil
          }
          count = cache.shape[1]
        } else if layer[entry.name] == nil {
          return nil
        }
      }
    }
    // Caches move to larger memory below; what else there is belongs to the step from now on.
    var own = state
    for i in own.layers.indices {
      for entry in own.layers[i].spec.entries {
        if case .cache = entry.kind { continue }
        own.layers[i][entry.name] = own.layers[i][entry.name]?.affine(1)
      }
    }
    let capacity = count.map { RecordedStep.capacity(after: $0, room) }
    if let capacity { RecordedStep.grow(&own, to: capacity) }
    let token = Tensor(
      tokens ?? [Int32](repeating: 0, count: state.batch), shape: [state.batch, 1], on: model.device
    )
    let position = Tensor([Float(count ?? 0)], shape: [1], on: model.device)
    let feedsItself = tokens != nil
    guard
      let (logits, work) = RecordedStep.record(
        model, own, token, position, feedsItself: feedsItself)
    else { return nil }
    (self.model, self.token, self.position) = (model, token, position)
    (self.room, self.feedsItself) = (room, feedsItself)
    (self.count, self.capacity) = (count ?? 0, capacity)
    (self.state, self.logits, self.work) = (own, logits, work)
  }

  private static func capacity(after count: Int, _ room: Int) -> Int {
    count + max(room, count / 8 / 64 * 64)
  }

  /// Moves caches to memory with room for so many tokens, one after the other.
  private static func grow(_ state: inout ModelState, to capacity: Int) {
    for i in state.layers.indices {
      for entry in state.layers[i].spec.entries {
        guard case .cache = entry.kind, let cache = state.layers[i][entry.name] else { continue }
        state.layers[i][entry.name] = cache.extended(to: capacity)
      }
    }
  }

  private static func record(
    _ model: LanguageModel, _ state: ModelState, _ token: Tensor, _ position: Tensor,
    feedsItself: Bool
  ) -> (logits: Tensor, work: any RecordedWork)? {
    let step = CacheStep(position: position)
    func run(_ state: inout ModelState) -> Tensor {
      CacheStep.$current.withValue(step) {
        model.hidden(token, state: &state, form: .recurrent)
      }
    }
    // What the first run prepares (compiled kernels, converted weights) is not part of a recording.
    var trial = state
    let first = model.logits(run(&trial))
    if feedsItself { _ = first.argmax() }
    for layer in state.layers {
      for entry in layer.spec.entries {
        if case .cache = entry.kind, let cache = layer[entry.name], !step.hasWritten(cache) {
          return nil
        }
      }
    }
    var result: Tensor?
    let work = model.device.record {
      var next = state
      let hidden = Overwriting.storage(of: state.layers.flatMap { $0.tensors.map(\.tensor) }) {
        run(&next)
      }
      let logits = model.logits(hidden)
      result = logits
      if feedsItself { token.assign(logits.argmax().reshaped(token.shape)) }
      Tensor.assign(
        state.layers.indices.flatMap { i in
          state.layers[i].tensors.compactMap { name, tensor in
            next.layers[i][name].map { (target: tensor, source: $0) }
          }
        })
      position.assign(position.affine(1, 1))
    }
    guard let work, let result else { return nil }
    return (result, work)
  }

  /// Queues a step that reads what the last one found.
  ///
  /// - Throws: `kernelFailed` when the step cannot be recorded again for larger caches.
  public func replay() throws(DeviceError) {
    if let capacity, count == capacity {
      let larger = Self.capacity(after: count, room)
      Self.grow(&state, to: larger)
      self.capacity = larger
      guard
        let (logits, work) = Self.record(model, state, token, position, feedsItself: feedsItself)
      else {
        try model.device.synchronize()
        throw .kernelFailed(
          kernel: "recorded step", device: model.device.id.name,
          reason: "it was not recorded again for caches of \(larger) tokens")
      }
      (self.logits, self.work) = (logits, work)
    }
    work.replay()
    count += 1
  }

  /// The logits after one more token of each sequence.
  public func next(_ tokens: [Int32]) throws(DeviceError) -> [Float] {
    precondition(tokens.count == token.elementCount, "recorded step: one token a sequence")
    guard let buffer = token.buffer else { return try logits.floats() }
    tokens.withUnsafeBytes { token.device.write($0, to: buffer, offset: 0) }
    try replay()
    return try logits.floats()
  }
}

extension Tensor {
  /// The same entries of axis 1, followed by entries that nobody has written.
  fileprivate func extended(to count: Int) -> Tensor {
    var spec = TensorSpec(shape, dtype)
    spec.shape[1] = count - shape[1]
    return concatenated([self, Tensor(emptyWith: spec, on: device)], axis: 1)
  }
}
