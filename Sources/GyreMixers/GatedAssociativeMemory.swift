import GyreLayers
import GyreRecurrence
import GyreTensors

/// GAM: a causal convolution beside a bank of learned patterns, mixed by a gate.
///
///     (a, b) = σ(W x + c)    y = a ∘ conv(x) + b ∘ softmax(x Mᵀ) M    out = W_o y
///
/// The bank is a parameter: nothing but the convolution's tail is remembered of the sequence. Acharya,
/// "Gated associative memory: a parallel O(N) architecture for efficient sequence modeling", 2025.
/// https://arxiv.org/abs/2509.00605
///
/// State: the convolution's tail.
public struct GatedAssociativeMemory: SequenceMixer {
  public static let kind = "gated_associative_memory"
  public struct Configuration: MixerConfiguration {
    /// Rows of M.
    public var slots = 512
    public var convolution = 3
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try require((1...1 << 20).contains(slots), "slots", "must be in 1...\(1 << 20), is \(slots)")
      try HeadSizes.convolution(convolution)
      try HeadSizes.positive(convolution, "convolution")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.slots = 12 },
    with(Configuration()) {
      $0.slots = 5; $0.convolution = 1
    },
  ]

  private let convolution: ShortConvolutionLayer
  private let bank: Parameter
  private let gates, output: Linear

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    convolution = try ShortConvolutionLayer(
      "convolution", channels: width, width: c.convolution, bias: true, activates: false, &p)
    bank = try p.parameter("bank", [c.slots, width], .fanIn(width))
    gates = try Linear("gates", inputs: width, outputs: 2 * width, bias: .zeros, &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
  }

  public var stateSpec: StateSpec { convolution.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let width = x.shape.last
    let gate = gates(x).sigmoid().split([width, width])
    let near = convolution(x, state: &state, reset: context.reset)
    let found = x.linear(bank.value).softmax().reshaped([-1, bank.shape[0]]).matmul(bank.value)
    return output(gate[0] * near + gate[1] * found.reshaped(x.shape))
  }
}
