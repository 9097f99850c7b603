import GyreCheckpoints
import GyreLayers
import GyreRecurrence
import GyreTensors

/// The classical recurrent layers as frameworks store them.
public enum RecurrentKind: String, Sendable, Hashable, Codable, CaseIterable {
  case rnnTanh, rnnReLU, lstm
  /// n = tanh(W x + b + r ∘ (R h + b')), as torch.nn.GRU.
  case gru
  /// n = tanh(W x + b + R (r ∘ h) + b').
  case gruResetBefore

  var cell: CellScan.Cell {
    switch self {
    case .rnnTanh: .elmanTanh
    case .rnnReLU: .elmanReLU
    case .lstm: .lstm
    case .gru: .gru
    case .gruResetBefore: .gruOriginal
    }
  }
  /// Blocks of gate rows.
  public var gates: Int { cell.gateCount }
}

/// One direction of one layer, in the layout of torch.nn: gate rows one after the other (LSTM i, f, g,
/// o; GRU r, z, n), one row an output.
public struct RecurrentWeights: Sendable {
  /// `[G·H, inputs]`.
  public var input: Tensor
  /// `[G·H, H]`, or `[G·H, P]` with a projection.
  public var recurrent: Tensor
  /// `[G·H]` each.
  public var inputBias, recurrentBias: Tensor?
  /// `[P, H]`: LSTM with proj_size.
  public var projection: Tensor?

  public init(
    input: Tensor, recurrent: Tensor, inputBias: Tensor? = nil, recurrentBias: Tensor? = nil,
    projection: Tensor? = nil
  ) {
    (self.input, self.recurrent, self.projection) = (input, recurrent, projection)
    (self.inputBias, self.recurrentBias) = (inputBias, recurrentBias)
  }

  /// Reads `PREFIXweight_ihSUFFIX`, `weight_hh`, and `bias_ih`, `bias_hh`, `weight_hr` where they are:
  /// torch.nn.LSTM has suffixes `_l0`, `_l0_reverse`, torch.nn.LSTMCell none.
  ///
  /// - Throws: `notFound` without the two weights, `unsupported` for types that are not floating point.
  public init(
    torch source: some TensorSource, prefix: String = "", suffix: String = "",
    on device: any Device
  ) throws(CheckpointError) {
    func optional(_ name: String) throws(CheckpointError) -> Tensor? {
      let full = prefix + name + suffix
      return source.contains(full) ? try source.tensor(full, on: device) : nil
    }
    self.init(
      input: try source.tensor(prefix + "weight_ih" + suffix, on: device),
      recurrent: try source.tensor(prefix + "weight_hh" + suffix, on: device),
      inputBias: try optional("bias_ih"), recurrentBias: try optional("bias_hh"),
      projection: try optional("weight_hr"))
  }

  /// - Throws: `invalid` where the shapes are not those of a layer of this kind; `subject` names it.
  func validate(_ kind: RecurrentKind, inputs: Int?, subject: String) throws(CheckpointError) {
    func demand(_ condition: Bool, _ what: String, _ t: Tensor?, _ wanted: String)
      throws(CheckpointError)
    {
      guard condition else {
        throw .invalid(
          subject: subject,
          reason: "\(what) is \(t.map { "\($0.shape)" } ?? "absent"), not \(wanted)")
      }
    }
    let rows = input.rank == 2 ? input.shape[0] : 0
    try demand(
      rows > 0 && rows % kind.gates == 0, "the input weight", input, "[\(kind.gates)·H, inputs]")
    if let inputs {
      try demand(input.shape[1] == inputs, "the input weight", input, "[\(rows), \(inputs)]")
    }
    let hidden = rows / kind.gates
    let outputs = projection?.shape.dimensions.first ?? hidden
    try demand(
      projection == nil || (kind == .lstm && projection?.shape == [outputs, hidden]),
      "the projection", projection, "[P, \(hidden)] of an LSTM")
    try demand(
      recurrent.shape == [rows, outputs], "the recurrent weight", recurrent, "[\(rows), \(outputs)]"
    )
    for bias in [inputBias, recurrentBias] {
      try demand(bias == nil || bias?.shape == [rows], "a bias", bias, "[\(rows)]")
    }
  }
}

extension TensorSource {
  /// A stored floating-point tensor as float32 on a device.
  ///
  /// - Throws: `notFound`; `unsupported` for other types.
  public func tensor(_ name: String, on device: any Device) throws(CheckpointError) -> Tensor {
    Tensor(try readFloat32(name), shape: try info(name).shape, on: device)
  }
}
