import GyreTensors

/// Weights of inputs under a running softmax, and the decays that keep older ones normalised:
///
///     zₜ = ln(e^zₜ₋₁ + e^xₜ)    wₜ = e^(xₜ − zₜ)    gₜ = zₜ₋₁ − zₜ ≤ 0
///
/// so that Sₜ = e^gₜ Sₜ₋₁ + wₜ uₜ is Σ e^xⱼ uⱼ / Σ e^xⱼ over the tokens so far: ABC's slots and
/// LightNet's keys. Peng et al., "ABC: attention with bounded-memory control", 2022; Qin et al.,
/// "You only scan once", 2024.
///
/// State: "z" `[D]`, −∞ before the first token. gₜ is 0 where nothing lies before.
public struct AdditiveGate: Sendable {
  public let channels: Int
  public init(channels: Int) { self.channels = channels }

  public var stateSpec: StateSpec {
    StateSpec([.init("z", [channels], initial: -.infinity)])
  }

  /// x `[B, T, D]` to w and g of its shape.
  public func callAsFunction(
    _ x: Tensor, state: inout State, reset: Tensor?
  ) -> (weight: Tensor, logDecay: Tensor) {
    let inputs = [x, state["z"], reset]
    let outputs = applyPresent(
      AdditiveGateForward(optional: OptionalInputs(inputs.map { $0 != nil })), inputs)
    state["z"] = outputs[2]
    return (outputs[0], outputs[1])
  }
}

/// Inputs: x, then where present z₀ and reset. Outputs: w, g, final z.
public struct AdditiveGateForward: Op {
  public static let name = "additive_gate"
  /// x, z₀, reset.
  public let optional: OptionalInputs

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let s = i[0].shape
    precondition(
      s.rank == 3 && (optional.pick(1, i).map { $0.shape == [s[0], s[2]] } ?? true),
      "additive_gate: x \(s)")
    return [i[0], i[0], TensorSpec([s[0], s[2]])]
  }

  /// In differences d = x − zₜ₋₁, so that w + e^g = 1 within rounding: w = σ(d), g = −softplus(d).
  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    var z = optional.pick(1, a.inputs) ?? [Double](repeating: -.infinity, count: s[0] * s[2])
    let reset = optional.pick(2, a.inputs)
    for b in 0..<s[0] {
      for t in 0..<s[1] {
        let starts = (reset?[b * s[1] + t] ?? 0) != 0
        for c in 0..<s[2] {
          let (i, j) = ((b * s[1] + t) * s[2] + c, b * s[2] + c)
          if starts || z[j] == -.infinity {
            (a.outputs[0][i], a.outputs[1][i], z[j]) = (1, 0, a.inputs[0][i])
          } else {
            let d = a.inputs[0][i] - z[j]
            a.outputs[0][i] = Functions.sigmoid(d)
            a.outputs[1][i] = -Functions.softplus(d)
            z[j] += Functions.softplus(d)
          }
        }
      }
    }
    a.outputs[2] = z
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = AdditiveGateBackward(hasState: optional.has(1), hasFinal: c.cotangents[2] != nil)
    let gradients = applyPresent(
      op, [c.outputs[0], c.outputs[1], c.cotangent(0), c.cotangent(1), c.cotangents[2]])
    return optional.gather { i in i == 2 ? nil : gradients[i] }
  }
  public var saved: SavedValues { .only(outputs: [0, 1]) }

  public static let cases = [(false, false), (true, false), (true, true)].map {
    hasState, hasReset in
    OpCase(
      "state \(hasState) reset \(hasReset)",
      AdditiveGateForward(optional: OptionalInputs([true, hasState, hasReset])),
      [TestInput([2, 37, 20], .normal(scale: 3))] + (hasState ? [TestInput([2, 20])] : [])
        + (hasReset ? [testResets(batch: 2, tokens: 37)] : []))
  }
}

/// Inputs: w, g, dw, dg, and d final z where present. Outputs: dx, and dz₀ where the forward had z₀.
///
///     dxₜ = wₜ (e^gₜ dwₜ − dgₜ + λₜ)    λₜ₋₁ = λₜ − dxₜ
///
/// with λₜ the cotangent of zₜ; where nothing lies before (w = 1, g = 0), dx = λ and λ ends.
public struct AdditiveGateBackward: Op {
  public static let name = "additive_gate_backward"
  public let hasState, hasFinal: Bool

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let s = i[0].shape
    return [i[0]] + (hasState ? [TensorSpec([s[0], s[2]])] : [])
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    var later = hasFinal ? a.inputs[4] : [Double](repeating: 0, count: s[0] * s[2])
    for b in 0..<s[0] {
      for t in stride(from: s[1] - 1, through: 0, by: -1) {
        for c in 0..<s[2] {
          let (i, j) = ((b * s[1] + t) * s[2] + c, b * s[2] + c)
          let (w, g) = (a.inputs[0][i], a.inputs[1][i])
          if w == 1 && g == 0 {
            a.outputs[0][i] = later[j]
            later[j] = 0
          } else {
            let dx = w * (Functions.exp(g) * a.inputs[2][i] - a.inputs[3][i] + later[j])
            a.outputs[0][i] = dx
            later[j] -= dx
          }
        }
      }
    }
    if hasState { a.outputs[1] = later }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
