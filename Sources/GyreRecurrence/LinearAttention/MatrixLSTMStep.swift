import GyreTensors

/// One token of mLSTM's memory with its gates from their projection:
///
///     ĩ = c tanh((z + b) / c)    f̃ = c tanh((z' + b') / c)    then `MatrixLSTM`
///
/// Beck et al., "xLSTM", 2024. https://arxiv.org/abs/2405.04517
///
/// Inputs: q, k `[B, 1, H, K]`, v `[B, 1, H, V]`, z and z' `[B, 1, 2 H]`, b and b' `[2 H]`, C `[B, H, K, V]`,
/// n `[B, H, K]`, m `[B, H]`. Outputs: y as v, C, n, m.
public struct MatrixLSTMStep: HeadStepOp {
  public static let name = "matrix_lstm_step"
  public let keySize, valueSize: Int
  public let scale, epsilon, cap: Double

  public var readsWholeRows: Bool { false }
  public var stateInput: Int { 5 }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let x = extents(i)
    precondition(
      i[0].shape == i[1].shape && i[5].shape == x.state && i[3].shape.last == 2 * x.heads
        && i[4].shape.elementCount == 2 * x.heads,
      "matrix_lstm_step: \(i.map(\.shape))")
    return [i[2], i[5], i[6], i[7]]
  }

  public func reference(_ a: inout HostArguments) {
    let i = a.inputs.indices.map { HostResults(a, $0) }
    var gates = HostResults.of(CappedGates(cap: cap), [i[3], i[4]])
    gates[1].values = gates[1].values.map(Functions.logSigmoid)
    let rule = LinearAttentionForward(
      form: .recurrent, decay: .scalar, normalizer: .exponential(epsilon: epsilon), scale: scale,
      optional: OptionalInputs([true, true, true, true, true, false, true, true, true, false]),
      precision: .current)
    let next = HostResults.of(
      rule, [i[0], i[1], i[2], gates[1], gates[0], i[5], i[6], i[7]])
    for (o, result) in next.enumerated() { a.outputs[o] = result.values }
  }

  public static let cases = floatCases + HeadStepCases.halved(floatCases, tokens: [0, 1, 2, 3])
  private static let floatCases = [(2, 16, 32), (1, 256, 256), (3, 72, 16)].map { heads, K, V in
    let B = 5
    let shapes: [Shape] = [
      [B, 1, heads, K], [B, 1, heads, K], [B, 1, heads, V], [B, 1, 2 * heads], [2 * heads],
      [B, heads, K, V], [B, heads, K], [B, heads],
    ]
    return OpCase(
      "\(heads) heads of \(K) by \(V)",
      MatrixLSTMStep(keySize: K, valueSize: V, scale: 0.25, epsilon: 1e-6, cap: 15),
      shapes.map { TestInput($0, differentiable: false) }, tolerance: 1e-5)
  }
}

extension MatrixLSTM {
  /// One token whose gates are `cap`·tanh((z + bias) / cap) of z `[B, 1, 2 H]`, input gates first; nil where
  /// that is not one kernel.
  public func step(
    q: Tensor, k: Tensor, v: Tensor, gates z: Tensor, bias: Tensor, cap: Double,
    state: inout State
  ) -> Tensor? {
    guard let matrix = state["C"], let vector = state["n"], let largest = state["m"]
    else { return nil }
    let op = MatrixLSTMStep(
      keySize: keySize, valueSize: valueSize, scale: scale, epsilon: epsilon, cap: cap)
    guard let outputs = op.applied([q, k, v, z, bias, matrix, vector, largest])
    else { return nil }
    state["C"] = outputs[1]
    state["n"] = outputs[2]
    state["m"] = outputs[3]
    return outputs[0]
  }
}
