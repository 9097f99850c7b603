import GyreLayers
import GyreRecurrence
import GyreTensors

/// minGRU: a gated recurrence whose gates see the input alone, so that it is a scan.
///
///     zₜ = σ(W_z xₜ)    h̃ₜ = g(W_h xₜ)    hₜ = (1 − zₜ) ∘ hₜ₋₁ + zₜ ∘ h̃ₜ    yₜ = W_o hₜ
///
/// with g(x) = x + ½ for x ≥ 0 and σ(x) otherwise. Feng, Tung, Ahmed, Bengio and Hajimirsadeghi,
/// "Were RNNs all we needed?", 2024. https://arxiv.org/abs/2410.01201
///
/// State: `[expansion·D]`. Engine: `MinGRUScan`.
public struct MinGRU: SequenceMixer {
  public static let kind = "min_gru"
  public struct Configuration: MixerConfiguration {
    /// State channels over the model's width.
    public var expansion = 1.0
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try require(
        expansion > 0 && expansion * Double(width) >= 1 && expansion <= 64, "expansion",
        "must give at least one channel and at most 64 times the width, is \(expansion)")
    }
  }
  public static let testConfigurations = [
    Configuration(),
    {
      var c = Configuration()
      c.expansion = 1.5
      return c
    }(),
  ]

  private let gates: Linear
  private let output: Linear
  private let engine: MinGRUScan
  private let channels: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    channels = Int(c.expansion * Double(width))
    gates = try Linear("gates", inputs: width, outputs: 2 * channels, &p)
    output = try Linear("output", inputs: channels, outputs: width, &p)
    engine = MinGRUScan(channels: channels)
  }

  public var stateSpec: StateSpec { engine.stateSpec }
  public var onlyMultipliesInput: Bool { true }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    // Two products of a token's rows take longer than one.
    if x.shape[1] == 1, context.reset == nil, x.device.fuses(MinGRUToken()), Tape.current == nil,
      let h = engine.token(gates(x), state: &state)
    {
      return output(h)
    }
    let parts = gates(
      x, pieces: [channels, channels], output: ComputePrecision.betweenProducts(on: x.device))
    let h = engine(
      .init(gate: parts[0], candidate: parts[1]), state: &state, form: context.form,
      reset: context.reset)
    return output(h, output: context.output)
  }
  public func appendToken(
    _ input: TokenInput, to p: inout TokenProgram, state: State
  ) -> Bool {
    guard let h = state["h"] else { return false }
    let next = p.scratch("min_gru.h", channels)
    p.phases.append(
      .products(.init([input.operand], [gates.token(to: next, .minGRU(state: h))])))
    p.phases.append(.products(.init([.init(next, channels)], [input.output(output)])))
    return true
  }
}
