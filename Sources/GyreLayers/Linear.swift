import GyreTensors

/// y = x Wᵀ + b, W `[outputs, inputs]`.
public struct Linear: Sendable {
  public let weight: Parameter
  public let bias: Parameter?

  /// - Parameters:
  ///   - initializer: of the weight; by default PyTorch's uniform ±1/√inputs.
  ///   - bias: how the bias starts; nil for none.
  public init(
    _ name: String, inputs: Int, outputs: Int, bias: Initializer? = nil,
    initializer: Initializer? = nil, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    (weight, self.bias) = try p.scoped(name) { p throws(ConfigurationError) in
      (
        try p.matrix("weight", [outputs, inputs], initializer ?? .fanIn(inputs)),
        try bias.map { b throws(ConfigurationError) in try p.parameter("bias", [outputs], b) }
      )
    }
  }

  public func callAsFunction(_ x: Tensor) -> Tensor {
    x.linear(weight.value, bias: bias?.value)
  }

  /// The same in another element type than that of activations.
  public func callAsFunction(_ x: Tensor, output: DType?) -> Tensor {
    x.linear(weight.value, bias: bias?.value, output: output)
  }

  /// The same, split along the last axis.
  public func callAsFunction(_ x: Tensor, pieces: [Int], output: DType? = nil) -> [Tensor] {
    bias == nil
      ? x.linear(weight.value, pieces: pieces, output: output)
      : self(x, output: output).split(pieces)
  }
}

/// Two linear maps of low rank: y = (act(x Aᵀ)) Bᵀ + b.
public struct LowRankLinear: Sendable {
  public let down: Linear
  public let up: Linear
  public let activation: Unary.Kind?

  public init(
    _ name: String, inputs: Int, rank: Int, outputs: Int, activation: Unary.Kind? = nil,
    bias: Initializer? = nil, down downInitializer: Initializer? = nil,
    up upInitializer: Initializer? = nil, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    (down, up) = try p.scoped(name) { p throws(ConfigurationError) in
      (
        try Linear("down", inputs: inputs, outputs: rank, initializer: downInitializer, &p),
        try Linear(
          "up", inputs: rank, outputs: outputs, bias: bias, initializer: upInitializer, &p)
      )
    }
    self.activation = activation
  }

  public func callAsFunction(_ x: Tensor) -> Tensor { up(hidden(x)) }

  /// y − b, for ops that add the bias themselves.
  public func withoutBias(_ x: Tensor) -> Tensor { hidden(x).linear(up.weight.value) }

  /// y of y − b.
  public func biased(_ y: Tensor) -> Tensor { up.bias.map { y + $0.value } ?? y }

  private func hidden(_ x: Tensor) -> Tensor {
    let h = down(x)
    return activation.map { h.unary($0) } ?? h
  }
}
