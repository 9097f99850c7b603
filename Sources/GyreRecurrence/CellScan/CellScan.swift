import GyreTensors

/// The classical recurrent cells: a recurrent product and point-wise gates at every token,
///
///     (hₜ, cₜ) = cell(xₜ + R hₜ₋₁ + b, cₜ₋₁)
///
/// with x = W·input + b_ih made beforehand for all tokens by one product. The recurrence is not
/// linear, so every form runs token by token. Elman, 1990; Hochreiter and Schmidhuber, 1997; Cho et
/// al., 2014.
///
/// State: "h" `[H]`, for LSTM also "c" `[H]`, for sLSTM "c", "n" and "m" `[H]`. 2·G·H·(H / heads) flops a token.
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
    /// Exponential gates with stabiliser m (Beck et al., "xLSTM", 2024):
    /// m' = max(ln σ(a_f) + m, a_i), or a_i where n = 0; i = e^(a_i − m'), f = e^(ln σ(a_f) + m − m');
    /// c = f ∘ c + i ∘ tanh(a_z); n = f ∘ n + i; h = σ(a_o) ∘ c / n. Rows i, f, z, o. m only says how
    /// c and n are scaled: derivatives take it as given.
    case slstm

    /// Blocks of gate rows G.
    public var gateCount: Int {
      switch self {
      case .elmanTanh, .elmanReLU: 1
      case .gru, .gruOriginal: 3
      case .lstm, .slstm: 4
      }
    }
    /// What the cell remembers beside h.
    public var memories: [String] {
      switch self {
      case .lstm: ["c"]
      case .slstm: ["c", "n", "m"]
      case .elmanTanh, .elmanReLU, .gru, .gruOriginal: []
      }
    }
    /// Whether the cell has a memory beside h.
    public var hasMemory: Bool { !memories.isEmpty }
    /// Whether Rₙ h + bₙ has a cotangent of its own.
    public var isGRU: Bool { self == .gru || self == .gruOriginal }
  }

  public let cell: Cell
  public let hiddenSize: Int
  public let heads: Int
  public let execution: CellExecution
  /// The inputs beside the gates that `callAsFunction` takes as `noise`.
  public let noise: CellNoise
  /// All tokens at once, and random choices inside the recurrence.
  private let code: RecurrentCell?

  /// - Precondition: `heads` divides `hiddenSize`; sLSTM takes no noise.
  public init(
    cell: Cell, hiddenSize: Int, heads: Int = 1, execution: CellExecution = .automatic,
    noise: CellNoise = CellNoise()
  ) {
    precondition(
      heads > 0 && hiddenSize % heads == 0, "cell: \(heads) heads do not divide \(hiddenSize)")
    precondition(noise == CellNoise() || cell != .slstm, "cell: slstm takes no noise")
    self.cell = cell
    self.hiddenSize = hiddenSize
    self.heads = heads
    self.execution = execution
    self.noise = noise
    code = CellScan.described(
      cell, hiddenSize: hiddenSize, heads: heads, execution: execution, noise: noise)
  }

  /// The inputs beside the gates, in their order: name and units.
  public var noiseInputs: [(name: String, width: Int)] {
    guard let parts = code?.plan.parts else { return [] }
    return parts.inputs.dropFirst(cell.gateCount).map { ($0.name, parts.spaces[$0.space]) }
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
    StateSpec((["h"] + cell.memories).map { .init($0, [hiddenSize]) })
  }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    callAsFunction(i, noise: [], state: &state, form: form, reset: reset)
  }

  /// - Parameters:
  ///   - values: the noise, `[B, T, width]` each, as `noiseInputs` names them.
  ///   - output: the element type of h where gates are bfloat16 on a device that stores float32.
  ///   - isTimeMajor: gates, resets and h are `[T, B, ·]`; token by token and without noise.
  public func callAsFunction(
    _ i: Inputs, noise values: [Tensor], state: inout State, form: SequenceForm, reset: Tensor?,
    output: DType = .float32, isTimeMajor: Bool = false
  ) -> Tensor {
    precondition(values.count == noiseInputs.count, "cell: \(values.count) noise inputs")
    precondition(!isTimeMajor || takesTimeMajor, "cell: noise or another execution, time-major")
    if var code, !values.isEmpty || (!isTimeMajor && isNewton(i.gates, form)) {
      if values.isEmpty { code.execution = .newton }
      return code(arguments(i, values), state: &state, form: form, reset: reset)
    }
    func memory(_ name: String) -> Tensor? {
      cell.memories.contains(name) ? state[name] : nil
    }
    let inputs = [
      i.gates, i.recurrentWeight, i.recurrentBias, state["h"], memory("c"), reset, memory("n"),
      memory("m"),
    ]
    // Devices that store activations so have kernels of their own for what is kept.
    let kept = i.gates.device.storesBFloat16 ? .float32 : i.gates.dtype
    let op = CellForward(
      cell: cell, heads: heads, precision: ComputePrecision.current,
      keepsGates: Tape.current != nil, optional: OptionalInputs(inputs.map { $0 != nil }),
      kept: kept, output: kept == .bfloat16 ? output : .float32, isTimeMajor: isTimeMajor)
    let outputs = applyPresent(op, inputs)
    state["h"] = outputs[1]
    for (k, name) in cell.memories.enumerated() { state[name] = outputs[2 + k] }
    return outputs[0]
  }

  /// Whether all tokens may come as `[T, B, ·]`.
  public var takesTimeMajor: Bool { noiseInputs.isEmpty && execution != .newton }

  /// Whether gates `[B, T, ·]` like `x` may be bfloat16 where products read it: kernels of the LSTM and the
  /// GRU take them on every device.
  package func takesRoundedGates(like x: Tensor) -> Bool {
    (cell == .lstm || cell == .gru) && heads == 1 && noiseInputs.isEmpty && x.note == nil
      && !isNewton(x, .parallel)
  }

  private func isNewton(_ gates: Tensor, _ form: SequenceForm) -> Bool {
    form != .recurrent
      && execution.isNewton(
        .fused, rows: gates.shape[0], channels: hiddenSize, tokens: gates.shape[1],
        on: gates.device)
  }
}
