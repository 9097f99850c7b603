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

  /// Calls `body` for each element in order of time, with the logarithm of the sum before it.
  func walk(
    _ inputs: [[Double]], _ s: Shape,
    _ body: (_ i: Int, _ channel: Int, _ z: Double, _ new: Double)
      -> Void
  ) -> [Double] {
    var z = optional.pick(1, inputs) ?? [Double](repeating: -.infinity, count: s[0] * s[2])
    let reset = optional.pick(2, inputs)
    for b in 0..<s[0] {
      for t in 0..<s[1] {
        let starts = (reset?[b * s[1] + t] ?? 0) != 0
        for d in 0..<s[2] {
          let (i, c) = ((b * s[1] + t) * s[2] + d, b * s[2] + d)
          let (old, x) = (starts ? -.infinity : z[c], inputs[0][i])
          let top = max(old, x)
          z[c] = top + Functions.log(Functions.exp(old - top) + Functions.exp(x - top))
          body(i, c, old, z[c])
        }
      }
    }
    return z
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    var (w, g) = (a.outputs[0], a.outputs[1])
    a.outputs[2] = walk(a.inputs, s) { i, _, old, z in
      w[i] = Functions.exp(a.inputs[0][i] - z)
      g[i] = old == -.infinity ? 0 : old - z
    }
    (a.outputs[0], a.outputs[1]) = (w, g)
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = AdditiveGateBackward(forward: self, hasFinal: c.cotangents[2] != nil)
    let gradients = applyPresent(
      op, c.inputs.map { $0 } + [c.cotangent(0), c.cotangent(1), c.cotangents[2]])
    return optional.gather { i in i == 2 ? nil : gradients[i] }
  }
  public var saved: SavedValues { .inputs }

  public static let cases = [(false, false), (true, false), (true, true)].map {
    hasState, hasReset in
    OpCase(
      "state \(hasState) reset \(hasReset)",
      AdditiveGateForward(optional: OptionalInputs([true, hasState, hasReset])),
      [TestInput([2, 37, 20], .normal(scale: 3))] + (hasState ? [TestInput([2, 20])] : [])
        + (hasReset ? [testResets(batch: 2, tokens: 37)] : []))
  }
}

/// Inputs: the forward's, dw, dg, and d final z where present. Outputs: dx, and dz₀ where the forward
/// had z₀.
///
///     λₜ = gₜ₊₁' − gₜ' − wₜ' wₜ + e^gₜ₊₁ λₜ₊₁    dxₜ = wₜ (wₜ' + λₜ)
public struct AdditiveGateBackward: Op {
  public static let name = "additive_gate_backward"
  public let forward: AdditiveGateForward
  public let hasFinal: Bool

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let s = i[0].shape
    return [i[0]] + (forward.optional.has(1) ? [TensorSpec([s[0], s[2]])] : [])
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    let n = forward.optional.gather { $0 }.count
    let (dw, dg) = (a.inputs[n], a.inputs[n + 1])
    var steps = [(old: Double, z: Double)](repeating: (0, 0), count: s.elementCount)
    _ = forward.walk(Array(a.inputs[..<n]), s) { i, _, old, z in steps[i] = (old, z) }
    // The cotangent of z after a token, from what comes later.
    var later = hasFinal ? a.inputs[n + 2] : [Double](repeating: 0, count: s[0] * s[2])
    for b in 0..<s[0] {
      for t in stride(from: s[1] - 1, through: 0, by: -1) {
        for d in 0..<s[2] {
          let (i, c) = ((b * s[1] + t) * s[2] + d, b * s[2] + d)
          let (old, z) = steps[i]
          let w = Functions.exp(a.inputs[0][i] - z)
          let isOpen = old != -.infinity
          let total = later[c] - dw[i] * w - (isOpen ? dg[i] : 0)
          a.outputs[0][i] = w * (dw[i] + total)
          later[c] = isOpen ? dg[i] + total * Functions.exp(old - z) : 0
        }
      }
    }
    if forward.optional.has(1) { a.outputs[1] = later }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
