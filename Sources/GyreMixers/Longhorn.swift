import GyreLayers
import GyreRecurrence
import GyreTensors

/// Longhorn: a state space layer whose step solves an online regression in closed form, so that what it
/// forgets follows from what it writes.
///
///     Sₜ = (1 − εₜ kₜᵀ²) ∘ Sₜ₋₁ + (εₜ ∘ xₜ) kₜᵀ    ε = Δ / (1 + Δ ‖k‖²)    Δ = σ(W_Δ δ + b)
///     yₜ = Sₜ qₜ + D ∘ xₜ    out = W_o (y ∘ silu(z))    (δ, k, q) = W_s x
///
/// x passes a short convolution with SiLU first. The step is the diagonal of the minimiser of
/// ‖S − Sₜ₋₁‖² + Δ ‖S k − x‖². Liu, Wang, Wu, Feng, Stone and Liu, "Longhorn: state space models are
/// amortized online learners", 2024. https://arxiv.org/abs/2407.14207
///
/// State: `[D, N]` and the convolution's tail. Engine: `DiagonalScan` over D·N channels.
public struct Longhorn: SequenceMixer {
  public static let kind = "longhorn"
  public struct Configuration: MixerConfiguration {
    /// N.
    public var stateSize = 16
    /// Inner channels; 0: twice the width.
    public var inner = 0
    /// Rank of Δ's map; 0: width / 16, rounded up.
    public var rank = 0
    public var convolution = 4
    public init() {}
    public func resolved(width: Int) -> Self {
      with(self) {
        $0.inner = inner > 0 ? inner : 2 * width
        $0.rank = rank > 0 ? rank : (width + 15) / 16
      }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try SystemChecks.states(stateSize)
      try require(
        (0...1 << 20).contains(inner), "inner", "must be in 0...\(1 << 20), is \(inner)")
      try require(rank >= 0, "rank", "must not be negative, is \(rank)")
      try HeadSizes.convolution(convolution)
      try HeadSizes.positive(convolution, "convolution")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.stateSize = 4 },
    with(Configuration()) {
      $0.stateSize = 3; $0.inner = 20; $0.rank = 3; $0.convolution = 2
    },
  ]

  private let input, select, step, output: Linear
  private let convolution: ShortConvolutionLayer
  private let skip: Parameter
  private let engine: DiagonalScan
  private let inner, rank, stateSize: Int

  public init(
    _ configuration: Configuration, width: Int, layer: LayerPosition,
    parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let c = configuration.resolved(width: width)
    (inner, rank, stateSize) = (c.inner, c.rank, c.stateSize)
    input = try Linear("input", inputs: width, outputs: 2 * inner, &p)
    convolution = try ShortConvolutionLayer(
      "convolution", channels: inner, width: c.convolution, bias: true, &p)
    select = try Linear("select", inputs: inner, outputs: rank + 2 * stateSize, &p)
    step = try Linear(
      "step", inputs: rank, outputs: inner, bias: .mambaStep(), initializer: .fanIn(rank), &p)
    skip = try p.parameter("D", [inner], .constant(1), decay: WeightDecay.none)
    output = try Linear("output", inputs: inner, outputs: width, &p)
    engine = DiagonalScan(channels: inner * stateSize)
  }

  public var stateSpec: StateSpec { engine.stateSpec + convolution.stateSpec }

  public func callAsFunction(_ u: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (batch, tokens) = (u.shape[0], u.shape[1])
    let (rows, N) = (batch * tokens, stateSize)
    let parts = input(u).split([inner, inner])
    let x = convolution(parts[0], state: &state, reset: context.reset)
    let selected = select(x).split([rank, N, N])
    let delta = step(selected[0]).sigmoid()
    let k = selected[1].reshaped([rows, 1, N])
    let size = (k * k).summed(to: [rows, 1, 1]).reshaped([batch, tokens, 1])
    let epsilon = delta / (delta * size + 1)
    // Outer products over (D, N): products of single columns and rows.
    func outer(_ column: Tensor, _ row: Tensor) -> Tensor {
      column.reshaped([rows, inner, 1]).matmul(row, precision: .float32)
        .reshaped([batch, tokens, inner * N])
    }
    let h = engine(
      .init(decay: 1 - outer(epsilon, k * k), decayIsLog: false, input: outer(epsilon * x, k)),
      state: &state, form: context.form, reset: context.reset)
    let y = h.reshaped([rows, inner, N])
      .matmul(selected[2].reshaped([rows, N, 1]), precision: .float32)
      .reshaped([batch, tokens, inner])
    return output((y + x * skip.value) * parts[1].silu())
  }
}
