import GyreTensors

/// One token of RWKV-7's recurrence from its projections to its readout: `GatedBlend` with the first layer's
/// values, `RWKV7Keys`, the generalised delta rule, `RWKV7Readout`.
///
/// Peng et al., "RWKV-7 Goose", 2025. https://arxiv.org/abs/2503.14456
///
/// Inputs: r, k, v, rate, decay, gate `[B, 1, H, N]`; ξ, α, a₀, w₀, ρ, norm weight and bias `[H·N]`;
/// S `[B, H, N, N]`; then, where values are blended, the first layer's and the amounts as v, and the amounts'
/// bias `[H·N]`. Outputs: as v, S.
public struct RWKV7Step: HeadStepOp {
  public static let name = "rwkv7_step"
  public let size: Int
  public let scale, keyEpsilon, normEpsilon: Double
  public let blends: Bool

  public var keySize: Int { size }
  public var valueSize: Int { size }
  public var readsWholeRows: Bool { true }
  public var stateInput: Int { 13 }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let x = extents(i)
    precondition(
      i.count == (blends ? 17 : 14) && (1..<6).allSatisfy { i[$0].shape == i[0].shape }
        && (6..<13).allSatisfy { i[$0].shape.elementCount == x.heads * size }
        && x.keyHeads == x.heads && i[13].shape == x.state,
      "rwkv7_step: \(i.map(\.shape))")
    return [i[2], i[13]]
  }

  public func reference(_ a: inout HostArguments) {
    var i = a.inputs.indices.map { HostResults(a, $0) }
    let heads = i[0].spec.shape
    func flat(_ t: HostResults) -> HostResults {
      let s = t.spec.shape
      return HostResults(
        t.values, TensorSpec([s[0], s[1], heads[2] * heads[3]], t.spec.dtype))
    }
    if blends {
      let blended = HostResults.of(
        GatedBlend(), [flat(i[2]), flat(i[14]), flat(i[15]), i[16]])[0]
      i[2].values = blended.values
    }
    let keys = HostResults.of(
      RWKV7Keys(heads: heads[2], epsilon: keyEpsilon),
      [flat(i[1]), flat(i[3]), flat(i[4]), i[6], i[7], i[8], i[9]])
    let rule = DeltaRuleForward(
      form: .recurrent, scale: scale, keepsChunks: false,
      optional: OptionalInputs([true, true, true, true, false, true, true, true, false]))
    let next = HostResults.of(rule, [i[0], keys[0], i[2], keys[1], keys[2], keys[3], i[13]])
    a.outputs[0] =
      HostResults.of(
        RWKV7Readout(epsilon: normEpsilon),
        [next[0], i[0], keys[0], i[2], flat(i[5]), i[10], i[11], i[12]])[0].values
    a.outputs[1] = next[1].values
  }

  public static let cases =
    floatCases + HeadStepCases.halved(floatCases, tokens: [0, 1, 2, 3, 4, 5, 14, 15])
  private static let floatCases = [(2, 64, true), (3, 16, true), (2, 32, false), (1, 128, true)].map
  {
    heads, size, blends in
    let (x, p): (Shape, Shape) = ([5, 1, heads, size], [heads * size])
    let shapes =
      [Shape](repeating: x, count: 6) + [Shape](repeating: p, count: 7)
      + [[5, heads, size, size]] + (blends ? [x, x, p] : [])
    return OpCase(
      "\(heads) heads of \(size)\(blends ? " blended" : "")",
      RWKV7Step(size: size, scale: 1, keyEpsilon: 1e-6, normEpsilon: 64e-5, blends: blends),
      shapes.map { TestInput($0, differentiable: false) }, tolerance: 1e-5)
  }
}

extension GeneralizedDeltaRule {
  /// What one token of `RWKV7Step` reads besides the state; parameters in its order.
  public struct StepInputs: Sendable {
    public var r, k, v, rate, decay, gate: Tensor
    public var parameters: [Tensor]
    /// The first layer's values, the amounts and their bias.
    public var blend: (first: Tensor, amount: Tensor, bias: Tensor)?
    public init(
      r: Tensor, k: Tensor, v: Tensor, rate: Tensor, decay: Tensor, gate: Tensor,
      parameters: [Tensor], blend: (first: Tensor, amount: Tensor, bias: Tensor)?
    ) {
      (self.r, self.k, self.v) = (r, k, v)
      (self.rate, self.decay, self.gate) = (rate, decay, gate)
      (self.parameters, self.blend) = (parameters, blend)
    }
  }

  /// The output `[B, 1, H, N]` of one token before the last map; nil where that is not one kernel.
  public func step(
    _ i: StepInputs, keyEpsilon: Double, normEpsilon: Double, state: inout State
  ) -> Tensor? {
    guard let matrix = state["S"], keySize == valueSize else { return nil }
    let op = RWKV7Step(
      size: keySize, scale: scale, keyEpsilon: keyEpsilon, normEpsilon: normEpsilon,
      blends: i.blend != nil)
    let shape: Shape = [i.r.shape[0], i.r.shape[1], heads, keySize]
    var inputs = [i.r, i.k, i.v, i.rate, i.decay, i.gate].map { $0.reshaped(shape) }
    inputs += i.parameters + [matrix]
    if let blend = i.blend {
      inputs += [blend.first.reshaped(shape), blend.amount.reshaped(shape), blend.bias]
    }
    guard let outputs = op.applied(inputs) else { return nil }
    state["S"] = outputs[1]
    return outputs[0]
  }
}
