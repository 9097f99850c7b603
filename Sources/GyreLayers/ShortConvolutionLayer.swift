import GyreRecurrence
import GyreTensors

/// A causal depthwise convolution over the last few tokens, whose tail is part of the state.
public struct ShortConvolutionLayer: Sendable {
  public let weight: Parameter
  public let bias: Parameter?
  private let activation: Unary.Kind?
  private let entry: String
  private let channels: Int
  private let width: Int

  /// - Parameters:
  ///   - width: taps, the current token included.
  ///   - activates: whether SiLU follows.
  ///   - activation: what follows in place of SiLU.
  ///   - entry: name of the state entry.
  public init(
    _ name: String, channels: Int, width: Int, bias: Bool = false, activates: Bool = true,
    activation: Unary.Kind? = nil, entry: String = "window", _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.activation = activation ?? (activates ? .silu : nil)
    self.entry = entry
    self.channels = channels
    self.width = width
    (weight, self.bias) = try p.scoped(name) { p throws(ConfigurationError) in
      (
        try p.parameter("weight", [channels, width], .fanIn(width), decay: WeightDecay.none),
        bias ? try p.parameter("bias", [channels], .zeros) : nil
      )
    }
  }

  public var stateSpec: StateSpec {
    width > 1 ? StateSpec([.init(entry, [width - 1, channels], .window)]) : StateSpec()
  }

  /// `[B, T, channels]` to the same.
  public func callAsFunction(_ x: Tensor, state: inout State, reset: Tensor?) -> Tensor {
    let (y, window) = x.shortConvolution(
      weight.value, bias: bias?.value, activation: activation == .silu,
      window: width > 1 ? state[entry] : nil, reset: reset)
    if width > 1 { state[entry] = window }
    guard let activation, activation != .silu else { return y }
    return y.unary(activation)
  }

  /// The same, split into consecutive pieces of the channels.
  public func callAsFunction(
    _ x: Tensor, pieces: [Int], state: inout State, reset: Tensor?
  ) -> [Tensor] {
    let (parts, window) = x.shortConvolution(
      weight.value, bias: bias?.value, activation: activation == .silu,
      window: width > 1 ? state[entry] : nil, reset: reset, pieces: pieces)
    if width > 1 { state[entry] = window }
    guard let activation, activation != .silu else { return parts }
    return parts.map { $0.unary(activation) }
  }
}
