import GyreLayers
import GyreRecurrence
import GyreTensors

/// SeqBoat: a damped moving average decides for each token whether it takes part in gated attention.
///
///     c = EMA(x)    (p₀, p₁) = softmax(W_r c / e^τ)    active: p₁ > p₀
///     out = p₁ · u(x, c, attention over active tokens) where active, else c
///     EMA: hₜₙ = (1 − αₙδₙ) hₜ₋₁ₙ + αₙβₙ xₜ    cₜ = silu(Σₙ ηₙ hₜₙ + ω xₜ)    α, δ = σ
///
/// with u the gates of `GatedUpdate` (MEGA), n two averages a channel. Tokens that are not active are no
/// keys, whatever they hold; they are masked, not left out, so that they cost what others do. Ren et
/// al., "Sparse modular activation for efficient sequence modeling", 2023.
/// https://arxiv.org/abs/2306.11197
///
/// State: `[D, N]` averages, keys and values of the window. Engines: `DiagonalSystem`,
/// `SoftmaxAttention`.
public struct SeqBoat: SequenceMixer {
  public static let kind = "seqboat"
  public struct Configuration: MixerConfiguration {
    /// N, averages a channel.
    public var averages = 2
    /// Channels of queries and keys.
    public var keySize = 64
    /// Channels of values; 0: twice the width.
    public var hidden = 0
    /// Tokens a query sees, active or not; 0: all.
    public var window = 256
    public init() {}
    public func resolved(width: Int) -> Self {
      with(self) { $0.hidden = hidden > 0 ? hidden : 2 * width }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try SystemChecks.states(averages, "averages")
      try require(
        (1...1 << 16).contains(keySize), "keySize", "must be in 1...\(1 << 16), is \(keySize)")
      try require(
        (0...1 << 24).contains(hidden), "hidden", "must be in 0...\(1 << 24), is \(hidden)")
      try require(window >= 0, "window", "must not be negative, is \(window)")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.keySize = 8; $0.window = 7
    },
    with(Configuration()) {
      $0.averages = 3; $0.keySize = 5; $0.hidden = 12; $0.window = 0
    },
  ]

  private let alpha, delta, beta, eta, omega, temperature: Parameter
  private let router, value: Linear
  private let unit: GatedUpdate
  private let average: DiagonalSystem
  private let attention: SoftmaxAttention
  private let width, averages: Int

  public init(
    _ configuration: Configuration, width: Int, layer: LayerPosition,
    parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let c = configuration.resolved(width: width)
    let n = c.averages
    (self.width, averages) = (width, n)
    alpha = try p.parameter(
      "alpha", [width, n], .normal(standardDeviation: 0.2), decay: WeightDecay.none)
    delta = try p.parameter(
      "delta", [width, n], .normal(standardDeviation: 0.2), decay: WeightDecay.none)
    // Signs alternate over the averages.
    beta = try p.parameter(
      "beta", [width, n],
      .values { count, g in
        g.normals(count).enumerated().map { i, x in (i % n % 2 == 0 ? 1 : -1) + 0.02 * x }
      }, decay: WeightDecay.none)
    eta = try p.parameter(
      "eta", [width, n], .normal(standardDeviation: 1), decay: WeightDecay.none)
    omega = try p.parameter(
      "omega", [width], .normal(standardDeviation: 1), decay: WeightDecay.none)
    temperature = try p.parameter("temperature", [1], .zeros, decay: WeightDecay.none)
    router = try Linear("router", inputs: width, outputs: 2, &p)
    value = try Linear("v", inputs: width, outputs: c.hidden, bias: .zeros, &p)
    unit = try GatedUpdate(width: width, keySize: c.keySize, hidden: c.hidden, &p)
    average = DiagonalSystem(channels: width, states: n)
    attention = SoftmaxAttention(
      heads: 1, keySize: c.keySize + 1, valueSize: c.hidden,
      window: c.window > 0 ? c.window : nil, scale: 1 / Double(c.keySize).squareRoot())
  }

  public var stateSpec: StateSpec { average.stateSpec + attention.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (batch, tokens) = (x.shape[0], x.shape[1])
    let a = alpha.value.sigmoid()
    let decay = 1 - a * delta.value.sigmoid()
    let gain = a * beta.value * eta.value / Double(averages).squareRoot()
    let c =
      (average.scoped(
        .init(
          input: x, decay: ComplexTensor(re: decay, im: decay * 0),
          output: ComplexTensor(re: gain, im: gain * 0)), "", &state, context)
      + x * omega.value).silu()
    let logits = router(c) * (-temperature.value).exp()
    let difference = logits.split([1, 1])
    let d = difference[1] - difference[0]
    // 1 where d > 0, constant in the gradient.
    let open = d.relu().detached()
    let active = open / open.maximum(.full(1e-30, [1], on: x.device))
    let keys = unit.keys(c)
    // One more channel: 1 in queries, −10⁴ in the keys of tokens that are not active.
    let ones = Tensor.full(1, [batch, tokens, 1], on: x.device)
    let o = attention.scoped(
      .init(
        q: concatenated([keys[0], ones]).heads(1),
        k: concatenated([keys[1], (active - 1) * 1e4]).heads(1), v: value(x).silu().heads(1)),
      "", &state, context)
    let y = unit(x, c, o.mergedHeads())
    return c + active * (y * d.sigmoid() - c)
  }
}
