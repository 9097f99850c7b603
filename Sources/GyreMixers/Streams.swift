import GyreLayers
import GyreRecurrence
import GyreTensors

/// One projection of the input whose first columns pass a short convolution: q, k and v of most
/// layers, then columns that do not, such as output gates.
struct Streams: Sendable {
  let projection: Linear
  let convolution: ShortConvolutionLayer?
  private let mixed: [Int]
  private let plain: [Int]
  /// After the convolution, one a mixed stream; nil for none.
  private let activations: [Unary.Kind?]
  /// Whether the convolution's own SiLU does all of them.
  private let isFused: Bool

  /// - Parameters:
  ///   - mixed: widths of the streams that the convolution sees.
  ///   - plain: widths of those that it does not.
  ///   - convolution: taps; 0 for none.
  ///   - activations: applied with and without a convolution; one for all where one is given.
  init(
    _ name: String, inputs: Int, mixed: [Int], plain: [Int] = [], convolution taps: Int,
    activations: [Unary.Kind?], _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.mixed = mixed
    self.plain = plain
    self.activations =
      activations.count == 1 ? mixed.map { _ in activations[0] } : activations
    isFused = self.activations.allSatisfy { $0 == .silu }
    let width = mixed.reduce(0, +)
    projection = try Linear(name, inputs: inputs, outputs: width + plain.reduce(0, +), &p)
    convolution =
      taps > 0
      ? try ShortConvolutionLayer(
        "convolution", channels: width, width: taps, activates: isFused, &p) : nil
  }

  var stateSpec: StateSpec { convolution?.stateSpec ?? StateSpec() }
  var hasOneActivation: Bool { Set(activations).count == 1 }

  /// The mixed streams, then the plain ones, each `[B, T, its width]`.
  func callAsFunction(_ x: Tensor, state: inout State, reset: Tensor?) -> [Tensor] {
    streams(x.linear(projection.weight.value, pieces: pieces), &state, reset)
  }

  /// The same beside another map of x, which may be made together.
  func callAsFunction(
    _ x: Tensor, beside other: Linear, state: inout State, reset: Tensor?
  ) -> (streams: [Tensor], other: Tensor) {
    let (parts, beside) = x.linear(projection.weight.value, pieces: pieces, beside: other)
    return (streams(parts, &state, reset), beside)
  }

  private var pieces: [Int] {
    convolution != nil || isFused ? [mixed.reduce(0, +)] + plain : mixed + plain
  }

  private func streams(_ parts: [Tensor], _ state: inout State, _ reset: Tensor?) -> [Tensor] {
    guard convolution != nil || isFused else { return activated(parts) }
    let streams =
      convolution?(parts[0], pieces: mixed, state: &state, reset: reset)
      ?? parts[0].silu().split(mixed)
    return (isFused ? streams : activated(streams)) + parts.dropFirst()
  }

  private func activated(_ streams: [Tensor]) -> [Tensor] {
    streams.enumerated().map { i, stream in
      guard i < activations.count, let activation = activations[i] else { return stream }
      return stream.unary(activation)
    }
  }
}

/// The norm that most layers end with, over a head's value channels or over all of them, times an
/// activation of a gate where there is one.
struct OutputNorm: Sendable {
  let weight: Parameter?
  private let size: Int
  let epsilon: Double
  /// Of the gate.
  let activation: GatedNorm.Gate

  /// - Parameter hasWeight: whether the norm has a weight `[size]`.
  init(
    _ size: Int, hasWeight: Bool = true, epsilon: Double, gate: GatedNorm.Gate = .silu,
    _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.size = size
    self.epsilon = epsilon
    activation = gate
    weight = hasWeight ? try p.parameter("norm.weight", [size], .constant(1)) : nil
  }

  /// - Parameters:
  ///   - y: `[…, size]`.
  ///   - gate: of the same shape.
  func callAsFunction(_ y: Tensor, gate: Tensor? = nil) -> Tensor {
    guard let gate else { return y.rmsNormalized(weight: weight?.value, epsilon: epsilon) }
    return y.gatedNorm(
      gate, weight: weight?.value ?? .full(1, [size], on: y.device), epsilon: epsilon,
      by: activation)
  }

  /// The norm in a token program.
  func token(gate: TokenProgram.Vector?) -> TokenProgram.Norm {
    var norm = TokenProgram.Norm(group: size, weight: weight?.value, epsilon: epsilon)
    norm.gate = gate.map { ($0, activation == .silu ? .silu : .sigmoid, .after) }
    return norm
  }
}

extension GatedNorm.Gate {
  /// The gate of that name: "silu" or "sigmoid".
  static func named(_ name: String, field: String) throws(ConfigurationError) -> GatedNorm.Gate {
    switch name {
    case "silu": return .silu
    case "sigmoid": return .sigmoid
    default: throw ConfigurationError(field, "must be silu or sigmoid, is \(name)")
    }
  }
}

extension Tensor {
  /// x Wᵀ in pieces and another map of x without its bias; nil where they are not one launch.
  private func together(
    _ weight: Tensor, pieces: [Int], last: LinearGroup.Function = .none, beside other: Tensor
  ) -> [Tensor]? {
    // Rows of a weight in another type would be converted each time.
    guard weight.dtype == .bfloat16 else { return nil }
    let rows = weight.aliasedRows(as: pieces.map { [$0, weight.shape[1]] })
    var maps = (rows + [other]).map { LinearGroup.Map(self, $0) }
    maps[pieces.count - 1].function = last
    return LinearGroup.apply(maps)
  }

  /// x Wᵀ in pieces, and another map of x.
  func linear(
    _ weight: Tensor, pieces: [Int], beside other: Linear
  ) -> (pieces: [Tensor], other: Tensor) {
    guard other.bias == nil, let all = together(weight, pieces: pieces, beside: other.weight.value)
    else { return (linear(weight, pieces: pieces), other(self)) }
    return (Array(all.dropLast()), all[pieces.count])
  }

  /// The same, the last piece through a sigmoid and the other map without its bias; nil where they are not
  /// one launch.
  func linear(
    _ weight: Tensor, openedPieces pieces: [Int], besideUnbiased other: Linear
  ) -> (pieces: [Tensor], other: Tensor)? {
    guard
      let all = together(weight, pieces: pieces, last: .sigmoid, beside: other.weight.value)
    else { return nil }
    return (Array(all.dropLast()), all[pieces.count])
  }
}
