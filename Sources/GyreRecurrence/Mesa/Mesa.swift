import GyreTensors

/// The memory of MesaNet: the value of the linear map that fits all pairs (k, v) seen best, in the
/// least-squares sense with decay and a ridge, at the query.
///
///     Hₜ = e^gₜ Hₜ₋₁ + βₜ kₜ kₜᵀ    Gₜ = e^gₜ Gₜ₋₁ + βₜ kₜ vₜᵀ    yₜ = Gₜᵀ xₜ    (Hₜ + diag λ) xₜ = qₜ
///
/// with x found by conjugate gradients from zero: a number of steps, and ε in both of their divisors.
/// Gradients are those of the exact solution, with the adjoint system solved in the same way. von
/// Oswald et al., "MesaNet: sequence modeling by locally optimal test-time training", 2025.
/// https://arxiv.org/abs/2506.05233
///
/// State: "H" `[H, K, K]` and "G" `[H, K, V]`. One step: about 2·steps·K² flops a head.
public struct Mesa: RecurrenceEngine {
  public let heads, keySize, valueSize: Int
  public let steps: Int
  public let epsilon: Double
  /// Calls of several tokens without resets round as flash-linear-attention's kernel does.
  public let roundsToHalf: Bool

  public init(
    heads: Int, keySize: Int, valueSize: Int, steps: Int = 30, epsilon: Double = 1e-5,
    roundsToHalf: Bool = false
  ) {
    self.heads = heads
    self.keySize = keySize
    self.valueSize = valueSize
    self.steps = steps
    self.epsilon = epsilon
    self.roundsToHalf = roundsToHalf
    precondition(steps > 0 && epsilon > 0, "mesa: \(steps) steps with ε \(epsilon)")
  }

  public struct Inputs: Sendable {
    /// q, k `[B, T, H, K]`; v `[B, T, H, V]`.
    public var q, k, v: Tensor
    /// g ≤ 0 and β ≥ 0 `[B, T, H]`.
    public var logDecay, beta: Tensor
    /// λ > 0 `[H, K]`.
    public var ridge: Tensor
    public init(
      q: Tensor, k: Tensor, v: Tensor, logDecay: Tensor, beta: Tensor, ridge: Tensor
    ) {
      self.q = q
      self.k = k
      self.v = v
      self.logDecay = logDecay
      self.beta = beta
      self.ridge = ridge
    }
  }

  public var stateSpec: StateSpec {
    StateSpec([
      .init("H", [heads, keySize, keySize]), .init("G", [heads, keySize, valueSize]),
    ])
  }

  /// Every form walks the tokens: a solution at one does not help at the next, and a product with H
  /// in cache costs less than the same product made from the keys of a chunk.
  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let rounds = roundsToHalf && reset == nil && i.q.shape[1] > 1
    func key(_ t: Tensor) -> Tensor { rounds ? t.cast(to: .float16).cast(to: .float32) : t }
    let inputs = [
      key(i.q), key(i.k), i.v, i.logDecay, i.beta, i.ridge, state["H"], state["G"], reset,
    ]
    let op = MesaForward(
      steps: steps, epsilon: epsilon, optional: OptionalInputs(inputs.map { $0 != nil }),
      roundsToHalf: rounds)
    let outputs = applyPresent(op, inputs)
    state["H"] = outputs[2]
    state["G"] = outputs[3]
    return outputs[0]
  }
}
