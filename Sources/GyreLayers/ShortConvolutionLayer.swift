import GyreRecurrence
import GyreTensors

/// A causal depthwise convolution over the last few tokens, whose tail is part of the state.
public struct ShortConvolutionLayer: Sendable {
  public let weight: Parameter
  public let bias: Parameter?
  private let activates: Bool
  private let entry: String
  private let channels: Int
  private let width: Int

  /// - Parameters:
  ///   - width: taps, the current token included.
  ///   - activates: whether SiLU follows.
  ///   - entry: name of the state entry.
  public init(
    _ name: String, channels: Int, width: Int, bias: Bool = false, activates: Bool = true,
    entry: String = "window", _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.activates = activates
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
      weight.value, bias: bias?.value, activation: activates,
      window: width > 1 ? state[entry] : nil, reset: reset)
    if width > 1 { state[entry] = window }
    return y
  }
}
