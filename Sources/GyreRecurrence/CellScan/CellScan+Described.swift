import GyreTensors

/// The same cells as code: for what the fused kernels do not do.
extension CellScan.Cell {
  /// The description with the same gates, states and results; nil for sLSTM, whose description has
  /// other states.
  public var described: (any Cell)? {
    switch self {
    case .elmanTanh: return Elman()
    case .elmanReLU:
      var cell = Elman()
      cell.activation = .relu
      return cell
    case .gru, .gruOriginal:
      var cell = GatedRecurrentUnit()
      cell.resetsBefore = self == .gruOriginal
      return cell
    case .lstm: return LongShortTermMemory()
    case .slstm: return nil
    }
  }
}

extension CellScan {
  /// The described cell's engine; nil where there is none.
  static func described(
    _ cell: Cell, hiddenSize: Int, heads: Int, execution: CellExecution, noise: CellNoise
  ) -> RecurrentCell? {
    cell.described.map {
      RecurrentCell(
        $0.description(hidden: hiddenSize, heads: heads, matrix: .dense).with(noise),
        execution: execution)
    }
  }

  /// Pre-activations with what the fused kernels add themselves, and R gate by gate.
  func arguments(_ i: Inputs, _ noise: [Tensor]) -> RecurrentCell.Inputs {
    let (H, G) = (hiddenSize, cell.gateCount)
    let units = H / heads
    var gates = i.gates
    var parameters: [Tensor] = []
    if cell == .gru {
      // The candidate's recurrent bias is inside the reset gate's product.
      let zeros = Tensor.zeros([H], on: gates.device)
      let parts = i.recurrentBias?.split([2 * H, H])
      if let parts { gates = gates + concatenated([parts[0], zeros]) }
      parameters = [parts?[1] ?? zeros]
    } else if let bias = i.recurrentBias {
      gates = gates + bias
    }
    let matrices = i.recurrentWeight.reshaped([heads, G * units, units])
      .split([Int](repeating: units, count: G), axis: 1)
    return RecurrentCell.Inputs(
      gates: noise.isEmpty ? gates : concatenated([gates] + noise), matrices: matrices,
      parameters: parameters)
  }
}
