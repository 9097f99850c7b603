import GyreLayers
import GyreRecurrence
import GyreTensors

/// minLSTM: forget and input gates from the input alone, normalised to sum to one.
///
///     f' = f/(f + i)    i' = i/(f + i)    hₜ = f' ∘ hₜ₋₁ + i' ∘ g(W_h xₜ)    yₜ = W_o hₜ
///
/// with f = σ(W_f x), i = σ(W_i x) and g as in `MinGRU`. Feng, Tung, Ahmed, Bengio and Hajimirsadeghi,
/// "Were RNNs all we needed?", 2024. https://arxiv.org/abs/2410.01201
///
/// State: `[expansion·D]`. Engine: `DiagonalScan`, log decays.
public struct MinLSTM: SequenceMixer {
  public static let kind = "min_lstm"
  public typealias Configuration = MinGRU.Configuration
  public static let testConfigurations = MinGRU.testConfigurations

  private let gates: Linear
  private let output: Linear
  private let engine: DiagonalScan
  private let channels: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    channels = Int(c.expansion * Double(width))
    gates = try Linear("gates", inputs: width, outputs: 3 * channels, &p)
    output = try Linear("output", inputs: channels, outputs: width, &p)
    engine = DiagonalScan(channels: channels)
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let parts = gates(x, pieces: [channels, channels, channels])
    // ln(f/i) = logσ(f̃) − logσ(ĩ), so f' = σ of it and i' = σ of its negative.
    let balance = parts[0].logSigmoid() - parts[1].logSigmoid()
    let zero = Tensor.zeros([1], on: x.device)
    let candidate = parts[2].maximum(zero) + parts[2].minimum(zero).sigmoid()
    let h = engine(
      .init(
        decay: balance.logSigmoid(), decayIsLog: true, input: (-balance).sigmoid() * candidate),
      state: &state, form: context.form, reset: context.reset)
    return output(h)
  }
}
