import GyreTensors

/// A network as a long-term memory, written by gradients with momentum and forgetting:
///
///     Sₜ = ηₜ Sₜ₋₁ − θₜ ∇ℓₜ(P)    Mₜ = (1 − αₜ) Mₜ₋₁ + Sₜ    ℓₜ(M) = ρ(f(kₜ; M) − vₜ)    yₜ = f(qₜ; Mₜ)
///
/// with P the weights M at the start of a segment of c tokens, and ρ(e) = K (√(1 + ‖e‖²/K) − 1), which is
/// ½‖e‖² near zero and bounds the gradient, so that no input can make the network diverge. Behrouz, Zhong and Mirrokni, "Titans:
/// learning to memorize at test time", 2024. https://arxiv.org/abs/2501.00663
///
/// State: per layer "base0", "memory0", "momentum0" `[H, inputs, outputs]` …, and "position". In a piece
/// of n tokens Mᵢ = aᵢ M + bᵢ S − Σ_{j≤i} wᵢⱼ xⱼ gⱼᵀ, where w is a product of two triangular matrices, so
/// that the n weights are never made.
public struct NeuralMemory: Sendable {
  public let heads, size, hidden, segment: Int
  private let network: InnerNetwork

  /// - Parameters:
  ///   - hidden: units between two layers; 0 for one linear layer.
  ///   - segment: c.
  public init(heads: Int, size: Int, hidden: Int = 0, segment: Int = 16) {
    (self.heads, self.size, self.hidden, self.segment) = (heads, size, hidden, segment)
    network = InnerNetwork(layers: hidden > 0 ? 2 : 1, hasBias: false)
  }

  /// What a piece brings, `[B, n, H, …]`.
  public struct Inputs: Sendable {
    /// q, k, v `[B, n, H, K]`.
    public var q, k, v: Tensor
    /// logits of α and η, and θ ≥ 0, `[B, n, H]`.
    public var forget, momentum, rate: Tensor
    public init(
      q: Tensor, k: Tensor, v: Tensor, forget: Tensor, momentum: Tensor, rate: Tensor
    ) {
      (self.q, self.k, self.v) = (q, k, v)
      (self.forget, self.momentum, self.rate) = (forget, momentum, rate)
    }
    /// The inputs of each piece.
    func split(_ plan: SegmentPlan) -> [Inputs] {
      let parts = [q, k, v, forget, momentum, rate].map { plan.split($0) }
      return plan.pieces.indices.map { i in
        Inputs(
          q: parts[0][i], k: parts[1][i], v: parts[2][i], forget: parts[3][i],
          momentum: parts[4][i], rate: parts[5][i])
      }
    }
  }

  /// The memory between pieces.
  public struct Weights: Sendable {
    fileprivate var base, memory, momentum: [Tensor]
    fileprivate let starts: [Tensor]
  }

  public var weightShapes: [Shape] {
    hidden > 0 ? [[heads, size, hidden], [heads, hidden, size]] : [[heads, size, size]]
  }

  public var stateSpec: StateSpec {
    StateSpec(
      ["base", "memory", "momentum"].flatMap { name in
        weightShapes.enumerated().map { .init("\(name)\($0)", $1) }
      } + [SegmentPlan.entry])
  }

  /// The weights of a state; `starts` are those of a fresh document.
  public func begin(_ starts: [Tensor], state: State) -> Weights {
    let starts = starts.map { startWeights($0, batch: state.batch) }
    func rows(_ name: String, _ otherwise: (Tensor) -> Tensor) -> [Tensor] {
      starts.indices.map { l in
        state["\(name)\(l)"].map { $0.reshaped(starts[l].shape) } ?? otherwise(starts[l])
      }
    }
    return Weights(
      base: rows("base") { $0 }, memory: rows("memory") { $0 },
      momentum: rows("momentum") { .zeros($0.shape, on: $0.device) }, starts: starts)
  }

  public func end(_ w: Weights, state: inout State) {
    for l in w.base.indices {
      let shape = Shape([state.batch] + weightShapes[l].dimensions)
      state["base\(l)"] = w.base[l].reshaped(shape)
      state["memory\(l)"] = w.memory[l].reshaped(shape)
      state["momentum\(l)"] = w.momentum[l].reshaped(shape)
    }
  }

  /// Fresh weights in the rows whose document begins with the piece.
  public func enter(_ piece: SegmentPlan.Piece, _ w: inout Weights) {
    let fresh = Tensor.perHead(piece.starts, heads)
    for l in w.base.indices {
      w.base[l] = w.base[l].replacing(rows: fresh, by: w.starts[l])
      w.memory[l] = w.memory[l].replacing(rows: fresh, by: w.starts[l])
      w.momentum[l] = w.momentum[l].replacing(rows: fresh, by: w.momentum[l] * 0)
    }
  }

  /// f(q; P): what the memory held at the start of the segment, `[B, n, H, K]`.
  public func recalled(_ q: Tensor, _ w: Weights) -> Tensor {
    network.output(q.byHead()) { l, a in a.matmul(w.base[l], precision: .float32) }
      .fromHeads(heads)
  }

  /// Reads and writes a piece, `[B, n, H, K]`.
  public func callAsFunction(
    _ i: Inputs, _ piece: SegmentPlan.Piece, _ w: inout Weights
  ) -> Tensor {
    let (n, device) = (i.q.shape[1], i.q.device)
    func column(_ t: Tensor) -> Tensor { t.reshaped(Shape(t.shape.dimensions + [1])).byHead() }
    let mask = InnerNetwork.lower(n, on: device)
    let rows = i.q.shape[0] * heads
    // Products of factors over (m, i] and over (j, m], and of all up to i.
    func products(_ logs: Tensor) -> (between: Tensor, all: Tensor) {
      let sums = logs.permuted([0, 2, 1]).matmul(mask, transposingRight: true, precision: .float32)
        .permuted([0, 2, 1])
      let wide = Tensor.zeros([rows, n, n], on: device) + sums
      let between = (-(wide.permuted([0, 2, 1]) - wide).relu()).exp() * mask
      return (between, sums.exp())
    }
    let kept = products((-column(i.forget)).logSigmoid())
    let carried = products(column(i.momentum).logSigmoid())
    let weights = kept.between.matmul(carried.between, precision: .float32)
    let fromMomentum = kept.between.matmul(carried.all, precision: .float32)
    let v = i.v.byHead()
    let rate = column(i.rate)
    let pairs = network.gradients(i.k.byHead(), weights: w.base) { Self.slope($0 - v) }
      .map { (input: $0.input, step: $0.gradient * rate) }
    let (memory, momentum) = (w.memory, w.momentum)
    let y = network.output(i.q.byHead()) { l, a in
      let scores =
        a.matmul(pairs[l].input, transposingRight: true, precision: .float32) * weights
      return a.matmul(memory[l], precision: .float32) * kept.all
        + a.matmul(momentum[l], precision: .float32) * fromMomentum
        - scores.matmul(pairs[l].step, precision: .float32)
    }
    func last(_ t: Tensor) -> Tensor { t.end(1) }
    let written = last(weights).permuted([0, 2, 1])
    let pushed = last(carried.between).permuted([0, 2, 1])
    let ends = Tensor.perHead(piece.ends, heads)
    for l in w.base.indices {
      func sum(_ weight: Tensor) -> Tensor {
        pairs[l].input.matmul(pairs[l].step * weight, transposingLeft: true, precision: .float32)
      }
      w.memory[l] = memory[l] * last(kept.all) + momentum[l] * last(fromMomentum) - sum(written)
      w.momentum[l] = momentum[l] * last(carried.all) - sum(pushed)
      w.base[l] = w.base[l].replacing(rows: ends, by: w.memory[l])
    }
    return y.fromHeads(heads)
  }

  /// ρ' = e / √(1 + ‖e‖²/K).
  private static func slope(_ e: Tensor) -> Tensor {
    let size = (e * e).summed(to: Shape(e.shape.dimensions.dropLast() + [1]))
    return e * (size / Double(e.shape.last) + 1).unary(.reciprocalSqrt)
  }

  /// A whole call.
  public func callAsFunction(
    _ i: Inputs, starts: [Tensor], plan: SegmentPlan, state: inout State
  ) -> Tensor {
    var w = begin(starts, state: state)
    var outputs: [Tensor] = []
    for (piece, part) in zip(plan.pieces, i.split(plan)) {
      enter(piece, &w)
      outputs.append(self(part, piece, &w))
    }
    end(w, state: &state)
    return outputs.isEmpty ? i.q : concatenated(outputs, axis: 1)
  }
}
