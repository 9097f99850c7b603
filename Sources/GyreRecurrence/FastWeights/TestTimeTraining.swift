import GyreTensors

/// A state that is a network, trained by one gradient step for each mini-batch of b tokens of the
/// sequence itself:
///
///     ℓⱼ(W) = ½‖γ LN(f(kⱼ; W)) + β − (vⱼ − kⱼ)‖²    Wᵢ = W − uᵢ Σ_{j≤i} ηⱼ ∇ℓⱼ(W)    yᵢ = f(qᵢ; Wᵢ)
///
/// with W the weights at the start of the mini-batch, i and j tokens of it, and u a factor of the place
/// in it. After the b-th token W becomes W_b. Sun et al., "Learning to (learn at test time): RNNs with
/// expressive hidden states", 2024. https://arxiv.org/abs/2407.04620
///
/// State: per layer "W0", "W1" `[H, inputs + 1, outputs]` and "sum0", "sum1", Σ η ∇ℓ of the current
/// mini-batch; "position". The dual form of a piece of n tokens never makes the n weights: 6·n + 6·K
/// products a token, layer and output channel.
public struct TestTimeTraining: RecurrenceEngine {
  public let heads, size, hidden, batchSize: Int
  private let network: InnerNetwork
  public let epsilon: Double

  /// - Parameters:
  ///   - hidden: units between two layers; 0 for one linear layer.
  ///   - batchSize: b.
  public init(heads: Int, size: Int, hidden: Int = 0, batchSize: Int = 16, epsilon: Double = 1e-6) {
    (self.heads, self.size, self.hidden) = (heads, size, hidden)
    (self.batchSize, self.epsilon) = (batchSize, epsilon)
    network = InnerNetwork(layers: hidden > 0 ? 2 : 1, hasBias: true)
  }

  public struct Inputs: Sendable {
    /// q, k, v `[B, T, H, K]`.
    public var q, k, v: Tensor
    /// η `[B, T, H]`.
    public var rate: Tensor
    /// u `[b]`.
    public var place: Tensor
    /// W at the start of a document, as `weightShapes`.
    public var weights: [Tensor]
    /// γ and β `[H, K]`.
    public var normWeight, normBias: Tensor
    public init(
      q: Tensor, k: Tensor, v: Tensor, rate: Tensor, place: Tensor, weights: [Tensor],
      normWeight: Tensor, normBias: Tensor
    ) {
      (self.q, self.k, self.v, self.rate, self.place) = (q, k, v, rate, place)
      (self.weights, self.normWeight, self.normBias) = (weights, normWeight, normBias)
    }
  }

  /// `[H, inputs + 1, outputs]` of each layer.
  public var weightShapes: [Shape] {
    hidden > 0
      ? [[heads, size + 1, hidden], [heads, hidden + 1, size]] : [[heads, size + 1, size]]
  }

  public var stateSpec: StateSpec {
    StateSpec(
      weightShapes.enumerated().map { .init("W\($0)", $1) }
        + weightShapes.enumerated().map { .init("sum\($0)", $1) } + [SegmentPlan.entry])
  }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let plan = SegmentPlan(
      i.q, period: batchSize, limit: SegmentPlan.limit(form), state: &state, reset: reset)
    return callAsFunction(i, plan: plan, state: &state)
  }

  /// The same over pieces that were planned before; `state` keeps its position.
  public func callAsFunction(_ i: Inputs, plan: SegmentPlan, state: inout State) -> Tensor {
    let (batch, device) = (i.q.shape[0], i.q.device)
    let starts = i.weights.map { startWeights($0, batch: batch) }
    func rows(_ name: String, _ l: Int) -> Tensor? {
      state["\(name)\(l)"].map { $0.reshaped(starts[l].shape) }
    }
    var weights = starts.indices.map { rows("W", $0) ?? starts[$0] }
    var sums = starts.indices.map { rows("sum", $0) ?? .zeros(starts[$0].shape, on: device) }
    let column = i.place.reshaped([batchSize, 1])
    var outputs: [Tensor] = []
    let parts = [i.q, i.k, i.v, i.rate.reshaped(Shape(i.rate.shape.dimensions + [1]))]
      .map { plan.split($0) }
    for (index, piece) in plan.pieces.enumerated() {
      let fresh = Tensor.perHead(piece.starts, heads)
      for l in starts.indices {
        weights[l] = weights[l].replacing(rows: fresh, by: starts[l])
        sums[l] = sums[l].replacing(rows: fresh, by: sums[l] * 0)
      }
      let n = piece.range.count
      let place = column.rows(plan.index(piece.range, repeats: heads, on: device))
        .reshaped([batch * heads, n, 1])
      let (q, k, v) = (parts[0][index].byHead(), parts[1][index].byHead(), parts[2][index].byHead())
      let rate = parts[3][index].byHead()
      let pairs = network.gradients(k, weights: weights) { z in
        slope(z, target: v - k, i, batch: batch)
      }.map { (input: $0.input, step: $0.gradient * rate) }
      let mask = InnerNetwork.lower(n, on: device)
      outputs.append(
        network.output(q) { l, a in
          let scores = a.matmul(pairs[l].input, transposingRight: true, precision: .float32) * mask
          let moved =
            a.matmul(sums[l], precision: .float32)
            + scores.matmul(pairs[l].step, precision: .float32)
          return a.matmul(weights[l], precision: .float32) - moved * place
        }.fromHeads(heads))
      let ends = Tensor.perHead(piece.ends, heads)
      for l in starts.indices {
        sums[l] =
          sums[l] + pairs[l].input.matmul(pairs[l].step, transposingLeft: true, precision: .float32)
        guard ends.contains(true) else { continue }
        let last = i.place.sliced(batchSize - 1..<batchSize, axis: 0)
        weights[l] = weights[l].replacing(rows: ends, by: weights[l] - sums[l] * last)
        sums[l] = sums[l].replacing(rows: ends, by: sums[l] * 0)
      }
    }
    for l in starts.indices {
      let shape = Shape([batch] + weightShapes[l].dimensions)
      state["W\(l)"] = weights[l].reshaped(shape)
      state["sum\(l)"] = sums[l].reshaped(shape)
    }
    return outputs.isEmpty ? i.q : concatenated(outputs, axis: 1)
  }

  /// dℓ/dz of ℓ = ½‖γ LN(z) + β − target‖².
  private func slope(_ z: Tensor, target: Tensor, _ i: Inputs, batch: Int) -> Tensor {
    let s = z.shape
    let row: Shape = [s[0], s[1], 1]
    let index = Tensor(
      (0..<s[0] * s[1]).map { Int32($0 / s[1] % heads) }, shape: [s[0] * s[1]], on: z.device)
    func wide(_ t: Tensor) -> Tensor { t.rows(index).reshaped(s) }
    let (gamma, K) = (wide(i.normWeight), Double(size))
    let centred = z - z.summed(to: row) / K
    let scale = ((centred * centred).summed(to: row) / K + epsilon).unary(.reciprocalSqrt)
    let unit = centred * scale
    let g = (unit * gamma + wide(i.normBias) - target) * gamma
    return (g - g.summed(to: row) / K - unit * ((g * unit).summed(to: row) / K)) * scale
  }
}
