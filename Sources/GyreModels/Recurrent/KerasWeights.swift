import GyreCheckpoints
import GyreTensors

/// Keras stores one column an output, gates of an LSTM as i, f, c, o and of a GRU as z, r, h, and one
/// bias, or two rows of it for a GRU that resets after the product.
extension RecurrentWeights {
  /// Reads the arrays of `keras.layers.LSTM`, `GRU` or `SimpleRNN` by their names.
  ///
  /// - Parameters:
  ///   - kernel: `[inputs, G·H]`.
  ///   - recurrentKernel: `[H, G·H]`.
  ///   - bias: `[G·H]`, `[2, G·H]` for `gru`; nil for layers without.
  /// - Throws: `notFound`; `unsupported` types; `invalid` for shapes that do not belong to the kind.
  public init(
    keras source: some TensorSource, _ kind: RecurrentKind, kernel: String, recurrentKernel: String,
    bias: String?, on device: any Device
  ) throws(CheckpointError) {
    let (inputShape, shape) = (
      try source.info(kernel).shape, try source.info(recurrentKernel).shape
    )
    let G = kind.gates
    guard inputShape.rank == 2, shape.rank == 2, shape[1] == G * shape[0],
      inputShape[1] == shape[1]
    else {
      throw .invalid(
        subject: "\(kernel), \(recurrentKernel)",
        reason: "\(inputShape) and \(shape) are not [inputs, \(G)·H] and [H, \(G)·H]")
    }
    let hidden = shape[0]
    /// Which block of Keras is block g here.
    let order = G == 3 ? [1, 0, 2] : Array(0..<G)
    func rows(_ name: String, _ shape: Shape) throws(CheckpointError) -> Tensor {
      let columns = try source.readFloat32(name)
      let inputs = shape[0]
      var values = [Float](repeating: 0, count: columns.count)
      for (g, from) in order.enumerated() {
        for u in 0..<hidden {
          for i in 0..<inputs {
            values[(g * hidden + u) * inputs + i] = columns[(i * G + from) * hidden + u]
          }
        }
      }
      return Tensor(values, shape: [G * hidden, inputs], on: device)
    }
    func ordered(_ part: ArraySlice<Float>) -> Tensor {
      let start = part.startIndex
      return Tensor(
        order.flatMap { part[start + $0 * hidden..<start + ($0 + 1) * hidden] },
        shape: [G * hidden], on: device)
    }
    var biases: (Tensor?, Tensor?) = (nil, nil)
    if let bias {
      let values = try source.readFloat32(bias)
      let expected = kind == .gru ? 2 * G * hidden : G * hidden
      guard values.count == expected else {
        throw .invalid(
          subject: bias,
          reason: "\(try source.info(bias).shape) has not \(expected) elements; a GRU has two rows "
            + "where it resets after the product and one where before")
      }
      biases.0 = ordered(values[..<(G * hidden)])
      if kind == .gru { biases.1 = ordered(values[(G * hidden)...]) }
    }
    self.init(
      input: try rows(kernel, inputShape), recurrent: try rows(recurrentKernel, shape),
      inputBias: biases.0, recurrentBias: biases.1)
    try validate(kind, inputs: nil, subject: kernel)
  }
}
