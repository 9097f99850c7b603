import GyreCheckpoints
import GyreLayers
import GyreRecurrence
import GyreTensors

/// The sLSTM layer of NX-AI's `xlstm` package with given weights: a short convolution before the input
/// and forget gates, gate maps and recurrent matrices by heads, a norm a head.
///
/// State: h, c, n and m `[D]`, and the convolution's tail. Gradients flow to the input and the state.
public struct ScalarLSTMLayer: Sendable {
  public let width, heads: Int
  private let convolution: (weight: Tensor, bias: Tensor)?
  /// i, f, z, o: `[heads, D / heads, D / heads]`.
  private let gates: [Tensor]
  private let recurrent, bias: Tensor
  private let normWeight: Tensor?
  private let engine: CellScan

  /// Reads the layer's state dictionary as either backend of the package stores it: `vanilla` has the
  /// recurrent kernel as `[heads, 4·units, units]`, `cuda` as `[heads, units, 4·units]` with the biases
  /// head by head. The tensors called `fgate` and `igate` feed the input and the forget gate: the
  /// package's names are exchanged.
  ///
  /// - Parameter prefix: what precedes "slstm_cell._recurrent_kernel_".
  /// - Throws: `notFound`; `invalid` for shapes that fit no layer.
  public init(
    xlstm source: some TensorSource, prefix: String = "", on device: any Device
  ) throws(CheckpointError) {
    let name = prefix + "slstm_cell._recurrent_kernel_"
    let kernel = try source.tensor(name, on: device)
    let shape = kernel.shape
    guard shape.rank == 3, shape.dimensions.allSatisfy({ $0 > 0 }),
      shape[1] == 4 * shape[2] || shape[2] == 4 * shape[1]
    else {
      throw .invalid(
        subject: name, reason: "\(shape) is not [heads, 4·units, units] or [heads, units, 4·units]")
    }
    let isVanilla = shape[1] == 4 * shape[2]
    heads = shape[0]
    let units = min(shape[1], shape[2])
    width = heads * units
    let D = width
    func read(_ name: String, _ shape: Shape) throws(CheckpointError) -> Tensor {
      let value = try source.tensor(prefix + name, on: device)
      guard value.shape == shape else {
        throw .invalid(
          subject: prefix + name, reason: "\(value.shape) where \(shape) belongs")
      }
      return value
    }
    recurrent = isVanilla ? kernel : kernel.permuted([0, 2, 1])
    let flat = try read("slstm_cell._bias_", [4 * D])
    bias =
      isVanilla
      ? flat : flat.reshaped([heads, 4, units]).permuted([1, 0, 2]).reshaped([4 * D])
    var gates: [Tensor] = []
    for gate in ["fgate", "igate", "zgate", "ogate"] {
      gates.append(try read(gate + ".weight", [heads, units, units]))
    }
    self.gates = gates
    if source.contains(prefix + "conv1d.conv.weight") {
      let info = try source.info(prefix + "conv1d.conv.weight")
      let taps = info.shape.rank == 3 ? info.shape[2] : 0
      let weight = try read("conv1d.conv.weight", [D, 1, max(taps, 1)])
      convolution = (weight.reshaped([D, max(taps, 1)]), try read("conv1d.conv.bias", [D]))
    } else {
      convolution = nil
    }
    normWeight =
      source.contains(prefix + "group_norm.weight") ? try read("group_norm.weight", [D]) + 1 : nil
    engine = CellScan(cell: .slstm, hiddenSize: D, heads: heads)
  }

  public var stateSpec: StateSpec {
    guard let taps = convolution?.weight.shape[1], taps > 1 else { return engine.stateSpec }
    return engine.stateSpec + StateSpec([.init("window", [taps - 1, width], .window)])
  }

  /// `[B, T, D]` to the same; reads and replaces `state`.
  ///
  /// - Precondition: the last axis of x has `width` elements.
  public func callAsFunction(
    _ x: Tensor, state: inout State, form: SequenceForm = .recurrent, reset: Tensor? = nil
  ) -> Tensor {
    var convolved = x
    if let convolution {
      let hasTail = convolution.weight.shape[1] > 1
      let (y, window) = x.shortConvolution(
        convolution.weight, bias: convolution.bias, activation: true,
        window: hasTail ? state["window"] : nil, reset: reset)
      if hasTail { state["window"] = window }
      convolved = y
    }
    let (batch, tokens) = (x.shape[0], x.shape[1])
    let units = width / heads
    func blocks(_ t: Tensor) -> Tensor {
      t.reshaped([batch * tokens, heads, units]).permuted([1, 0, 2])
    }
    let (soft, raw) = (blocks(convolved), blocks(x))
    let parts = gates.enumerated().map { i, weight in
      (i < 2 ? soft : raw).matmul(weight, transposingRight: true).permuted([1, 0, 2])
        .reshaped([batch, tokens, width])
    }
    let h = engine(
      .init(gates: concatenated(parts), recurrentWeight: recurrent, recurrentBias: bias),
      state: &state, form: form, reset: reset)
    let one = normWeight ?? .full(1, [width], on: x.device)
    return h.reshaped([batch, tokens, heads, units]).layerNormalized(weight: one, epsilon: 1e-5)
      .reshaped([batch, tokens, width])
  }
}
