import GyreTensors

/// One token of Gated DeltaNet from its streams to its output norm:
///
///     q, k ← unit length    ln α = −e^a softplus(z + b)    β = c σ(z')
///     S ← αS + β k (v − αSᵀk)ᵀ    y = RMSNorm(s Sᵀq) ∘ w ∘ act(gate)
///
/// Yang, Kautz and Hatamizadeh, "Gated delta networks", 2024. https://arxiv.org/abs/2412.06464
///
/// Inputs: q, k `[B, 1, Hk, K]`, v `[B, 1, H, V]`, z and z' `[B, 1, 2 H]`, b, a `[H]`, gate as v, w `[V]`,
/// S `[B, H, K, V]`. Outputs: y as v, S.
public struct GatedDeltaStep: HeadStepOp {
  public static let name = "gated_delta_step"
  public let keySize, valueSize: Int
  public let scale, strength, normEpsilon: Double
  public let gate: GatedNorm.Gate
  /// ε under the root of the lengths.
  public static let keyEpsilon = 1e-6

  public var readsWholeRows: Bool { true }
  public var stateInput: Int { 8 }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let x = extents(i)
    precondition(
      i[0].shape == i[1].shape && i[6].shape == i[2].shape && i[8].shape == x.state
        && i[3].shape.last == 2 * x.heads && i[7].shape.elementCount == x.valueSize,
      "gated_delta_step: \(i.map(\.shape))")
    return [i[2], i[8]]
  }

  public func reference(_ a: inout HostArguments) {
    let i = a.inputs.indices.map { HostResults(a, $0) }
    let unit = [i[0], i[1]].map {
      HostResults.of(L2Normalize(epsilon: Self.keyEpsilon), [$0])[0]
    }
    let gates = HostResults.of(StepGates(strength: strength), [i[3], i[4], i[5]])
    let rule = DeltaRuleForward(
      form: .recurrent, scale: scale, keepsChunks: false,
      optional: OptionalInputs([true, true, true, true, true, false, false, true, false]))
    let next = HostResults.of(rule, unit + [i[2], gates[0], gates[1], i[8]])
    a.outputs[0] =
      HostResults.of(
        GatedNorm(epsilon: normEpsilon, gate: gate), [next[0], i[6], i[7]])[0].values
    a.outputs[1] = next[1].values
  }

  public static let cases = floatCases + HeadStepCases.halved(floatCases, tokens: [0, 1, 2, 3, 6])
  private static let floatCases = [(1, 2, 16, 32), (2, 2, 64, 128), (1, 3, 100, 64), (3, 3, 8, 16)]
    .map {
      keyHeads, heads, K, V in
      let (B, H) = (5, heads)
      let shapes: [Shape] = [
        [B, 1, keyHeads, K], [B, 1, keyHeads, K], [B, 1, H, V], [B, 1, 2 * H], [H], [H],
        [B, 1, H, V], [V], [B, H, K, V],
      ]
      return OpCase(
        "\(heads) heads of \(K) by \(V)",
        GatedDeltaStep(
          keySize: K, valueSize: V, scale: 0.25, strength: heads == 2 ? 2 : 1, normEpsilon: 1e-5,
          gate: heads == 3 ? .sigmoid : .silu),
        shapes.map { TestInput($0, differentiable: false) }, tolerance: 1e-5)
    }
}

extension DeltaRule {
  /// What one token of `GatedDeltaStep` reads besides the state.
  public struct StepInputs: Sendable {
    public var q, k, v, gates, stepBias, logRate, outputGate, weight: Tensor
    public init(
      q: Tensor, k: Tensor, v: Tensor, gates: Tensor, stepBias: Tensor, logRate: Tensor,
      outputGate: Tensor, weight: Tensor
    ) {
      (self.q, self.k, self.v, self.gates) = (q, k, v, gates)
      (self.stepBias, self.logRate) = (stepBias, logRate)
      (self.outputGate, self.weight) = (outputGate, weight)
    }
  }

  /// The normed output of one token whose keys are not yet of unit length; nil where that is not one kernel.
  public func step(
    _ i: StepInputs, strength: Double, normEpsilon: Double, by gate: GatedNorm.Gate,
    state: inout State
  ) -> Tensor? {
    guard let matrix = state["S"] else { return nil }
    let op = GatedDeltaStep(
      keySize: keySize, valueSize: valueSize, scale: scale, strength: strength,
      normEpsilon: normEpsilon, gate: gate)
    let inputs = [
      i.q, i.k, i.v, i.gates, i.stepBias, i.logRate, i.outputGate, i.weight, matrix,
    ]
    guard let outputs = op.applied(inputs) else { return nil }
    state["S"] = outputs[1]
    return outputs[0]
  }
}
