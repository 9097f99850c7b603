import GyreLayers
import GyreRecurrence
import GyreTensors

/// A short convolution between two gates: the local mixer of LFM2.
///
///     (b, c, x) = W_i u    yₜ = c ∘ Σⱼ w_j ∘ (b ∘ x)_{t−j}    out = W_o yₜ
///
/// Liquid AI, "LFM2", 2025.
///
/// State: the last taps − 1 gated inputs.
public struct ShortConvolutionMixer: SequenceMixer {
  public static let kind = "short_convolution"
  public struct Configuration: MixerConfiguration {
    /// Taps, the current token included.
    public var convolution = 3
    /// Bias of all three maps.
    public var bias = false
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.convolution(convolution)
      try HeadSizes.positive(convolution, "convolution")
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.convolution = 5; $0.bias = true
    },
  ]

  private let input, output: Linear
  private let convolution: ShortConvolutionLayer
  private let width: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.width = width
    let bias: Initializer? = c.bias ? .zeros : nil
    input = try Linear("input", inputs: width, outputs: 3 * width, bias: bias, &p)
    convolution = try ShortConvolutionLayer(
      "convolution", channels: width, width: c.convolution, bias: c.bias, activates: false, &p)
    output = try Linear("output", inputs: width, outputs: width, bias: bias, &p)
  }

  public var stateSpec: StateSpec { convolution.stateSpec }

  public func callAsFunction(_ u: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = input(u).split([width, width, width])
    let x = convolution(parts[0] * parts[2], state: &state, reset: context.reset)
    return output(parts[1] * x)
  }
}
