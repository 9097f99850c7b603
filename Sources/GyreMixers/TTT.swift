import GyreLayers
import GyreRecurrence
import GyreTensors

/// TTT-Linear and TTT-MLP: layers whose state is a network that learns while it reads.
///
///     yᵢ = qᵢ + LN(f(qᵢ; Wᵢ))    W by `TestTimeTraining`    out = W_o LN(y)
///     ηᵢ = η₀ σ(w·xᵢ + b) / K    uᵢ = max(1/i + δᵢ, 0)
///
/// for each head, i the place in the mini-batch, δ learned. q, k and v are linear maps of x, q and k
/// optionally one map with short convolutions of their own; q and k turn by their place in the
/// mini-batch. f is linear, or with `hidden` two layers with gelu. Sun et al., "Learning to (learn at
/// test time): RNNs with expressive hidden states", 2024. https://arxiv.org/abs/2407.04620
///
/// State: of each layer the weights and the sum of the mini-batch, `[H, inputs + 1, outputs]`, twice.
public struct TTT: SequenceMixer {
  public static let kind = "ttt"
  public struct Configuration: MixerConfiguration {
    public enum Network: String, Codable, Hashable, Sendable { case linear, mlp }
    public var heads = 4
    public var network = Network.linear
    /// Tokens a gradient step; the rate is that of a whole mini-batch.
    public var batchSize = 16
    /// η₀.
    public var rate = 1.0
    /// q and k from one map, each with a short convolution of that many taps; 0: maps of their own.
    public var convolution = 0
    /// Multiplies the result by gelu(W_g x).
    public var gatesOutput = false
    public var rotaryBase = 10_000.0
    public static var largeFields: Set<String> { ["rotaryBase"] }
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: heads, field: "heads", of: "width")
      try require(
        width / heads % 2 == 0, "heads", "must leave an even number of channels a head, is \(heads)"
      )
      try require(
        (1...1024).contains(batchSize), "batchSize", "must be in 1...1024, is \(batchSize)")
      try require(rate > 0 && rate <= 100, "rate", "must be in (0, 100], is \(rate)")
      try HeadSizes.convolution(convolution)
      try require(
        rotaryBase > 0 && rotaryBase <= 1e12, "rotaryBase", "must be in (0, 1e12], is \(rotaryBase)"
      )
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.batchSize = 6 },
    with(Configuration()) {
      $0.heads = 2; $0.network = .mlp; $0.batchSize = 4; $0.rate = 0.3; $0.convolution = 3
      $0.gatesOutput = true; $0.rotaryBase = 100
    },
  ]

  private let projection, rate, output: Linear
  private let queries, keys: ShortConvolutionLayer?
  private let place, normWeight, normBias: Parameter
  private let weights: [Parameter]
  private let norm: NormLayer
  private let engine: TestTimeTraining
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    let size = width / c.heads
    let maps = (c.convolution > 0 ? 2 : 3) + (c.gatesOutput ? 1 : 0)
    projection = try Linear(
      c.convolution > 0 ? "xv" : "qkv", inputs: width, outputs: maps * width, &p)
    func convolution(
      _ name: String, _ p: inout ParameterBuilder
    ) throws(ConfigurationError) -> ShortConvolutionLayer? {
      c.convolution > 0
        ? try ShortConvolutionLayer(
          name, channels: width, width: c.convolution, bias: true, activates: false,
          entry: name, &p) : nil
    }
    queries = try convolution("q_window", &p)
    keys = try convolution("k_window", &p)
    rate = try Linear(
      "rate", inputs: width, outputs: c.heads, bias: .zeros,
      initializer: .normal(standardDeviation: 0.02), &p)
    place = try p.parameter("place", [c.batchSize], .zeros, decay: WeightDecay.none)
    normWeight = try p.parameter(
      "inner_norm.weight", [c.heads, size], .constant(1), decay: WeightDecay.none)
    normBias = try p.parameter(
      "inner_norm.bias", [c.heads, size], .zeros, decay: WeightDecay.none)
    engine = TestTimeTraining(
      heads: c.heads, size: size, hidden: c.network == .mlp ? 4 * size : 0, batchSize: c.batchSize)
    var weights: [Parameter] = []
    for (l, shape) in engine.weightShapes.enumerated() {
      // N(0, 0.02), the last row, the biases, zero.
      let (rows, columns) = (shape[1], shape[2])
      weights.append(
        try p.parameter(
          "W\(l)", shape,
          .values { count, g in
            g.normals(count).enumerated().map { i, x in
              i / columns % rows == rows - 1 ? 0 : 0.02 * x
            }
          }, decay: WeightDecay.none))
    }
    self.weights = weights
    norm = try NormLayer("norm", width, kind: .layer, bias: true, &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
  }

  public var stateSpec: StateSpec {
    engine.stateSpec + (queries?.stateSpec ?? StateSpec()) + (keys?.stateSpec ?? StateSpec())
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let width = x.shape.last
    let (batch, tokens, heads) = (x.shape[0], x.shape[1], c.heads)
    var parts = projection(x).split(Array(repeating: width, count: projectionCount))
    let gate = c.gatesOutput ? parts.removeLast() : nil
    let v = parts.removeLast()
    if let queries, let keys {
      parts = [
        queries(parts[0], state: &state, reset: context.reset),
        keys(parts[0], state: &state, reset: context.reset),
      ]
    }
    let plan = SegmentPlan(
      x, period: c.batchSize, limit: SegmentPlan.limit(context.form), state: &state,
      reset: context.reset)
    let turn = Turn(
      plan, size: width / heads, base: c.rotaryBase, batch: batch, tokens: tokens, heads: heads,
      on: x.device)
    let q = turn(parts[0].heads(heads))
    let ramp = Tensor((1...c.batchSize).map { 1 / Float($0) }, shape: [c.batchSize], on: x.device)
    let z = engine(
      .init(
        q: q, k: turn(parts[1].heads(heads)), v: v.heads(heads),
        rate: rate(x).sigmoid() * (c.rate * Double(heads) / Double(width)),
        place: (ramp + place.value).relu(), weights: weights.map(\.value),
        normWeight: normWeight.value, normBias: normBias.value), plan: plan, state: &state)
    // LN over a head with γ and β of the head.
    let row: Shape = [batch, tokens, heads, 1]
    let K = Double(width / heads)
    let centred = z - z.summed(to: row) / K
    let scale = ((centred * centred).summed(to: row) / K + engine.epsilon).unary(.reciprocalSqrt)
    let y = q + centred * scale * normWeight.value + normBias.value
    let normed = norm(y.mergedHeads())
    return output(gate.map { normed * $0.unary(.geluTanh) } ?? normed)
  }

  private var projectionCount: Int { (c.convolution > 0 ? 2 : 3) + (c.gatesOutput ? 1 : 0) }
}

/// Rotary positions that start again with every segment of a plan, which may differ from row to row.
struct Turn: Sendable {
  private let cosine, sine: Tensor

  init(
    _ plan: SegmentPlan, size: Int, base: Double, batch: Int, tokens: Int, heads: Int,
    on device: any Device
  ) {
    let half = size / 2
    let rates = (0..<half).map { Functions.pow(base, -2 * Double($0) / Double(size)) }
    let angles = (0..<plan.period).flatMap { t in rates.map { Double(t) * $0 } }
    let index = Tensor(
      plan.positions.flatMap { row in
        row.flatMap { [Int32](repeating: Int32($0), count: heads) }
      }, shape: [batch * tokens * heads], on: device)
    func table(_ f: (Double) -> Double) -> Tensor {
      Tensor(angles.map { Float(f($0)) }, shape: [plan.period, half], on: device).rows(index)
        .reshaped([batch, tokens, heads, half])
    }
    cosine = table(Functions.cos)
    sine = table(Functions.sin)
  }

  /// `[B, T, H, K]`, halves paired.
  func callAsFunction(_ t: Tensor) -> Tensor {
    let half = t.shape.last / 2
    let p = t.split([half, half])
    return concatenated([p[0] * cosine - p[1] * sine, p[0] * sine + p[1] * cosine])
  }
}
