import GyreTensors

/// A memory of M slots, each a decaying average of keys and one of values, read by a softmax over the
/// slots:
///
///     Kₜ = Kₜ₋₁ diag(e^gₜ) + kₜ wₜᵀ    Vₜ = diag(e^gₜ) Vₜ₋₁ + wₜ vₜᵀ    yₜ = Vₜᵀ softmax(s · Kₜᵀ qₜ)
///
/// wₜ, gₜ over the slots. ABC and Gated Slot Attention are this recurrence behind different gates.
/// Zhang et al., "Gated slot attention for efficient linear-time sequence modeling", 2024.
/// https://arxiv.org/abs/2409.07146
///
/// State: "keys.S" `[H·M, K, 1]` and "values.S" `[H, M, V]`. Each slot of K is a head of its own with
/// the keys and queries of its group, so that both passes are `LinearAttention`.
public struct SlotMemory: RecurrenceEngine {
  public let heads, slots: Int
  private let keys, values: LinearAttention

  /// - Parameter scale: s, by default K^-½.
  public init(heads: Int, keySize: Int, valueSize: Int, slots: Int, scale: Double? = nil) {
    self.heads = heads
    self.slots = slots
    keys = LinearAttention(
      heads: heads * slots, keyHeads: heads, keySize: keySize, valueSize: 1, scale: scale)
    values = LinearAttention(heads: heads, keySize: slots, valueSize: valueSize, scale: 1)
  }

  public struct Inputs: Sendable {
    /// q, k `[B, T, H, K]`; v `[B, T, H, V]`.
    public var q, k, v: Tensor
    /// w and g ≤ 0, `[B, T, H, M]`.
    public var weight, logDecay: Tensor
    public init(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, logDecay: Tensor) {
      self.q = q
      self.k = k
      self.v = v
      self.weight = weight
      self.logDecay = logDecay
    }
  }

  public var stateSpec: StateSpec {
    keys.stateSpec.prefixed("keys") + values.stateSpec.prefixed("values")
  }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let (batch, tokens) = (i.q.shape[0], i.q.shape[1])
    var part = state.scoped("keys", keys.stateSpec)
    let scores = keys(
      .init(
        q: i.q, k: i.k, v: i.weight.reshaped([batch, tokens, heads * slots, 1]),
        decay: .scalar(i.logDecay.reshaped([batch, tokens, heads * slots]))),
      state: &part, form: form, reset: reset)
    state.merge(part, prefix: "keys")
    part = state.scoped("values", values.stateSpec)
    let y = values(
      .init(
        q: scores.reshaped([batch, tokens, heads, slots]).softmax(), k: i.weight, v: i.v,
        decay: .vector(i.logDecay)),
      state: &part, form: form, reset: reset)
    state.merge(part, prefix: "values")
    return y
  }
}
