import GyreTensors

/// RWKV-4's average of the values seen, with weights that grow with their keys and decay with age:
///
///     yₜ = (Nₜ₋₁ + e^(u+kₜ) vₜ) / (Dₜ₋₁ + e^(u+kₜ))
///     Nₜ = e^w Nₜ₋₁ + e^kₜ vₜ    Dₜ = e^w Dₜ₋₁ + e^kₜ
///
/// Peng et al., "RWKV: reinventing RNNs for the Transformer era", 2023.
/// https://arxiv.org/abs/2305.13048
///
/// State: "num", "den" and "max" `[D]` with N = e^max·num and D = e^max·den, so that no exponential
/// overflows; max is a constant in the gradient, as nothing depends on how the scale is chosen.
public struct WKV4: RecurrenceEngine {
  public let channels: Int
  public init(channels: Int) { self.channels = channels }

  public struct Inputs: Sendable {
    /// w ≤ 0 and u `[D]`.
    public var logDecay, bonus: Tensor
    /// k and v `[B, T, D]`.
    public var k, v: Tensor
    public init(logDecay: Tensor, bonus: Tensor, k: Tensor, v: Tensor) {
      self.logDecay = logDecay
      self.bonus = bonus
      self.k = k
      self.v = v
    }
  }

  public var stateSpec: StateSpec {
    StateSpec([
      .init("num", [channels]), .init("den", [channels]),
      .init("max", [channels], initial: WKV4Forward.nothing),
    ])
  }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let inputs = [
      i.logDecay, i.bonus, i.k, i.v, state["num"], state["den"], state["max"], reset,
    ]
    let op = WKV4Forward(form: form, optional: OptionalInputs(inputs.map { $0 != nil }))
    let outputs = applyPresent(op, inputs)
    for (name, value) in zip(["num", "den", "max"], outputs[1...]) { state[name] = value }
    return outputs[0]
  }
}

/// Possible inputs: w, u, k, v, num₀, den₀, max₀, reset. Outputs: y, num, den, max.
public struct WKV4Forward: Op {
  public static let name = "wkv4"
  /// The logarithm of the scale of sums without terms.
  static let nothing = -1e38
  public let form: SequenceForm
  public let optional: OptionalInputs

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let k = i[2].shape
    precondition(
      k.rank == 3 && i[3].shape == k && i[0].shape == [k[2]] && i[1].shape == [k[2]],
      "wkv4: decay \(i[0].shape), bonus \(i[1].shape), k \(k), v \(i[3].shape)")
    precondition(
      (4..<7).allSatisfy { optional.has($0) == optional.has(4) },
      "wkv4: the parts of the state must be present all or none")
    let state = TensorSpec([k[0], k[2]])
    return [i[2], state, state, state]
  }

  /// One channel's sums, scaled.
  struct Sums {
    var num = 0.0
    var den = 0.0
    var max = WKV4Forward.nothing
  }

  /// The sums that each token of a channel finds, and those after the last.
  func sums(_ a: [[Double]], _ s: Shape, _ b: Int, _ d: Int) -> [Sums] {
    var x = Sums()
    if let num = optional.pick(4, a), let den = optional.pick(5, a), let max = optional.pick(6, a) {
      let i = b * s[2] + d
      x = Sums(num: num[i], den: den[i], max: max[i])
    }
    let reset = optional.pick(7, a)
    var all: [Sums] = []
    for t in 0..<s[1] {
      if let reset, reset[b * s[1] + t] != 0 { x = Sums() }
      all.append(x)
      let i = (b * s[1] + t) * s[2] + d
      let top = Swift.max(x.max + a[0][d], a[2][i])
      let (old, new) = (Functions.exp(x.max + a[0][d] - top), Functions.exp(a[2][i] - top))
      x = Sums(num: old * x.num + new * a[3][i], den: old * x.den + new, max: top)
    }
    return all + [x]
  }

  /// The output for a token that finds `x`, the logarithm of its scale, the weight of the token itself
  /// and the divisor.
  func output(_ x: Sums, lifted: Double, v: Double) -> (
    y: Double, top: Double, own: Double, divisor: Double
  ) {
    let top = max(x.max, lifted)
    let (old, own) = (Functions.exp(x.max - top), Functions.exp(lifted - top))
    let divisor = old * x.den + own
    return ((old * x.num + own * v) / divisor, top, own, divisor)
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[2].shape
    for b in 0..<s[0] {
      for d in 0..<s[2] {
        let all = sums(a.inputs, s, b, d)
        for t in 0..<s[1] {
          let i = (b * s[1] + t) * s[2] + d
          a.outputs[0][i] =
            output(all[t], lifted: a.inputs[1][d] + a.inputs[2][i], v: a.inputs[3][i]).y
        }
        let (last, i) = (all[s[1]], b * s[2] + d)
        (a.outputs[1][i], a.outputs[2][i], a.outputs[3][i]) = (last.num, last.den, last.max)
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let extra = [c.cotangents[0], c.cotangents[1], c.cotangents[2]]
    let op = WKV4Backward(
      forward: self, inputCount: c.inputs.count, extra: OptionalInputs(extra.map { $0 != nil }))
    if extra.allSatisfy({ $0 == nil }) { return c.inputs.map { _ in nil } }
    let g = applyPresent(op, c.inputs.map { $0 } + extra)
    return optional.gather { i in op.place(i).map { g[$0] } }
  }
  public var saved: SavedValues { .inputs }

  public static let cases = scanCases { form, hasState, hasReset in
    let state = hasState ? [TestInput([2, 20]), TestInput([2, 20], .uniform(0.1, 2))] : []
    return [("wkv4", 1.0), ("wkv4 large keys", 30.0)].map { label, scale in
      (
        label,
        WKV4Forward(
          form: form,
          optional: OptionalInputs(
            [true, true, true, true] + [hasState, hasState, hasState] + [hasReset])),
        [
          TestInput([20], .uniform(-3, 0)), TestInput([20]),
          TestInput([2, 37, 20], .normal(scale: scale)), TestInput([2, 37, 20]),
        ] + state
      )
    }
  }
  .map {
    var test = $0
    // max, a constant.
    if test.inputs.count > 6 { test.inputs[6].isDifferentiable = false }
    test.differentiableOutputs = 1
    test.tolerance = 2e-5
    test.gradientTolerance = 1e-4
    return test
  }
}

/// Inputs: the forward's, then dy, d num and d den of the final state where present. Outputs:
/// gradients of w, u, k, v, and of num₀ and den₀ where the forward had them.
///
///     Āₜ₋₁ = e^w Āₜ + dyₜ/Zₜ    B̄ₜ₋₁ = e^w B̄ₜ − dyₜ yₜ/Zₜ    dv = e^(u+k) dy/Z + e^k Ā
///
/// with Ā and B̄ the cotangents of N and D, and Z what y was divided by.
public struct WKV4Backward: Op {
  public static let name = "wkv4_backward"
  public let forward: WKV4Forward
  public let inputCount: Int
  public let extra: OptionalInputs

  /// Position among the outputs of the gradient of possible input `i`.
  public func place(_ i: Int) -> Int? { i < 6 ? forward.optional[i] : nil }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    (0..<6).compactMap { forward.optional.pick($0, i) }
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[2].shape
    let inputs = Array(a.inputs[..<inputCount])
    let rest = Array(a.inputs[inputCount...])
    let (dy, dnum, dden) = (extra.pick(0, rest), extra.pick(1, rest), extra.pick(2, rest))
    let reset = forward.optional.pick(7, inputs)
    for b in 0..<s[0] {
      for d in 0..<s[2] {
        let all = forward.sums(inputs, s, b, d)
        let state = b * s[2] + d
        let w = inputs[0][d]
        // The cotangents of N and D are e^(−scale)·(p, q).
        var (p, q) = (dnum?[state] ?? 0, dden?[state] ?? 0)
        var scale = dnum == nil && dden == nil ? -WKV4Forward.nothing : all[s[1]].max
        for t in stride(from: s[1] - 1, through: 0, by: -1) {
          let i = (b * s[1] + t) * s[2] + d
          let (k, v, x) = (inputs[2][i], inputs[3][i], all[t])
          let o = forward.output(x, lifted: inputs[1][d] + k, v: v)
          let dn = (dy?[i] ?? 0) / o.divisor
          let dd = -dn * o.y
          let written = Functions.exp(k - scale)
          let own = o.own * (dn * v + dd)
          a.outputs[3][i] = o.own * dn + written * p
          a.outputs[2][i] = own + written * (p * v + q)
          a.outputs[1][d] += own
          a.outputs[0][d] += Functions.exp(x.max + w - scale) * (p * x.num + q * x.den)
          if let reset, reset[b * s[1] + t] != 0 {
            (p, q, scale) = (0, 0, -WKV4Forward.nothing)
            continue
          }
          let next = min(scale - w, o.top)
          let (old, new) = (Functions.exp(next - scale + w), Functions.exp(next - o.top))
          (p, q, scale) = (old * p + new * dn, old * q + new * dd, next)
        }
        guard let place = place(4), let max = forward.optional.pick(6, inputs)?[state] else {
          continue
        }
        a.outputs[place][state] = Functions.exp(max - scale) * p
        a.outputs[place + 1][state] = Functions.exp(max - scale) * q
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
