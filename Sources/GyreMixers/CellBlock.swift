import GyreLayers
import GyreRecurrence
import GyreTensors

/// ParaRNN's block around a cell whose units do not mix:
///
///     out = W_o (RMSNorm(cell(SiLU(conv(W_x x)))) ∘ SiLU(W_z x))
///
/// Danieli et al., "ParaRNN: unlocking parallel training of nonlinear RNNs for large language models",
/// 2025. https://arxiv.org/abs/2510.21450
///
/// State: the cell's, and the convolution's tail. Engine: `RecurrentCell`.
public struct CellBlock<C: Cell>: SequenceMixer {
  public static var kind: String { C.kind + "_block" }
  public struct Configuration: MixerConfiguration {
    /// Units of the cell; 0: the model's width.
    public var hidden = 0
    /// Tokens that the convolution sees.
    public var convolution = 4
    /// Token by token or all tokens at once.
    public var execution = CellExecution.automatic
    public var dropout = RecurrentDropout()
    public var normEpsilon = 1e-6
    public init() {}

    func size(_ width: Int) -> Int { hidden > 0 ? hidden : width }
    /// The cell inside.
    var cell: CellMixerConfiguration<C> {
      with(CellMixerConfiguration<C>()) {
        $0.execution = execution; $0.dropout = dropout; $0.projects = false
      }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try require(hidden >= 0, "hidden", "must not be negative, is \(hidden)")
      try HeadSizes.convolution(convolution)
      try HeadSizes.positive(convolution, "convolution")
      try HeadSizes.epsilon(normEpsilon)
      try cell.validate(width: size(width))
    }
  }
  public static var testConfigurations: [Configuration] {
    [
      Configuration(),
      with(Configuration()) {
        $0.hidden = 24; $0.convolution = 2; $0.execution = .newton
      },
      with(Configuration()) { $0.dropout.zoneout = 0.2 },
    ]
  }

  private let input, gate, output: Linear
  private let convolution: ShortConvolutionLayer
  private let cell: CellMixer<C>
  private let norm: NormLayer

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let size = c.size(width)
    input = try Linear("x", inputs: width, outputs: size, &p)
    gate = try Linear("z", inputs: width, outputs: size, &p)
    convolution = try ShortConvolutionLayer(
      "convolution", channels: size, width: c.convolution, bias: true, &p)
    cell = try p.scoped("cell") { p throws(ConfigurationError) in
      try CellMixer<C>(c.cell, width: size, layer: layer, parameters: &p)
    }
    norm = try NormLayer("norm", size, epsilon: c.normEpsilon, &p)
    output = try Linear("output", inputs: size, outputs: width, &p)
  }

  public var stateSpec: StateSpec { cell.stateSpec + convolution.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let u = convolution(input(x), state: &state, reset: context.reset)
    let h = cell(u, state: &state, context: &context)
    return output(norm(h) * gate(x).silu())
  }
}
