import GyreLayers
import GyreRecurrence
import GyreTensors

/// 1 at the first token of each document of `x` `[B, T, …]`, as `[B, T, 1]`; nil where no token is one.
func documentStarts(_ x: Tensor, isFresh: Bool, reset: Tensor?) -> Tensor? {
  let (batch, tokens) = (x.shape[0], x.shape[1])
  var starts = reset.map { $0.cast(to: .float32).reshaped([batch, tokens, 1]) }
  if isFresh, tokens > 0 {
    let first = Tensor(
      (0..<tokens).map { $0 == 0 ? Float(1) : 0 }, shape: [tokens, 1], on: x.device)
    starts =
      starts.map { $0.maximum(first) }
      ?? (Tensor.zeros([batch, tokens, 1], on: x.device) + first)
  }
  return starts
}

/// Counts the tokens of a document on the device: 1 at its first one.
///
/// State: "count" `[1]`, exact up to 2²⁴ tokens.
struct TokenCounter: Sendable {
  private let scan = DiagonalScan(channels: 1)
  static let entry = "count"

  var stateSpec: StateSpec { StateSpec([.init(Self.entry, [1])]) }

  /// `[B, T, 1]`, not differentiable.
  func callAsFunction(like x: Tensor, state: inout State, context: SequenceContext) -> Tensor {
    let one = Tensor.full(1, [1], on: x.device)
    var part = State(scan.stateSpec, batch: state.batch)
    part["h"] = state[Self.entry]
    let counts = scan(
      .init(
        decay: one, decayIsLog: false, input: .full(1, [x.shape[0], x.shape[1], 1], on: x.device)),
      state: &part, form: context.form, reset: context.reset)
    state[Self.entry] = part["h"]?.detached()
    return counts.detached()
  }
}

/// The tokens of a call with those just before, for taps at any distance.
struct PastTokens: Sendable {
  private let all, counts: Tensor
  private let reach, tokens: Int

  /// - Parameters:
  ///   - x: `[B, T, D]`.
  ///   - tail: the last `reach` tokens before, `[B, reach, D]`.
  ///   - counts: of `TokenCounter`.
  init(_ x: Tensor, tail: Tensor, counts: Tensor) {
    all = concatenated([tail, x], axis: 1)
    (reach, tokens, self.counts) = (tail.shape[1], x.shape[1], counts)
  }

  /// The tail of the next call.
  var tail: Tensor { all.end(reach) }

  /// x_{t−n}, zero where it lies before the document.
  func back(_ n: Int) -> Tensor {
    guard n > 0 else { return all.end(tokens) }
    // Slices that tile an axis have a gradient that tiles it.
    let past = all.split([reach - n, tokens, n], axis: 1)[1]
    return past * (counts - Double(n)).clamped(0, 1)
  }
}

extension RecurrenceEngine {
  /// Runs the engine on the part of `state` under a prefix, or on all of it where that is empty.
  func scoped(
    _ inputs: Inputs, _ prefix: String, _ state: inout State, _ context: SequenceContext
  ) -> Tensor {
    var part = state.sibling(stateSpec)
    let path = prefix.isEmpty ? "" : prefix + "."
    for entry in stateSpec.entries { part[entry.name] = state[path + entry.name] }
    let y = self(inputs, state: &part, form: context.form, reset: context.reset)
    for entry in stateSpec.entries { state[path + entry.name] = part[entry.name] }
    return y
  }
}
