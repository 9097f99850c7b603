import GyreLayers
import GyreRecurrence
import GyreTensors

/// A linear recurrence with block-diagonal transitions made from the input: the one of its kind that
/// extrapolates on regular languages.
///
///     hₜ = Aₜ hₜ₋₁ + W_u xₜ    out = W_o RMSNorm(hₜ)    columns of A: aⱼ / max(1, ‖aⱼ‖_p)
///
/// A has H blocks n × n, linear maps of x. Fan, Chi and Rudnicky, "Advancing regular language reasoning
/// in linear recurrent neural networks", 2023. https://arxiv.org/abs/2309.07412
///
/// State: `[H, n]`. Engine: `BlockScan`.
public struct RegularLRNN: SequenceMixer {
  public static let kind = "regular_lrnn"
  public struct Configuration: MixerConfiguration {
    /// Channels of the state; 0: the width.
    public var channels = 0
    /// n.
    public var block = 8
    /// p of the columns' norm.
    public var power = 1.2
    public init() {}
    public func resolved(width: Int) -> Self {
      with(self) { $0.channels = channels > 0 ? channels : width }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try require(
        (0...1 << 20).contains(channels), "channels", "must be in 0...\(1 << 20), is \(channels)")
      try HeadSizes.divide(
        channels > 0 ? channels : width, by: block, field: "block", of: "channels")
      try require(power >= 1 && power <= 16, "power", "must be in [1, 16], is \(power)")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.block = 4 },
    with(Configuration()) {
      $0.channels = 12; $0.block = 3; $0.power = 2
    },
  ]

  private let transition, input, output: Linear
  private let norm: NormLayer
  private let engine: BlockScan
  private let power: Double

  public init(
    _ configuration: Configuration, width: Int, layer: LayerPosition,
    parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let c = configuration.resolved(width: width)
    (power, engine) = (c.power, BlockScan(blocks: c.channels / c.block, size: c.block))
    let n = c.block
    // Near the identity: a block remembers until it learns what to do.
    transition = try Linear(
      "transition", inputs: width, outputs: c.channels * n,
      bias: .each { $0 / n % n == $0 % n ? 1 : 0 }, &p)
    input = try Linear("input", inputs: width, outputs: c.channels, &p)
    norm = try NormLayer("norm", c.channels, &p)
    output = try Linear("output", inputs: c.channels, outputs: width, &p)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (batch, tokens, n, H) = (x.shape[0], x.shape[1], engine.size, engine.blocks)
    let columns = transition(x).reshaped([batch, tokens, H, n, n])
    let powers = ((columns.unary(.absolute) + 1e-6).log() * power).exp()
    let size = (powers.summed(to: [batch, tokens, H, n, 1]).log() / power).exp()
    let h = engine(
      .init(
        columns: columns / ((size - 1).relu() + 1),
        input: input(x).reshaped([batch, tokens, H, n])),
      state: &state, form: context.form, reset: context.reset)
    return output(norm(h.reshaped([batch, tokens, H * n])))
  }
}
