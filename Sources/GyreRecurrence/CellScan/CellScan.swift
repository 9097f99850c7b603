import GyreTensors

/// The classical recurrent cells: a recurrent product and point-wise gates at every token,
///
///     (hₜ, cₜ) = cell(xₜ + R hₜ₋₁ + b, cₜ₋₁)
///
/// with x = W·input + b_ih made beforehand for all tokens by one product. The recurrence is not
/// linear, so every form runs token by token. Elman, 1990; Hochreiter and Schmidhuber, 1997; Cho et
/// al., 2014.
///
/// State: "h" `[H]`, for LSTM also "c" `[H]`. 2·G·H·(H / heads) flops a token.
public struct CellScan: RecurrenceEngine {
  public enum Cell: String, Sendable, Hashable, Codable, CaseIterable {
    /// h = tanh(a).
    case elmanTanh
    /// h = max(a, 0).
    case elmanReLU
    /// r, z = σ(a); n = tanh(xₙ + r ∘ (Rₙ h + bₙ)); h = (1 − z) ∘ n + z ∘ h. Rows r, z, n.
    case gru
    /// As `gru` with n = tanh(xₙ + Rₙ (r ∘ h) + bₙ): the reset gate before the product.
    case gruOriginal
    /// i, f, o = σ(a), g = tanh(a); c = f ∘ c + i ∘ g; h = o ∘ tanh c. Rows i, f, g, o.
    case lstm

    /// Blocks of gate rows G.
    public var gateCount: Int {
      switch self {
      case .elmanTanh, .elmanReLU: 1
      case .gru, .gruOriginal: 3
      case .lstm: 4
      }
    }
    /// Whether the cell has a memory beside h.
    public var hasMemory: Bool { self == .lstm }
    /// Whether Rₙ h + bₙ has a cotangent of its own.
    public var isGRU: Bool { self == .gru || self == .gruOriginal }
  }

  public let cell: Cell
  public let hiddenSize: Int
  public let heads: Int

  /// - Precondition: `heads` divides `hiddenSize`.
  public init(cell: Cell, hiddenSize: Int, heads: Int = 1) {
    precondition(
      heads > 0 && hiddenSize % heads == 0, "cell: \(heads) heads do not divide \(hiddenSize)")
    self.cell = cell
    self.hiddenSize = hiddenSize
    self.heads = heads
  }

  public struct Inputs: Sendable {
    /// W x + b_ih `[B, T, G·H]`, gate after gate.
    public var gates: Tensor
    /// R `[G·H, H]`, or `[heads, G·Hh, Hh]` with the gates of a head one after the other.
    public var recurrentWeight: Tensor
    /// b_hh `[G·H]`.
    public var recurrentBias: Tensor?
    public init(gates: Tensor, recurrentWeight: Tensor, recurrentBias: Tensor? = nil) {
      self.gates = gates
      self.recurrentWeight = recurrentWeight
      self.recurrentBias = recurrentBias
    }
  }

  public var stateSpec: StateSpec {
    StateSpec([.init("h", [hiddenSize])] + (cell.hasMemory ? [.init("c", [hiddenSize])] : []))
  }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let inputs = [
      i.gates, i.recurrentWeight, i.recurrentBias, state["h"],
      cell.hasMemory ? state["c"] : nil, reset,
    ]
    let op = CellForward(
      cell: cell, heads: heads, precision: ComputePrecision.current,
      keepsGates: Tape.current != nil, optional: OptionalInputs(inputs.map { $0 != nil }))
    let outputs = applyPresent(op, inputs)
    state["h"] = outputs[1]
    if cell.hasMemory { state["c"] = outputs[2] }
    return outputs[0]
  }
}
