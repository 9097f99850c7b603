import GyreTensors

/// The gated delta rule: erases what the key already stores, then writes.
///
///     Sₜ = Dₜ Sₜ₋₁ + βₜ kₜ (vₜ − (Dₜ Sₜ₋₁)ᵀ kₜ)ᵀ    yₜ = s · Sₜᵀ qₜ
///
/// with Dₜ the identity (DeltaNet), e^gₜ a head (Gated DeltaNet) or diag(e^gₜ) (KDA). Keys of unit
/// length and β in (0, 2] keep the state from growing; beyond, the recurrence itself grows. Yang et
/// al., "Parallelizing linear Transformers with the delta rule over sequence length", 2024.
///
/// State: "S" `[H, K, V]`. One step: 7·K·V flops a head.
public struct DeltaRule: RecurrenceEngine {
  public enum Gate: Sendable {
    case none
    /// g `[B, T, H]`, ≤ 0.
    case scalar(Tensor)
    /// g `[B, T, H, K]`, ≤ 0.
    case vector(Tensor)

    var tensor: Tensor? {
      switch self {
      case .none: nil
      case .scalar(let t), .vector(let t): t
      }
    }
  }

  public let heads, keyHeads, keySize, valueSize: Int
  public let scale: Double

  public init(
    heads: Int, keyHeads: Int? = nil, keySize: Int, valueSize: Int, scale: Double? = nil
  ) {
    self.heads = heads
    self.keyHeads = keyHeads ?? heads
    self.keySize = keySize
    self.valueSize = valueSize
    self.scale = scale ?? 1 / Double(keySize).squareRoot()
  }

  public struct Inputs: Sendable {
    /// q, k `[B, T, keyHeads, K]`; v `[B, T, H, V]`; β `[B, T, H]`.
    public var q, k, v, beta: Tensor
    public var gate: Gate
    public init(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, gate: Gate) {
      self.q = q
      self.k = k
      self.v = v
      self.beta = beta
      self.gate = gate
    }
  }

  public var stateSpec: StateSpec { StateSpec([.init("S", [heads, keySize, valueSize])]) }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    DeltaRuleForward.run(
      [i.q, i.k, i.v, i.gate.tensor, i.beta, nil, nil, state["S"], reset], scale, form, &state)
  }
}

/// The generalised delta rule, diagonal plus low rank:
///
///     Sₜ = diag(e^gₜ) Sₜ₋₁ + bₜ (aₜᵀ Sₜ₋₁) + kₜ vₜᵀ    yₜ = s · Sₜᵀ qₜ
///
/// a reads the state before the decay. RWKV-7 has a = −κ and b = κ ∘ rate. Peng et al., "RWKV-7
/// Goose", 2025.
///
/// State: "S" `[H, K, V]`.
public struct GeneralizedDeltaRule: RecurrenceEngine {
  public let heads, keySize, valueSize: Int
  public let scale: Double

  public init(heads: Int, keySize: Int, valueSize: Int, scale: Double = 1) {
    self.heads = heads
    self.keySize = keySize
    self.valueSize = valueSize
    self.scale = scale
  }

  public struct Inputs: Sendable {
    /// q, k, g, a, b `[B, T, H, K]`; v `[B, T, H, V]`.
    public var q, k, v, logDecay, a, b: Tensor
    public init(q: Tensor, k: Tensor, v: Tensor, logDecay: Tensor, a: Tensor, b: Tensor) {
      self.q = q
      self.k = k
      self.v = v
      self.logDecay = logDecay
      self.a = a
      self.b = b
    }
  }

  public var stateSpec: StateSpec { StateSpec([.init("S", [heads, keySize, valueSize])]) }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    DeltaRuleForward.run(
      [i.q, i.k, i.v, i.logDecay, nil, i.a, i.b, state["S"], reset], scale, form, &state)
  }
}
