import GyreLayers
import GyreRecurrence
import GyreTensors

/// Gated feed-forward experts of which each token takes the k that its router likes best, without
/// a limit on how many tokens an expert takes.
///
///     p = softmax(W_r x)    y = Σ_{e in top k of p} pₑ Eₑ(x) + σ(w_s·x) E_s(x)
///
/// with pₑ over their sum where `normalizesWeights`; the shared expert E_s and its gate are
/// optional. With `routerChannels` the router is recurrent over layers: p = softmax(W_r h), and a gated
/// recurrent unit that all such layers share carries h from one to the next,
///
///     h ← (1 − z) ∘ h + z ∘ tanh(W_n x' + r ∘ U_n h)    z, r = σ(W x' + U h)    x' = W_in x
///
/// Shazeer et al., "Outrageously large neural networks", 2017. https://arxiv.org/abs/1701.06538; Qiu et
/// al., "Layerwise recurrent router for mixture-of-experts", 2024. https://arxiv.org/abs/2408.06793
///
/// Which experts a token takes is read on the host, once a call.
public struct MixtureOfExperts: SequenceMixer {
  public static let kind = "mixture_of_experts"
  public struct Configuration: MixerConfiguration {
    public var experts = 8
    /// k.
    public var expertsPerToken = 2
    /// Width of an expert's hidden layer; 0: that of `gated_mlp`.
    public var hidden = 0
    public var activation = "silu"
    /// Divides the chosen probabilities by their sum.
    public var normalizesWeights = true
    /// Width of the shared expert's hidden layer; 0: no shared expert.
    public var sharedHidden = 0
    public var gatesShared = true
    /// Gate and up as matrices of their own: loading them copies nothing.
    public var separate = false
    /// Channels of the recurrent router; 0: the router sees the layer alone.
    public var routerChannels = 0
    public init() {}

    func block(_ hidden: Int) -> GatedMLP.Configuration {
      var c = GatedMLP.Configuration()
      (c.hidden, c.activation, c.separate) = (hidden, activation, separate)
      return c
    }
    public func resolved(width: Int) -> Self {
      with(self) { $0.hidden = block(hidden).resolved(width: width).hidden }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try require((1...4096).contains(experts), "experts", "must be in 1...4096, is \(experts)")
      try require(
        (1...experts).contains(expertsPerToken), "expertsPerToken",
        "must be in 1...\(experts), is \(expertsPerToken)")
      try require(
        (0...1 << 16).contains(routerChannels), "routerChannels",
        "must be in 0...\(1 << 16), is \(routerChannels)")
      try require(sharedHidden >= 0, "sharedHidden", "must not be negative, is \(sharedHidden)")
      try block(hidden).validate(width: width)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.experts = 3; $0.hidden = 24
    },
    with(Configuration()) {
      $0.experts = 4; $0.expertsPerToken = 3; $0.hidden = 16; $0.normalizesWeights = false
      $0.sharedHidden = 20; $0.separate = true; $0.activation = "gelu"
    },
    with(Configuration()) {
      $0.experts = 3; $0.hidden = 12; $0.routerChannels = 6
    },
  ]

  private let router: Linear
  private let recurrent: RecurrentRouter?
  private let experts: [GatedUnitLayer]
  private let shared: GatedUnitLayer?
  private let sharedGate: Linear?
  private let c: Configuration

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    recurrent =
      c.routerChannels > 0 ? try RecurrentRouter(width: width, channels: c.routerChannels, &p) : nil
    router = try Linear(
      "router", inputs: c.routerChannels > 0 ? c.routerChannels : width, outputs: c.experts, &p)
    func expert(
      _ name: String, _ hidden: Int, _ p: inout ParameterBuilder
    ) throws(ConfigurationError) -> GatedUnitLayer {
      try p.scoped(name) { p throws(ConfigurationError) in
        try GatedUnitLayer(c.block(hidden), width: width, &p)
      }
    }
    var experts: [GatedUnitLayer] = []
    for i in 0..<c.experts { experts.append(try expert("experts.\(i)", c.hidden, &p)) }
    self.experts = experts
    shared = c.sharedHidden > 0 ? try expert("shared", c.sharedHidden, &p) : nil
    sharedGate =
      c.sharedHidden > 0 && c.gatesShared
      ? try Linear("shared_gate", inputs: width, outputs: 1, &p) : nil
  }

  public var stateSpec: StateSpec { StateSpec() }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (width, k) = (x.shape.last, c.expertsPerToken)
    let count = x.shape.rowCount
    guard count > 0 else { return x }
    let flat = x.reshaped([count, width])
    let probabilities = router(recurrent?(flat, &context) ?? flat).softmax()
    let route = Route(probabilities, k: k)
    var weights = probabilities.reshaped([count * c.experts, 1]).rows(route.chosen)
    if c.normalizesWeights {
      let rows = weights.reshaped([count, k])
      weights = (rows / rows.summed(to: [count, 1])).reshaped([count * k, 1])
    }
    let inputs = flat.rows(route.tokens).split(route.sizes.map(\.count), axis: 0)
    let outputs = concatenated(
      zip(route.sizes, inputs).map { experts[$0.expert]($1) }, axis: 0)
    let mixed = (outputs.rows(route.places) * weights).reshaped([count, k, width])
      .summed(to: [count, 1, width]).reshaped([count, width])
    guard let shared else { return mixed.reshaped(x.shape) }
    let common = shared(flat)
    let gated = sharedGate.map { common * $0(flat).sigmoid() } ?? common
    return (mixed + gated).reshaped(x.shape)
  }
}

/// A gated recurrent unit over layers, the same for all of them, that sees each token's input.
private struct RecurrentRouter: Sendable {
  private let input: Linear
  private let inputs, states: Parameter
  private let channels: Int

  init(
    width: Int, channels n: Int, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    channels = n
    input = try Linear("router_input", inputs: width, outputs: n, &p)
    inputs = try p.shared("router.\(n).inputs", [3 * n, n], .fanIn(n))
    states = try p.shared("router.\(n).states", [3 * n, n], .fanIn(n))
  }

  /// `[tokens, D]` to h `[tokens, channels]`, which the next layer goes on from.
  func callAsFunction(_ x: Tensor, _ context: inout SequenceContext) -> Tensor {
    let (key, n) = ("router.\(channels)", channels)
    let before = context.shared[key] ?? .zeros([x.shape[0], n], on: x.device)
    let a = input(x).linear(inputs.value).split([n, n, n])
    let b = before.linear(states.value).split([n, n, n])
    let update = (a[0] + b[0]).sigmoid()
    let candidate = (a[2] + (a[1] + b[1]).sigmoid() * b[2]).tanh()
    let h = before + update * (candidate - before)
    context.shared[key] = h
    return h
  }
}

/// Which tokens go to which experts.
private struct Route {
  /// Indices into the flat probabilities, int32 `[n·k]`, tokens in order.
  let chosen: Tensor
  /// The token of each row, rows sorted by expert, int32 `[n·k]`.
  let tokens: Tensor
  /// The row of each token's each choice, int32 `[n·k]`.
  let places: Tensor
  /// Experts with at least one row, and how many they have.
  let sizes: [(expert: Int, count: Int)]

  /// - Parameter p: `[n, E]`. Of equal probabilities the first counts as larger.
  init(_ p: Tensor, k: Int) {
    let (n, experts) = (p.shape[0], p.shape[1])
    var values: [Float]
    do throws(DeviceError) { values = try p.floats() } catch {
      p.device.fail(error)
      values = [Float](repeating: 0, count: n * experts)
    }
    var chosen: [Int32] = []
    var rows = [[(token: Int32, choice: Int)]](repeating: [], count: experts)
    for t in 0..<n {
      var taken: Set<Int> = []
      for _ in 0..<k {
        var best = -1
        for e in 0..<experts where !taken.contains(e) {
          if best < 0 || values[t * experts + e] > values[t * experts + best] { best = e }
        }
        taken.insert(best)
        rows[best].append((Int32(t), chosen.count))
        chosen.append(Int32(t * experts + best))
      }
    }
    let sorted = rows.joined()
    var places = [Int32](repeating: 0, count: n * k)
    for (row, item) in sorted.enumerated() { places[item.choice] = Int32(row) }
    func tensor(_ values: [Int32]) -> Tensor { Tensor(values, shape: [n * k], on: p.device) }
    self.chosen = tensor(chosen)
    self.tokens = tensor(sorted.map(\.token))
    self.places = tensor(places)
    sizes = rows.enumerated().compactMap { $1.isEmpty ? nil : ($0, $1.count) }
  }
}
