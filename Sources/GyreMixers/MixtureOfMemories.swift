import GyreLayers
import GyreRecurrence
import GyreTensors

/// Mixture of memories: a router sends each token to a few of several gated delta rule memories, and
/// to one that all tokens share.
///
///     p = softmax(W_r x)    m ∈ top-n of p: Sᵐ takes a step of `GatedDeltaNet` with kᵐ, vᵐ, αᵐ, βᵐ
///     y = Σ_m p_m / Σ p · K^-½ Sᵐᵀ q + shared    out = W_o (RMSNorm(y) ∘ silu(W_g x))
///
/// The short convolution of a memory runs over its own tokens only. Decay rates are common to all
/// memories. Du et al., "MoM: linear sequence modeling with mixture-of-memories", 2025.
/// https://arxiv.org/abs/2502.13685
///
/// All memories are heads of one engine call; where a token does not go, α = 1 and β = 0 leave the
/// state as it is.
///
/// State: `[M·H, K, V]` and each memory's last tokens. Engine: `DeltaRule`, scalar gate.
public struct MixtureOfMemories: SequenceMixer {
  public static let kind = "mixture_of_memories"
  public struct Configuration: MixerConfiguration {
    public var headSize = 64
    /// Heads a memory; 0: ¾ of width / headSize, at least 1.
    public var heads = 0
    /// Value channels a head over `headSize`.
    public var valueExpansion = 1.0
    /// Memories that the router chooses from, and how many each token goes to.
    public var memories = 4
    public var selected = 2
    /// One more memory for all tokens.
    public var hasSharedMemory = true
    /// One k, v, α and β for all memories.
    public var sharesProjections = false
    public var convolution = 4
    public var gatesOutput = true
    /// β = 2σ, in (0, 2).
    public var negativeEigenvalues = false
    public var normEpsilon = 1e-5
    /// Each memory takes a run's tokens in the order of `MemoryOrder`: tokens see later ones, and
    /// numbers depend on the batch. Only to give flash-linear-attention's numbers of a CPU; packed
    /// documents and single tokens stay in order.
    public var unstableOrder = false
    public init() {}

    func headCount(_ width: Int) -> Int { heads > 0 ? heads : max(1, width * 3 / (4 * headSize)) }
    var valueSize: Int { Int((valueExpansion * Double(headSize)).rounded()) }
    var lanes: Int { memories + (hasSharedMemory ? 1 : 0) }
    /// How many sets of k, v, α and β there are.
    var projections: Int { sharesProjections ? 1 : lanes }

    public func resolved(width: Int) -> Self {
      with(self) { $0.heads = headCount(width) }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.positive(headSize, "headSize")
      try require(heads >= 0, "heads", "must not be negative, is \(heads)")
      try HeadSizes.expanded(valueExpansion, headSize, by: 1, field: "valueExpansion")
      try HeadSizes.positive(memories, "memories")
      try require(
        (1...memories).contains(selected), "selected", "must be in 1...\(memories), is \(selected)")
      try HeadSizes.convolution(convolution)
      try HeadSizes.epsilon(normEpsilon)
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.headSize = 8; $0.heads = 2
    },
    with(Configuration()) {
      $0.headSize = 8; $0.heads = 1; $0.valueExpansion = 2; $0.memories = 3; $0.selected = 1
      $0.hasSharedMemory = false; $0.convolution = 2; $0.gatesOutput = false
      $0.normEpsilon = 1e-6
    },
    with(Configuration()) {
      $0.headSize = 8; $0.heads = 2; $0.memories = 3; $0.sharesProjections = true
      $0.convolution = 0; $0.negativeEigenvalues = true
    },
  ]

  private let router, query, memory, output: Linear
  private let gate: Linear?
  private let decay: StepDecay
  private let convolution: Parameter?
  private let norm: OutputNorm
  private let engine: DeltaRule
  private let c: Configuration
  private let heads, keys, values: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    self.c = c
    heads = c.headCount(width)
    keys = heads * c.headSize
    values = heads * c.valueSize
    router = try Linear("router", inputs: width, outputs: c.memories, &p)
    query = try Linear("q", inputs: width, outputs: keys, &p)
    // k of all memories, v of all, decays of all, strengths of all; the shared memory is the last.
    memory = try Linear(
      "memory", inputs: width, outputs: c.projections * (keys + values + 2 * heads), &p)
    decay = try StepDecay(heads: heads, rates: 0...16, &p)
    let (channels, taps) = (2 * keys + values, c.convolution)
    convolution =
      taps > 0
      ? try p.parameter(
        "convolution.weight", [channels, taps], .fanIn(taps), decay: WeightDecay.none) : nil
    gate = c.gatesOutput ? try Linear("gate", inputs: width, outputs: values, &p) : nil
    norm = try OutputNorm(c.valueSize, epsilon: c.normEpsilon, &p)
    output = try Linear("output", inputs: values, outputs: width, &p)
    engine = DeltaRule(heads: c.lanes * heads, keySize: c.headSize, valueSize: c.valueSize)
  }

  public var stateSpec: StateSpec {
    engine.stateSpec
      + (c.convolution > 1
        ? StateSpec([.init("window", [c.lanes, c.convolution - 1, 2 * keys + values], .window)])
        : StateSpec())
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (batch, tokens, lanes) = (x.shape[0], x.shape[1], c.lanes)
    let routed = route(x, &context)
    let (mask, weights, order) = (routed.taken, routed.weights, routed.order)
    let n = c.projections
    let parts = memory(x).split([n * keys, n * values, n * heads, n * heads])
      .map { inLanes($0).placed(order?.places) }
    let qkv = concatenated([
      repeated(query(x).reshaped([batch, tokens, 1, keys])).placed(order?.places), parts[0],
      parts[1],
    ])
    let mixed = convolved(qkv, mask: mask, state: &state, reset: context.reset)
      .split([keys, keys, values])
      .map { $0.reshaped([batch, tokens, lanes * heads, $0.shape.last / heads]) }
    let taken = mask.reshaped([batch, tokens, lanes, 1])
    let y = engine(
      .init(
        q: mixed[0].l2Normalized(), k: mixed[1].l2Normalized(), v: mixed[2],
        beta: (parts[3].sigmoid() * (c.negativeEigenvalues ? taken * 2 : taken)).reshaped([
          batch, tokens, lanes * heads,
        ]),
        gate: .scalar((decay(parts[2]) * taken).reshaped([batch, tokens, lanes * heads]))),
      state: &state, form: context.form, reset: context.reset)
    let answers =
      (y.reshaped([batch, tokens, lanes, values]).placed(order?.inverse)
      * weights.reshaped([batch, tokens, lanes, 1])).split(
        [Int](repeating: 1, count: lanes), axis: 2)
    let sum = answers.dropFirst().reduce(answers[0], +)
      .reshaped([batch, tokens, heads, c.valueSize])
    return output(norm(sum, gate: gate?(x).heads(heads)).mergedHeads())
  }

  /// Where a lane's tokens go, and where they came from: rows of a flattened `[B, T, lanes]`.
  private struct Order {
    var places, inverse: Tensor
  }

  /// Which lanes take each token, and with what weight they answer; `[B, T, lanes]` both. With an order,
  /// `taken` speaks of the places in it.
  private func route(
    _ x: Tensor, _ context: inout SequenceContext
  ) -> (taken: Tensor, weights: Tensor, order: Order?) {
    let p = router(x).softmax()
    let chosen = p.topMask(c.selected)
    context.recordRouting(probabilities: p, chosen: chosen)
    let kept = p * chosen
    var (taken, weights) = (chosen, kept / kept.summed(to: [x.shape[0], x.shape[1], 1]))
    if c.hasSharedMemory {
      let one = Tensor.full(1, [x.shape[0], x.shape[1], 1], on: x.device)
      (taken, weights) = (concatenated([taken, one]), concatenated([weights, one]))
    }
    guard c.unstableOrder, x.shape[1] > 1, context.reset == nil else {
      return (taken, weights, nil)
    }
    let order = apply(MemoryOrder(count: c.selected, hasShared: c.hasSharedMemory), [p])
    return (order[0], weights, Order(places: order[1], inverse: order[2]))
  }

  /// `[B, T, n·size]` as `[B, T, lanes, size]`.
  private func inLanes(_ x: Tensor) -> Tensor {
    let (batch, tokens, n) = (x.shape[0], x.shape[1], c.projections)
    let apart = x.reshaped([batch, tokens, n, x.shape[2] / n])
    return c.sharesProjections ? repeated(apart) : apart
  }

  /// `[B, T, 1, size]` once for each lane.
  private func repeated(_ x: Tensor) -> Tensor {
    concatenated(Array(repeating: x, count: c.lanes), axis: 2)
  }

  /// The short convolution with SiLU of each lane's own tokens, `[B, T, lanes, channels]`. Tokens that
  /// a lane does not take come out as something finite that nobody reads.
  private func convolved(
    _ x: Tensor, mask: Tensor, state: inout State, reset: Tensor?
  ) -> Tensor {
    guard let convolution else { return x.silu() }
    let (batch, tokens, lanes, channels) = (x.shape[0], x.shape[1], x.shape[2], x.shape[3])
    let taps = convolution.value.permuted([1, 0])
    func tap(_ j: Int) -> Tensor { taps.sliced(j..<j + 1, axis: 0).reshaped([channels]) }
    let width = c.convolution
    guard width > 1 else { return (x * tap(0)).silu() }
    let table = concatenated(
      [
        .zeros([batch, lanes, 1, channels], on: x.device),
        state["window"] ?? .zeros([batch, lanes, width - 1, channels], on: x.device),
        x.permuted([0, 2, 1, 3]),
      ], axis: 2
    ).reshaped([batch * lanes * (width + tokens), channels])
    let places = apply(
      SelectedHistory(width: width, hasReset: reset != nil), [mask] + (reset.map { [$0] } ?? []))
    var sum = x * tap(width - 1)
    for j in 0..<width - 1 { sum = sum + table.rows(places[j]) * tap(j) }
    state["window"] = table.rows(places[width - 1])
    return sum.silu()
  }
}

extension Tensor {
  /// `[B, T, lanes, size]` with its rows where `places` says; as it is for nil.
  fileprivate func placed(_ places: Tensor?) -> Tensor {
    guard let places else { return self }
    return reshaped([places.shape.elementCount, shape.last]).rows(places)
  }
}

extension SequenceContext {
  /// Adds a layer's routing to what a balance loss over all layers needs: mean probabilities and the
  /// mean choice of each memory or expert.
  mutating func recordRouting(probabilities: Tensor, chosen: Tensor) {
    let count = Double(max(probabilities.shape.rowCount, 1))
    for (name, value) in [
      (RoutingKey.probability, probabilities), (.load, chosen),
    ] {
      let mean = value.summed(to: [value.shape.last]) / count
      shared[name.rawValue] = shared[name.rawValue].map { $0 + mean } ?? mean
    }
    let one = Tensor.full(1, [1], on: probabilities.device)
    shared[RoutingKey.layers.rawValue] = shared[RoutingKey.layers.rawValue].map { $0 + one } ?? one
  }

  /// E · Σₑ loadₑ · probabilityₑ over the means of all routed layers and tokens: the balance loss of
  /// the Switch Transformer, with loads that sum to the number of choices. Nil where nothing routed.
  ///
  /// Fedus, Zoph and Shazeer, "Switch Transformers", 2021.
  public var balanceLoss: Tensor? {
    guard let probability = shared[RoutingKey.probability.rawValue],
      let load = shared[RoutingKey.load.rawValue], let layers = shared[RoutingKey.layers.rawValue]
    else { return nil }
    let product = (probability / layers) * (load / layers)
    return product.sum() * Double(probability.elementCount)
  }
}

/// Names of what routers leave in the context.
private enum RoutingKey: String {
  case probability = "router.probability"
  case load = "router.load"
  case layers = "router.layers"
}
