import GyreModels
import GyreRecurrence
import GyreTensors
import GyreTokenizers

extension LanguageModel {
  /// What goes on from a state on the device in the task's current precision; nil where the model or
  /// the device has no such form.
  public func makeRunner(from state: ModelState, _ draw: TokenDraw) -> (any TokenRunner)? {
    guard Perturbation.current == nil, let device = device as? any TokenProgramDevice,
      let (program, logits) = tokenProgram(from: state)
    else { return nil }
    return device.makeRunner(
      program, logits: logits, vocabulary: configuration.vocabulary, position: state.tokenCount,
      precision: ComputePrecision.current, draw: draw)
  }
}

/// Greedy decoding of a batch, the tokens staying on the device, in the best way there is: a token
/// program, a recorded step, or op by op.
public struct Decoder {
  public enum Way: String, Sendable, Codable {
    case program, graph
    case ops = "op by op"
  }
  private let model: LanguageModel
  private let runner: (any TokenRunner)?
  private let recorded: RecordedStep?
  private var state: ModelState
  private var token: Tensor
  private var isStarted = false
  /// What the next step reads, unless the device drew it.
  private var next: [Int32]

  /// Goes on from `state` in the task's current precision with one token a sequence.
  public init(_ model: LanguageModel, from state: ModelState, reading tokens: [Int32]) {
    self.model = model
    self.state = state
    next = tokens
    token = Tensor(tokens, shape: [state.batch, 1], on: model.device)
    runner = model.makeRunner(from: state, TokenDraw())
    recorded = runner == nil ? RecordedStep(model, from: state, reading: tokens) : nil
  }

  public var way: Way { runner != nil ? .program : recorded != nil ? .graph : .ops }

  /// Queues one step.
  public mutating func step() throws(DeviceError) {
    if let runner = runner as? any DrawingTokenRunner {
      // A few steps may be under way.
      if runner.queued >= 4 { _ = try runner.drawnTokens() }
      runner.queueStep(reading: isStarted ? nil : next)
      isStarted = true
    } else if let runner {
      let logits = try runner.logits(after: next)
      let vocabulary = model.configuration.vocabulary
      next = next.indices.map { row in
        let own = logits[row * vocabulary..<(row + 1) * vocabulary]
        let best = own.indices.max { own[$0] < own[$1] } ?? own.startIndex
        return Int32(best - own.startIndex)
      }
    } else if let recorded {
      try recorded.replay()
    } else {
      let logits = model.logits(model.hidden(token, state: &state, form: .recurrent))
      token = logits.argmax().reshaped([state.batch, 1])
    }
  }
}
