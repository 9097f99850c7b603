import GyreRecurrence
import GyreTensors

/// RMSNorm or LayerNorm with its weight.
public struct NormLayer: Sendable {
  public enum Kind: String, Sendable, Hashable, Codable {
    case rms, layer
    /// RMSNorm with the factor 1 + weight (Gemma, Qwen3-Next).
    case rmsUnitOffset = "rms_unit_offset"
    /// RMSNorm without a weight.
    case plain
    /// No norm at all.
    case none
  }
  public let kind: Kind
  public let weight: Parameter?
  public let bias: Parameter?
  public let epsilon: Double

  public init(
    _ name: String, _ size: Int, kind: Kind = .rms, epsilon: Double = 1e-6, bias: Bool = false,
    weight initial: Initializer? = nil, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.kind = kind
    self.epsilon = epsilon
    (weight, self.bias) = try p.scoped(name) { p throws(ConfigurationError) in
      kind == .plain || kind == .none
        ? (nil, nil)
        : (
          try p.parameter(
            "weight", [size], initial ?? .constant(kind == .rmsUnitOffset ? 0 : 1),
            decay: WeightDecay.none),
          bias ? try p.parameter("bias", [size], .zeros, decay: WeightDecay.none) : nil
        )
    }
  }

  /// Over the last axis of `x`, whose extent divides the weight's.
  public func callAsFunction(_ x: Tensor) -> Tensor {
    guard let weight else { return kind == .none ? x : x.rmsNormalized(epsilon: epsilon) }
    if kind == .layer {
      return x.layerNormalized(weight: weight.value, bias: bias?.value, epsilon: epsilon)
    }
    let scale = kind == .rmsUnitOffset ? weight.value + 1 : weight.value
    let y = x.rmsNormalized(weight: scale, epsilon: epsilon)
    return bias.map { y + $0.value } ?? y
  }

  /// The norm of x, times z of its shape.
  public func callAsFunction(_ x: Tensor, times z: Tensor) -> Tensor {
    let op = NormedProduct(Norm(epsilon: epsilon, centers: kind == .layer))
    guard let weight, kind == .layer || (kind == .rms && bias == nil), Tape.current == nil,
      x.dtype == z.dtype, x.note == nil, z.note == nil, x.device.fuses(op)
    else { return self(x) * z }
    return applyPresent(op, [x, z, weight.value, bias?.value])[0]
  }

  /// x + y in x's element type, and its norm in `output` or the same.
  public func adding(
    _ y: Tensor, to x: Tensor, output: DType? = nil
  ) -> (sum: Tensor, normed: Tensor) {
    let op = NormedSum(Norm(epsilon: epsilon, centers: kind == .layer), output: output)
    guard let weight, kind == .layer || bias == nil, x.shape == y.shape, x.device.fuses(op) else {
      let sum = x + y.cast(to: x.dtype)
      return (sum, self(sum))
    }
    let scale = kind == .rmsUnitOffset ? weight.value + 1 : weight.value
    let result = applyPresent(op, [x, y, scale, bias?.value])
    return (result[0], result[1])
  }
}

extension NormLayer {
  /// x + y, mixes of its norm with the token before for each μ, and the norm as the last token, of one token of
  /// each sequence; nil where that is not one pass.
  public func mixes(
    adding y: Tensor, to x: Tensor, _ mixes: [Tensor], last: Tensor
  ) -> (sum: Tensor, mixed: [Tensor], last: Tensor)? {
    let op = NormedMixes(
      Norm(epsilon: epsilon, centers: kind == .layer), hasBias: bias != nil, mixes: mixes.count)
    let width = x.shape.last
    guard let weight, kind == .layer || kind == .rms, Tape.current == nil, x.rank == 3,
      x.shape[1] == 1, x.shape == y.shape, x.dtype == y.dtype, x.note == nil, y.note == nil,
      width % 8 == 0, width <= NormedMixes.widest, mixes.count <= TokenMixes.limit,
      x.device.fuses(op)
    else { return nil }
    let result = applyPresent(op, [x, y, weight.value, bias?.value] + mixes + [last])
    return (result[0], Array(result[1...mixes.count]), result[mixes.count + 1])
  }
}

extension NormLayer {
  /// The norm in a token program, over groups of `group` channels; nil for none.
  public func token(group: Int? = nil) -> TokenProgram.Norm? {
    guard kind != .none else { return nil }
    let scale = kind == .rmsUnitOffset ? weight.map { $0.value + 1 } : weight?.value
    return TokenProgram.Norm(
      centers: kind == .layer, group: group, weight: scale, bias: bias?.value, epsilon: epsilon)
  }
}
