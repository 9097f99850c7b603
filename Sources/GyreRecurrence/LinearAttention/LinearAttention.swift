import GyreTensors

/// Linear attention with decay: a matrix state per head,
///
///     Sₜ = Dₜ Sₜ₋₁ + kₜ vₜᵀ    yₜ = s · Sₜᵀ qₜ
///
/// with Dₜ the identity, one number a head, e^gₜ a head, or diag(e^gₜ) over the key channels. RetNet,
/// Mamba-2, GLA, HGRN2 and RWKV-6 are this recurrence behind different gates. Katharopoulos et al.,
/// "Transformers are RNNs", 2020; Yang et al., "Gated linear attention Transformers", 2024.
///
/// State: "S" `[H, K, V]`, with a normaliser also "z" `[H, K]`. One step: 4·K·V flops a head.
public struct LinearAttention: RecurrenceEngine {
  /// What y is divided by; a = s · zₜ·qₜ with zₜ = Dₜ zₜ₋₁ + kₜ.
  public enum Normalizer: Sendable, Hashable {
    case none
    /// a + ε.
    case sum(epsilon: Double)
    /// max(|a|, floor) + ε.
    case floor(Double, epsilon: Double)
    /// max(|a|, e^−m) + ε with exponential input gates and their running maximum m: mLSTM's.
    case exponential(epsilon: Double)

    var hasVector: Bool { self != .none }
    var isExponential: Bool { if case .exponential = self { true } else { false } }
  }

  public enum Decay: Sendable {
    case none
    /// ln γ `[H]`.
    case constant(Tensor)
    /// g `[B, T, H]`, ≤ 0.
    case scalar(Tensor)
    /// g `[B, T, H, K]`, ≤ 0.
    case vector(Tensor)

    var kind: DecayKind {
      switch self {
      case .none: .none
      case .constant: .constant
      case .scalar: .scalar
      case .vector: .vector
      }
    }
    var tensor: Tensor? {
      switch self {
      case .none: nil
      case .constant(let t), .scalar(let t), .vector(let t): t
      }
    }
  }

  public let heads, keyHeads, keySize, valueSize: Int
  public let scale: Double
  public let normalizer: Normalizer

  /// - Parameters:
  ///   - keyHeads: heads of q and k; each serves heads / keyHeads value heads.
  ///   - scale: s, by default K^-½.
  public init(
    heads: Int, keyHeads: Int? = nil, keySize: Int, valueSize: Int, scale: Double? = nil,
    normalizer: Normalizer = .none
  ) {
    self.heads = heads
    self.keyHeads = keyHeads ?? heads
    self.keySize = keySize
    self.valueSize = valueSize
    self.scale = scale ?? 1 / Double(keySize).squareRoot()
    self.normalizer = normalizer
  }

  public struct Inputs: Sendable {
    /// q, k `[B, T, keyHeads, K]`; v `[B, T, H, V]`.
    public var q, k, v: Tensor
    public var decay: Decay
    /// u `[H, K]`: y reads Sₜ₋₁ + diag(u) kₜ vₜᵀ (RWKV-6).
    public var bonus: Tensor?
    /// s `[B, T, H]` and d `[H]` or `[H V]`: s v is written in v's place, and d ∘ v added to y (Mamba-2).
    public var scaling: (step: Tensor, skip: Tensor)?
    public init(
      q: Tensor, k: Tensor, v: Tensor, decay: Decay, bonus: Tensor? = nil,
      scaling: (step: Tensor, skip: Tensor)? = nil
    ) {
      self.q = q
      self.k = k
      self.v = v
      self.decay = decay
      self.bonus = bonus
      self.scaling = scaling
    }
  }

  public var stateSpec: StateSpec {
    StateSpec(
      [.init("S", [heads, keySize, valueSize])]
        + (normalizer.hasVector ? [.init("z", [heads, keySize])] : []))
  }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let z = normalizer.hasVector ? state["z"] : nil
    let inputs = [i.q, i.k, i.v, i.decay.tensor, nil, i.bonus, state["S"], z, nil, reset]
    let op = LinearAttentionForward(
      form: form, decay: i.decay.kind, normalizer: normalizer, scale: scale,
      optional: OptionalInputs(inputs.map { $0 != nil }), precision: .current)
    if let (step, skip) = i.scaling {
      let scaled = ScaledLinearAttention(attention: op)
      let suits =
        i.v.dtype == .float32 || ComputePrecision.activations(on: i.v.device) == .float32
      guard !normalizer.hasVector, suits, i.v.device.fuses(scaled) else {
        let (values, kept) = i.v.scaled(by: step, and: skip)
        var plain = i
        (plain.v, plain.scaling) = (values, nil)
        return self(plain, state: &state, form: form, reset: reset) + kept
      }
      let outputs = applyPresent(scaled, inputs + [step, skip])
      state["S"] = outputs[1]
      return outputs[0]
    }
    let outputs = applyPresent(op, inputs)
    state["S"] = outputs[1]
    if normalizer.hasVector { state["z"] = outputs[2] }
    return outputs[0]
  }
}

/// The memory of mLSTM: linear attention with exponential input gates, a normaliser and a
/// stabiliser,
///
///     mₜ = max(ln fₜ + mₜ₋₁, ĩₜ)    Cₜ = e^(ln f + mₜ₋₁ − mₜ) Cₜ₋₁ + e^(ĩ − mₜ) kₜ vₜᵀ    nₜ likewise
///     yₜ = s·Cₜᵀ qₜ / (max(|s·nₜ·qₜ|, e^−mₜ) + ε)    ln f = logσ(f̃)
///
/// Beck et al., "xLSTM", 2024. m is a constant in the gradient: the outputs do not depend on it.
///
/// State: "C" `[H, K, V]`, "n" `[H, K]`, "m" `[H]`.
public struct MatrixLSTM: RecurrenceEngine {
  public let heads, keySize, valueSize: Int
  public let scale, epsilon: Double

  public init(
    heads: Int, keySize: Int, valueSize: Int, scale: Double? = nil, epsilon: Double = 1e-6
  ) {
    self.heads = heads
    self.keySize = keySize
    self.valueSize = valueSize
    self.scale = scale ?? 1 / Double(keySize).squareRoot()
    self.epsilon = epsilon
  }

  public struct Inputs: Sendable {
    /// q, k `[B, T, H, K]`; v `[B, T, H, V]`.
    public var q, k, v: Tensor
    /// ĩ and f̃ `[B, T, H]`, before the exponential and the sigmoid.
    public var inputGate, forgetGate: Tensor
    public init(q: Tensor, k: Tensor, v: Tensor, inputGate: Tensor, forgetGate: Tensor) {
      self.q = q
      self.k = k
      self.v = v
      self.inputGate = inputGate
      self.forgetGate = forgetGate
    }
  }

  public var stateSpec: StateSpec {
    StateSpec([
      .init("C", [heads, keySize, valueSize]), .init("n", [heads, keySize]), .init("m", [heads]),
    ])
  }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let inputs = [
      i.q, i.k, i.v, i.forgetGate.logSigmoid(), i.inputGate, nil, state["C"], state["n"],
      state["m"], reset,
    ]
    let op = LinearAttentionForward(
      form: form, decay: .scalar, normalizer: .exponential(epsilon: epsilon), scale: scale,
      optional: OptionalInputs(inputs.map { $0 != nil }), precision: .current)
    let outputs = applyPresent(op, inputs)
    state["C"] = outputs[1]
    state["n"] = outputs[2]
    state["m"] = outputs[3]
    return outputs[0]
  }
}
