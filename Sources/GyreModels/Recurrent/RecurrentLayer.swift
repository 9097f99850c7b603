import GyreCheckpoints
import GyreLayers
import GyreRecurrence
import GyreTensors

/// One direction of one classical recurrent layer with given weights. Gradients flow to the weights,
/// the input and the state.
///
/// State: "h" `[H]` (`[P]` with a projection) and for LSTM "c" `[H]`.
public struct RecurrentLayer: Sendable {
  public let kind: RecurrentKind
  public let weights: RecurrentWeights
  public let hiddenSize: Int
  /// Inputs and outputs a token.
  public var inputs: Int { weights.input.shape[1] }
  public var outputs: Int { weights.projection?.shape[0] ?? hiddenSize }
  private let engine: Engine

  private enum Engine: Sendable {
    case scan(CellScan)
    case projected(RecurrentCell)
  }

  /// - Throws: `invalid` where the shapes are not those of a layer of this kind.
  public init(
    _ kind: RecurrentKind, _ weights: RecurrentWeights, name: String = "recurrent layer"
  ) throws(CheckpointError) {
    try weights.validate(kind, inputs: nil, subject: name)
    self.kind = kind
    self.weights = weights
    hiddenSize = weights.input.shape[0] / kind.gates
    if let projection = weights.projection {
      let cell = ProjectedLSTM(projection: projection.shape[0])
      engine = .projected(RecurrentCell(cell.description(hidden: hiddenSize)))
    } else {
      engine = .scan(CellScan(cell: kind.cell, hiddenSize: hiddenSize))
    }
  }

  public var stateSpec: StateSpec {
    switch engine {
    case .scan(let scan): scan.stateSpec
    case .projected(let cell): cell.stateSpec
    }
  }

  /// `[B, T, inputs]` to `[B, T, outputs]`; reads and replaces `state`.
  ///
  /// - Precondition: the last axis of x has `inputs` elements.
  public func callAsFunction(
    _ x: Tensor, state: inout State, form: SequenceForm = .recurrent, reset: Tensor? = nil
  ) -> Tensor {
    switch engine {
    case .scan(let scan):
      return scan(
        .init(
          gates: x.linear(weights.input, bias: weights.inputBias),
          recurrentWeight: weights.recurrent, recurrentBias: weights.recurrentBias),
        state: &state, form: form, reset: reset)
    case .projected(let cell):
      // Both biases are added to the same sums.
      let biases = [weights.inputBias, weights.recurrentBias].compactMap(\.self)
      let bias = biases.dropFirst().reduce(biases.first) { sum, b in sum.map { $0 + b } }
      let (H, P) = (hiddenSize, outputs)
      let blocks = weights.recurrent.split([H, H, H, H], axis: 0).map { $0.reshaped([1, H, P]) }
      let projection = weights.projection.map { [$0.reshaped([1, P, H])] } ?? []
      return cell(
        .init(
          gates: x.linear(weights.input, bias: bias), matrices: blocks + projection, parameters: []),
        state: &state, form: form, reset: reset)
    }
  }
}
