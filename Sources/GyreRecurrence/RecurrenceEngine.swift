import GyreTensors

/// One recurrence, evaluated in any form. Speed work happens here; mixers only make the inputs.
///
/// Inputs are `[B, T, …]` float32. State entries are read from and written back to `state`; an
/// absent entry is the initial value. All gradients flow, to the initial state as well.
public protocol RecurrenceEngine: Sendable {
  associatedtype Inputs: Sendable
  var stateSpec: StateSpec { get }
  /// Evaluates the recurrence on what it consumes at each token.
  ///
  /// - Parameters:
  ///   - state: read before the first token, replaced by the state after the last.
  ///   - form: how to evaluate.
  ///   - reset: int32 `[B, T]`, nonzero where the state becomes its initial value before the token
  ///     (a document boundary); nil for none.
  /// - Returns: the outputs over time.
  func callAsFunction(
    _ inputs: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor
}
