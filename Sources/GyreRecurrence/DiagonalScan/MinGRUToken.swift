import GyreTensors

/// One token of minGRU whose pre-activations are one map's: rows hold z, then c; see `MinGRUScan`.
///
/// Inputs: z and c `[B, 1, 2 D]`, h `[B, D]`. Outputs: h `[B, 1, D]`, h. For inference: it has no derivative.
public struct MinGRUToken: Op {
  public static let name = "min_gru_token"
  public init() {}

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let s = i[0].shape
    precondition(
      s.rank == 3 && s[1] == 1 && i[1].shape.rank == 2 && s[2] == 2 * i[1].shape[1]
        && s[0] == i[1].shape[0],
      "min_gru_token: \(i.map(\.shape))")
    return [TensorSpec([s[0], 1, s[2] / 2], i[0].dtype), i[1]]
  }
  public func reference(_ a: inout HostArguments) {
    let width = a.inputSpecs[1].shape[1]
    for e in a.inputs[1].indices {
      let at = e / width * 2 * width + e % width
      let (z, c) = (a.inputs[0][at], a.inputs[0][at + width])
      let h =
        Functions.sigmoid(-z) * a.inputs[1][e] + Functions.sigmoid(z) * MinGRUForward.g(c)
      (a.outputs[0][e], a.outputs[1][e]) = (h, h)
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  private static let floatCases = [24, 512].map { width in
    OpCase(
      "\(width) channels", MinGRUToken(),
      [
        TestInput([5, 1, 2 * width], .normal(scale: 2), differentiable: false),
        TestInput([5, width], differentiable: false),
      ])
  }
  public static let cases = floatCases + HeadStepCases.halved(floatCases, tokens: [0])
}

extension MinGRUScan {
  /// h of one token from z and c side by side, `[B, 1, 2 D]`; nil where that is not one kernel.
  public func token(_ both: Tensor, state: inout State) -> Tensor? {
    let op = MinGRUToken()
    guard Tape.current == nil, both.shape[1] == 1, channels % 8 == 0, let h = state["h"],
      h.dtype == .float32, both.note == nil, both.device.fuses(op)
    else { return nil }
    let outputs = apply(op, [both, h])
    state["h"] = outputs[1]
    return outputs[0]
  }
}
