import GyreTensors

/// The network that a test-time learner trains: one linear map, or two with gelu (tanh form) between,
/// one for each row and head, biases as a last row of the weights against an input of ones.
///
/// Tensors are `[B·H, n, channels]` over n tokens, weights `[B·H, inputs + 1, outputs]` or without the
/// last row.
struct InnerNetwork: Sendable {
  let layers: Int
  let hasBias: Bool

  func extended(_ x: Tensor) -> Tensor {
    guard hasBias else { return x }
    return concatenated([x, .full(1, [x.shape[0], x.shape[1], 1], on: x.device)])
  }

  /// The output, each layer's product made by `product` from its extended input.
  func output(_ x: Tensor, _ product: (Int, Tensor) -> Tensor) -> Tensor {
    var a = product(0, extended(x))
    for l in 1..<max(layers, 1) { a = product(l, extended(a.unary(.geluTanh))) }
    return a
  }

  /// Each layer's extended input and the gradient of its output, for ½‖network(k) − target‖² or
  /// another loss whose gradient `slope` gives.
  func gradients(
    _ k: Tensor, weights: [Tensor], slope: (Tensor) -> Tensor
  ) -> [(input: Tensor, gradient: Tensor)] {
    var inputs: [Tensor] = []
    var sums: [Tensor] = []
    let z = output(k) { l, a in
      inputs.append(a)
      sums.append(a.matmul(weights[l], precision: .float32))
      return sums[l]
    }
    var gradient = slope(z)
    var result = [(inputs[layers - 1], gradient)]
    for l in stride(from: layers - 1, to: 0, by: -1) {
      let w = weights[l].sliced(0..<sums[l - 1].shape.last, axis: 1)
      gradient =
        gradient.matmul(w, transposingRight: true, precision: .float32)
        * Self.geluSlope(sums[l - 1])
      result.append((inputs[l - 1], gradient))
    }
    return result.reversed().map { (input: $0.0, gradient: $0.1) }
  }

  /// The derivative of gelu in its tanh form, as a function of its own.
  private static func geluSlope(_ x: Tensor) -> Tensor {
    let root = 0.797_884_560_802_865_4
    let square = x * x
    let t = (x * (square * 0.044715 + 1) * root).tanh()
    return (t + 1) * 0.5
      + x * (1 - t * t) * (square * (3 * 0.044715) + 1) * (0.5 * root)
  }

  /// 1 on and below the diagonal.
  static func lower(_ n: Int, on device: any Device) -> Tensor {
    Tensor(
      (0..<n * n).map { $0 % n <= $0 / n ? Float(1) : 0 }, shape: [n, n], on: device)
  }
}

/// The weights of every row and head, from a parameter `[H, …]`, as `[B·H, …]`.
func startWeights(_ parameter: Tensor, batch: Int) -> Tensor {
  let s = parameter.shape.dimensions
  return (Tensor.zeros(Shape([batch] + s), on: parameter.device) + parameter)
    .reshaped(Shape([batch * s[0]] + s.dropFirst()))
}

extension Tensor {
  /// `[B, n, H, K]` to `[B·H, n, K]`.
  package func byHead() -> Tensor {
    permuted([0, 2, 1, 3]).reshaped([shape[0] * shape[2], shape[1], shape[3]])
  }
  /// `[B·H, n, K]` to `[B, n, H, K]`.
  package func fromHeads(_ heads: Int) -> Tensor {
    reshaped([shape[0] / heads, heads, shape[1], shape[2]]).permuted([0, 2, 1, 3])
  }
  /// Each of B rows H times, for what has a row a sequence and head.
  static func perHead(_ rows: [Bool], _ heads: Int) -> [Bool] {
    rows.flatMap { [Bool](repeating: $0, count: heads) }
  }
}
