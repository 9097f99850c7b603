import GyreTensors

/// Causal softmax attention with grouped heads, over all tokens or a window, optionally with forget
/// gates:
///
///     yₜ = Σ_j softmax_j(s qₜ·kⱼ + Σ_{j<l≤t} gₗ) vⱼ    j from max(t − W + 1, document start) to t
///
/// Vaswani et al., "Attention is all you need", 2017; Lin et al., "Forgetting Transformer", 2025.
///
/// State: "keys" `[P, Hk, K]` and "values" `[P, Hk, V]`, the last W − 1 tokens seen or all of them;
/// with forget gates "forget" `[P, H]`, g of each cached token. Once a `reset` was given also
/// "starts" `[P]`, 1 at cached tokens that begin a document, nil while there was none: a boundary hides
/// what lies before it from all later tokens, whenever it came.
public struct SoftmaxAttention: RecurrenceEngine {
  public let heads, keyHeads, keySize, valueSize: Int
  public let window: Int?
  public let scale: Double
  public let hasForgetGate: Bool

  /// - Parameters:
  ///   - keyHeads: heads of keys and values; each serves heads / keyHeads query heads.
  ///   - window: tokens that a query sees, itself included; nil for all.
  ///   - scale: s, by default K^-½.
  public init(
    heads: Int, keyHeads: Int? = nil, keySize: Int, valueSize: Int, window: Int? = nil,
    scale: Double? = nil, hasForgetGate: Bool = false
  ) {
    self.heads = heads
    self.keyHeads = keyHeads ?? heads
    self.keySize = keySize
    self.valueSize = valueSize
    self.window = window
    self.scale = scale ?? 1 / Double(keySize).squareRoot()
    self.hasForgetGate = hasForgetGate
    precondition(
      self.keyHeads > 0 && heads % self.keyHeads == 0 && (window ?? 1) > 0,
      "attention: \(self.keyHeads) key heads for \(heads) heads, window \(window ?? 0)")
  }

  public struct Inputs: Sendable {
    /// q `[B, T, H, K]`, k `[B, T, Hk, K]`, v `[B, T, Hk, V]`.
    public var q, k, v: Tensor
    /// g `[B, T, H]`, ≤ 0.
    public var logForget: Tensor?
    public init(q: Tensor, k: Tensor, v: Tensor, logForget: Tensor? = nil) {
      self.q = q
      self.k = k
      self.v = v
      self.logForget = logForget
    }
  }

  public var stateSpec: StateSpec {
    let kind = StateSpec.Kind.cache(limit: window.map { $0 - 1 })
    return StateSpec(
      [
        .init("keys", [0, keyHeads, keySize], kind),
        .init("values", [0, keyHeads, valueSize], kind),
      ] + (hasForgetGate ? [.init("forget", [0, heads], kind)] : []) + [.init("starts", [0], kind)])
  }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    precondition(
      (i.logForget != nil) == hasForgetGate, "attention: forget gates given or not as declared")
    let keys = extended("keys", by: i.k, &state)
    let values = extended("values", by: i.v, &state)
    let forget = i.logForget.map { extended("forget", by: $0, &state) }
    let starts = documentStarts(reset, tokens: i.k.shape[1], all: keys.shape[1], i.k.device, &state)
    let inputs = [i.q, keys, values, forget, starts]
    let op = AttentionForward(
      form: form, window: window, scale: scale, keepsSums: Tape.current != nil,
      optional: OptionalInputs(inputs.map { $0 != nil }), precision: .current)
    return applyPresent(op, inputs)[0]
  }

  /// The cached part of an entry and the new one; leaves in the state what later tokens can see, if any follow.
  private func extended(_ name: String, by new: Tensor, _ state: inout State) -> Tensor {
    let all = state[name].map { $0.growing(by: new) } ?? new
    if !state.isLast { state[name] = kept(all).cast(to: .float32) }
    return all
  }

  private func kept(_ all: Tensor) -> Tensor {
    window.map { all.suffix($0 - 1) } ?? all
  }

  /// Document starts of cached and new tokens, int32 `[B, Tk]`; nil where there never was one.
  private func documentStarts(
    _ reset: Tensor?, tokens: Int, all: Int, _ device: any Device, _ state: inout State
  ) -> Tensor? {
    if state["starts"] == nil && reset == nil { return nil }
    func zeros(_ count: Int) -> Tensor { .zeros([state.batch, count], on: device) }
    let old = state["starts"] ?? zeros(all - tokens)
    let starts = concatenated([old, reset?.cast(to: .float32) ?? zeros(tokens)], axis: 1)
    state["starts"] = kept(starts)
    return starts.cast(to: .int32)
  }
}
