import GyreLayers
import GyreRecurrence
import GyreTensors

/// RAT: a gated mean inside chunks of L tokens, softmax attention over the means.
///
///     ṽₜ = gₜ ∘ ṽₜ₋₁ + (1 − gₜ) ∘ vₜ    k̃ₜ likewise, both zero before each chunk    g = σ(W_g x + b)
///     yₜ = softmax over the ends of earlier chunks and t itself of (qₜ·k̃) ṽ    out = W_o (y ∘ σ(W_z x))
///
/// Queries and keys turn with the chunk's number. With L = 1 it is attention over (1 − g) v. Wei,
/// Yadav, Pascanu and Gulcehre, "RAT: bridging RNN efficiency and attention accuracy in language
/// modeling", 2025. https://arxiv.org/abs/2507.04416
///
/// State: k̃ and ṽ `[D]` each, a key and a value for each whole chunk, the token count. Engines:
/// `DiagonalScan` and matrix products.
public struct RAT: SequenceMixer {
  public static let kind = "rat"
  public struct Configuration: MixerConfiguration {
    public var heads = 4
    /// L.
    public var chunk = 16
    public var rotary = true
    public var rotaryBase = 10_000.0
    public static var largeFields: Set<String> { ["rotaryBase"] }
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try HeadSizes.divide(width, by: heads, field: "heads", of: "width")
      try require((1...1 << 20).contains(chunk), "chunk", "must be in 1...\(1 << 20), is \(chunk)")
      guard rotary else { return }
      try require(
        width / heads % 2 == 0, "heads", "must leave an even number of channels a head, is \(heads)"
      )
      try require(
        rotaryBase > 0 && rotaryBase <= 1e12, "rotaryBase", "must be in (0, 1e12], is \(rotaryBase)"
      )
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.chunk = 5 },
    with(Configuration()) {
      $0.heads = 2; $0.chunk = 1; $0.rotaryBase = 100
    },
    with(Configuration()) {
      $0.chunk = 3; $0.rotary = false
    },
  ]

  private let projection, gate, output: Linear
  private let scan: DiagonalScan
  private let counter = TokenCounter()
  private let c: Configuration
  private let size: Int

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    (self.c, size) = (c, width / c.heads)
    projection = try Linear("qkvz", inputs: width, outputs: 4 * width, &p)
    let longest = Float(max(c.chunk - 1, 1))
    gate = try Linear(
      "gate", inputs: width, outputs: width,
      bias: .values { n, g in
        g.uniforms(n, 1, longest).map { Float(Functions.log(max(Double($0), 1))) }
      }, &p)
    output = try Linear("output", inputs: width, outputs: width, &p)
    scan = DiagonalScan(channels: 2 * width)
  }

  public var stateSpec: StateSpec {
    let kind = StateSpec.Kind.cache(limit: nil, every: c.chunk)
    return scan.stateSpec + counter.stateSpec
      + StateSpec([
        .init("keys", [0, c.heads, size], kind), .init("values", [0, c.heads, size], kind),
        .init("visible", [0], kind), SegmentPlan.entry,
      ])
  }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    let (batch, tokens, width) = (x.shape[0], x.shape[1], x.shape.last)
    guard tokens > 0 else { return x }
    let plan = SegmentPlan(x, period: c.chunk, state: &state, reset: context.reset)
    let parts = projection(x).split([width, width, width, width])
    let g = gate(x).sigmoid()
    let begins = plan.positions.flatMap { row in row.map { $0 == 0 ? Int32(1) : 0 } }
    var local = context
    local.reset = Tensor(begins, shape: [batch, tokens], on: x.device)
    let means = scan.scoped(
      .init(
        decay: concatenated([g, g]), decayIsLog: false,
        input: concatenated([parts[1], parts[2]]) * (1 - concatenated([g, g]))), "", &state, local
    ).split([width, width])
    var (q, k) = (parts[0].heads(c.heads), means[0].heads(c.heads))
    let v = means[1].heads(c.heads)
    let counts = counter(like: x, state: &state, context: context)
    if c.rotary { (q, k) = turned(q, k, plan, counts) }
    let y = attend(q, k, v, plan, &state)
    return output(y.mergedHeads() * parts[3].sigmoid())
  }

  /// By the chunk's number in its document, (count − 1 − place in the chunk)/L.
  private func turned(
    _ q: Tensor, _ k: Tensor, _ plan: SegmentPlan, _ counts: Tensor
  ) -> (Tensor, Tensor) {
    let (rows, half) = (q.shape[0] * q.shape[1] * c.heads, size / 2)
    let device = q.device
    let places = Tensor(
      plan.positions.flatMap { $0.map { Float($0 + 1) } }, shape: counts.shape, on: device)
    let number = ((counts - places) / Double(c.chunk)).reshaped([q.shape[0], q.shape[1], 1, 1])
      .repeatedHeads(c.heads).reshaped([rows, 1])
    let rates = Tensor(
      (0..<half).map { Float(Functions.pow(c.rotaryBase, -Double($0) / Double(half))) },
      shape: [1, half], on: device)
    let angle = number.matmul(rates, precision: .float32)
      .reshaped(Shape(q.shape.dimensions.dropLast() + [half]))
    let (cosine, sine) = (angle.unary(.cosine), angle.unary(.sine))
    func turn(_ t: Tensor) -> Tensor {
      let p = t.split([half, half])
      return concatenated([p[0] * cosine - p[1] * sine, p[0] * sine + p[1] * cosine])
    }
    return (turn(q), turn(k))
  }

  private func attend(
    _ q: Tensor, _ k: Tensor, _ v: Tensor, _ plan: SegmentPlan, _ state: inout State
  ) -> Tensor {
    let (batch, tokens, device) = (q.shape[0], q.shape[1], q.device)
    // Tokens at which some row ends a chunk, and who may see them.
    let ends = (0..<tokens).filter { t in plan.positions.contains { $0[t] == c.chunk - 1 } }
    var visible: [Float] = []
    var alive: [Float] = []
    var left: [Float] = []
    var document = [Int](repeating: -1, count: tokens)
    for b in 0..<batch {
      for t in 0..<tokens {
        document[t] = plan.documents[b][t] ? t : t > 0 ? document[t - 1] : -1
        alive.append(document[t] < 0 ? 1 : 0)
        visible += ends.map {
          $0 < t && $0 >= document[t] && plan.positions[b][$0] == c.chunk - 1 ? 1 : 0
        }
      }
      left += ends.map {
        $0 >= document[tokens - 1] && plan.positions[b][$0] == c.chunk - 1 ? 1 : 0
      }
    }
    let n = ends.count
    func gathered(_ t: Tensor) -> Tensor {
      let index = (0..<batch).flatMap { b in ends.map { Int32(b * tokens + $0) } }
      return t.reshaped([batch * tokens, c.heads * size])
        .rows(Tensor(index, shape: [index.count], on: device))
        .reshaped([batch, n, c.heads, size])
    }
    var keys = state["keys"]
    var values = state["values"]
    var seen = state["visible"]
    var mask = seen.map { seen in
      Tensor(alive, shape: [batch, tokens, 1], on: device)
        .matmul(seen.reshaped([batch, 1, seen.shape[1]]), precision: .float32)
    }
    let last = Tensor(
      (0..<batch).map { alive[$0 * tokens + tokens - 1] }, shape: [batch, 1], on: device)
    seen = seen.map { $0 * last }
    if n > 0 {
      func joined(_ old: Tensor?, _ new: Tensor, _ axis: Int) -> Tensor {
        old.map { concatenated([$0, new], axis: axis) } ?? new
      }
      keys = joined(keys, gathered(k), 1)
      values = joined(values, gathered(v), 1)
      mask = joined(mask, Tensor(visible, shape: [batch, tokens, n], on: device), 2)
      seen = joined(seen, Tensor(left, shape: [batch, n], on: device), 1)
    }
    (state["keys"], state["values"], state["visible"]) = (keys, values, seen)
    guard let keys, let values, let mask else { return v }
    let count = keys.shape[1]
    let hidden = ((mask - 1) * 1e30).reshaped([batch, 1, tokens, count])
    let hiding = concatenated(Array(repeating: hidden, count: c.heads), axis: 1)
      .reshaped([batch * c.heads, tokens, count])
    let rows = q.byHead() / Double(size).squareRoot()
    let own = (rows * k.byHead()).summed(to: [batch * c.heads, tokens, 1])
    let far = rows.matmul(keys.byHead(), transposingRight: true) + hiding
    let weights = concatenated([far, own]).softmax().split([count, 1])
    return (weights[0].matmul(values.byHead()) + v.byHead() * weights[1])
      .fromHeads(c.heads)
  }
}
