import GyreLayers
import GyreRecurrence
import GyreTensors

/// The block-recurrent layer: tokens attend to a window and to a bank of state vectors, which read each
/// block of W tokens when it is complete.
///
///     a = attention of x over its window    r = softmax(q_r Kₛᵀ) Vₛ    out = W_o [a, r]
///     at a block's end: z = W_z [attention of s over s, attention of s over the block]
///     fixed: s ← σ(β) ∘ s + (1 − σ(β)) ∘ z    lstm: s ← s ∘ σ(W_f s + b_f) + tanh(W_h z) ∘ σ(W_i z + b_i)
///
/// s + e, normalised, gives the states' queries, keys and values; keys and values of tokens and states
/// are one map. Hutchins, Schlag, Wu, Dyer and Neyshabur, "Block-recurrent Transformers", 2022.
/// https://arxiv.org/abs/2203.07852
///
/// State: s `[N, D]`, keys and values of the last W − 1 tokens, twice: turned by their positions for the
/// window, and not for the block. Engine: `SoftmaxAttention` and matrix products.
public struct BlockRecurrent: SequenceMixer {
  public static let kind = "block_recurrent"
  public struct Configuration: MixerConfiguration {
    public enum Gate: String, Codable, Hashable, Sendable { case fixed, lstm }
    public var heads = 4
    /// N.
    public var states = 64
    /// W, tokens a block and in a token's window.
    public var block = 64
    public var gate = Gate.fixed
    public var rotaryBase = 10_000.0
    public static var largeFields: Set<String> { ["rotaryBase"] }
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: heads, field: "heads", of: "width")
      try require(
        width / heads % 2 == 0, "heads", "must leave an even number of channels a head, is \(heads)"
      )
      try require(
        (1...1 << 16).contains(states), "states", "must be in 1...\(1 << 16), is \(states)")
      try require((1...1 << 20).contains(block), "block", "must be in 1...\(1 << 20), is \(block)")
      try require(
        rotaryBase > 0 && rotaryBase <= 1e12, "rotaryBase", "must be in (0, 1e12], is \(rotaryBase)"
      )
    }
  }
  public static let testConfigurations = [
    with(Configuration()) {
      $0.states = 3; $0.block = 5
    },
    with(Configuration()) {
      $0.heads = 2; $0.states = 4; $0.block = 4; $0.gate = .lstm; $0.rotaryBase = 100
    },
  ]

  private let projection, stateQueries, update, output: Linear
  private let gateForget, gateInput: Linear?
  private let initial, ids: Parameter
  private let gate: Parameter?
  private let norm: NormLayer
  private let window: SoftmaxAttention
  private let c: Configuration
  private let width, size: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    (self.c, self.width, size) = (c, width, width / c.heads)
    // Rows: keys, values, queries of the window, queries of the states.
    projection = try Linear("kvqr", inputs: width, outputs: 4 * width, &p)
    stateQueries = try Linear("state_q", inputs: width, outputs: 2 * width, &p)
    update = try Linear("update", inputs: 2 * width, outputs: width, &p)
    output = try Linear("output", inputs: 2 * width, outputs: width, &p)
    initial = try p.parameter("initial", [c.states, width], .normal(standardDeviation: 0.02))
    ids = try p.parameter("ids", [c.states, width], .normal(standardDeviation: 0.02))
    norm = try NormLayer("state_norm", width, &p)
    let isFixed = c.gate == .fixed
    gate =
      isFixed
      ? try p.parameter(
        "beta", [width], .normal(standardDeviation: 0.1, mean: 1), decay: WeightDecay.none) : nil
    gateForget =
      isFixed ? nil : try Linear("forget", inputs: width, outputs: width, bias: .constant(1), &p)
    gateInput =
      isFixed
      ? nil : try Linear("input", inputs: width, outputs: 2 * width, bias: .constant(-1), &p)
    window = SoftmaxAttention(
      heads: c.heads, keySize: size, valueSize: size, window: c.block)
  }

  public var stateSpec: StateSpec {
    window.stateSpec
      + StateSpec([
        .init("states", [c.states, width]), .init("block", [c.block - 1, 2 * width], .window),
        SegmentPlan.entry,
      ])
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let batch = x.shape[0]
    guard x.shape[1] > 0 else { return x }
    let plan = SegmentPlan(x, period: c.block, state: &state, reset: context.reset)
    let parts = projection(x).split([2 * width, width, width])
    let both = parts[0].split([width, width])
    let position = state.tokenCount
    func placed(_ t: Tensor) -> Tensor {
      t.heads(c.heads).rotated(base: c.rotaryBase, positionOffset: position)
    }
    let near = window.scoped(
      .init(q: placed(parts[1]), k: placed(both[0]), v: both[1].heads(c.heads)), "", &state,
      context
    ).mergedHeads()
    let start = Tensor.zeros([batch, c.states, width], on: x.device) + initial.value
    var s = state["states"] ?? start
    var tail = state.value("block", on: x.device)
    var found: [Tensor] = []
    let queryParts = plan.split(parts[2])
    let keyParts = plan.split(parts[0])
    for (index, piece) in plan.pieces.enumerated() {
      s = s.replacing(rows: piece.starts, by: start)
      let normed = norm(s + ids.value)
      let own = normed.linear(keyValueWeight).split([width, width])
      found.append(attend(queryParts[index], own[0], own[1]))
      let all = concatenated([tail, keyParts[index]], axis: 1)
      tail = all.end(c.block - 1)
      guard piece.ends.contains(true) else { continue }
      // A block that ends is the last W tokens.
      let block = all.end(c.block).split([width, width])
      let q = stateQueries(normed).split([width, width])
      let z = update(
        concatenated([attend(q[0], own[0], own[1]), attend(q[1], block[0], block[1])]))
      s = s.replacing(rows: piece.ends, by: gated(s, z))
    }
    state["states"] = s
    state["block"] = tail
    return output(concatenated([near, concatenated(found, axis: 1)]))
  }

  /// The rows of the tokens' map that make keys and values.
  private var keyValueWeight: Tensor {
    projection.weight.value.split([2 * width, 2 * width], axis: 0)[0]
  }

  private func gated(_ s: Tensor, _ z: Tensor) -> Tensor {
    if let gate {
      let keep = gate.value.sigmoid()
      return s * keep + z * (1 - keep)
    }
    guard let gateForget, let gateInput else { return z }
    let parts = gateInput(z).split([width, width])
    return s * gateForget(s).sigmoid() + parts[0].tanh() * parts[1].sigmoid()
  }

  /// softmax(q·kᵀ) v over all of k, `[B, n, D]`.
  private func attend(_ q: Tensor, _ k: Tensor, _ v: Tensor) -> Tensor {
    let rows = [q, k, v].map { $0.heads(c.heads).byHead() }
    let weights =
      (rows[0].matmul(rows[1], transposingRight: true) / Double(size).squareRoot()).softmax()
    return weights.matmul(rows[2]).fromHeads(c.heads).mergedHeads()
  }
}
