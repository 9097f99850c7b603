import GyreTensors

/// Possible inputs: q, k, v, g, β, λ, H₀, G₀, reset. Outputs: y, x, H, G.
public struct MesaForward: Op {
  public static let name = "mesa"
  public let steps: Int
  public let epsilon: Double
  public let optional: OptionalInputs
  /// Rounds as a public library's kernel does: `HalfMesa`.
  public var roundsToHalf = false

  public func extents(_ i: [TensorSpec]) -> HeadExtents {
    HeadExtents(q: i[0].shape, v: i[2].shape)
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let x = extents(i)
    let gate: Shape = [x.batch, x.tokens, x.heads]
    precondition(
      x.keyHeads == x.heads && i[1].shape == i[0].shape && i[3].shape == gate
        && i[4].shape == gate && i[5].shape == [x.heads, x.keySize],
      "mesa: q \(i[0].shape), k \(i[1].shape), v \(i[2].shape), g \(i[3].shape), β \(i[4].shape), λ \(i[5].shape)"
    )
    return [
      i[2], i[0], TensorSpec([x.batch, x.heads, x.keySize, x.keySize]), TensorSpec(x.state),
    ]
  }

  /// Both memories of one head.
  struct Memory {
    var H, G: HostMatrix
  }

  func isReset(_ a: [[Double]], _ x: HeadExtents, _ b: Int, _ t: Int) -> Bool {
    (optional.pick(8, a)?[b * x.tokens + t] ?? 0) != 0
  }

  /// The memories before the first token and after each.
  func memories(_ a: [[Double]], _ x: HeadExtents, _ b: Int, _ h: Int) -> [Memory] {
    let (K, V) = (x.keySize, x.valueSize)
    let head = b * x.heads + h
    var m = Memory(
      H: HostMatrix(K, K, optional.pick(6, a), at: head * K * K),
      G: HostMatrix(K, V, optional.pick(7, a), at: head * K * V))
    var all = [m]
    for t in 0..<x.tokens {
      if isReset(a, x, b, t) { m = Memory(H: HostMatrix(K, K), G: HostMatrix(K, V)) }
      let (key, value, gate) = (x.key(b, t, h), x.value(b, t, h, V), x.value(b, t, h, 1))
      let decay = [Double](repeating: Functions.exp(a[3][gate]), count: K)
      let k = a[1][key..<key + K]
      m.H.scaleRows(decay)
      m.G.scaleRows(decay)
      m.H.addOuter(k, k, a[4][gate])
      m.G.addOuter(k, a[2][value..<value + V], a[4][gate])
      all.append(m)
    }
    return all
  }

  /// Conjugate gradients for (H + diag λ) x = b from x = 0.
  func solve(_ H: HostMatrix, _ ridge: ArraySlice<Double>, _ b: [Double]) -> [Double] {
    solve(b) { p in zip(H.times(p[...]), zip(ridge, p)).map { $0 + $1.0 * $1.1 } }
  }

  /// Conjugate gradients for A x = b from x = 0, A as the map that applies it.
  func solve<F: BinaryFloatingPoint>(_ b: [F], _ apply: ([F]) -> [F]) -> [F] {
    let epsilon = F(epsilon)
    var x = [F](repeating: 0, count: b.count)
    var (r, p) = (b, b)
    var size = r.reduce(0) { $0 + $1 * $1 }
    for _ in 0..<steps {
      let image = apply(p)
      let alpha = size / (zip(p, image).reduce(0) { $0 + $1.0 * $1.1 } + epsilon)
      for i in x.indices {
        x[i] += alpha * p[i]
        r[i] -= alpha * image[i]
      }
      let next = r.reduce(0) { $0 + $1 * $1 }
      for i in p.indices { p[i] = r[i] + next / (size + epsilon) * p[i] }
      size = next
    }
    return x
  }

  public func reference(_ a: inout HostArguments) {
    let x = extents(a.inputSpecs)
    if roundsToHalf { return HalfMesa(op: self, x: x).run(&a) }
    let (K, V) = (x.keySize, x.valueSize)
    for b in 0..<x.batch {
      for h in 0..<x.heads {
        let all = memories(a.inputs, x, b, h)
        for t in 0..<x.tokens {
          let key = x.key(b, t, h)
          let found = solve(
            all[t + 1].H, a.inputs[5][h * K..<(h + 1) * K], Array(a.inputs[0][key..<key + K]))
          accumulate(found, into: &a.outputs[1], at: key)
          accumulate(
            all[t + 1].G.transposedTimes(found[...]), into: &a.outputs[0],
            at: x.value(b, t, h, V))
        }
        let head = b * x.heads + h
        accumulate(all[x.tokens].H.e, into: &a.outputs[2], at: head * K * K)
        accumulate(all[x.tokens].G.e, into: &a.outputs[3], at: head * K * V)
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = MesaBackward(
      forward: self, inputCount: c.inputs.count,
      extra: OptionalInputs([true, true, c.cotangents[2] != nil, c.cotangents[3] != nil]))
    let g = applyPresent(
      op, c.inputs.map { $0 } + [c.outputs[1], c.cotangent(0), c.cotangents[2], c.cotangents[3]])
    return optional.gather { i in op.place(i).map { g[$0] } }
  }
  public var saved: SavedValues {
    SavedValues(keepsInput: { _ in true }, keepsOutput: { $0 == 1 })
  }

  public static let cases: [OpCase] = {
    func make(
      _ label: String, K: Int, V: Int, full: Bool, B: Int = 2, T: Int = 11, H: Int = 2,
      type: DType = .float32, rounds: Bool = false
    ) -> OpCase {
      let isExact = type == .float32 && !rounds
      // Symmetric and positive, as every memory is.
      var start: [Double] = []
      for head in 0..<B * H {
        for i in 0..<K {
          for j in 0..<K {
            start.append(Functions.pow(0.5, Double(abs(i - j))) * (1 + 0.1 * Double(head)))
          }
        }
      }
      var inputs: [TestInput?] = [
        TestInput([B, T, H, K]).stored(as: type),
        TestInput([B, T, H, K], .normal(scale: K > 64 ? 0.2 : 0.5)).stored(as: type),
        TestInput([B, T, H, V]).stored(as: type), TestInput([B, T, H], .uniform(-1, 0)),
        TestInput([B, T, H], .uniform(0.1, 1)), TestInput([H, K], .uniform(0.5, 2)),
        full ? TestInput([B, H, K, K], .elements(start), differentiable: false) : nil,
        full ? TestInput([B, H, K, V]) : nil,
        full && !rounds ? testResets(batch: B, tokens: T) : nil,
      ]
      // Roundings have no slope.
      if rounds { for i in inputs.indices { inputs[i]?.isDifferentiable = false } }
      return OpCase(
        label,
        MesaForward(
          steps: rounds ? 8 : 30, epsilon: 1e-12,
          optional: OptionalInputs(inputs.map { $0 != nil }), roundsToHalf: rounds),
        // Values are a difference of larger numbers, which bfloat16 solutions and keys round.
        inputs.compactMap { $0 }, tolerance: isExact ? 2e-5 : 3e-2,
        gradientTolerance: isExact ? 1e-4 : 2e-2, differenceTolerance: isExact ? 2e-4 : 1e-2,
        // x is a note for the derivative.
        differentiableOutputs: 1)
    }
    return [
      make("plain", K: 12, V: 12, full: false), make("full", K: 8, V: 20, full: true),
      make("wide", K: 19, V: 8, full: true),
      make("chunks", K: 40, V: 24, full: true, B: 1, T: 35),
      make("72", K: 72, V: 8, full: true, B: 1, T: 6, H: 1),
      make("104", K: 104, V: 8, full: true, B: 1, T: 6, H: 1),
      make("136", K: 136, V: 8, full: true, B: 1, T: 6, H: 1),
      make("rounded", K: 16, V: 12, full: true, B: 1, T: 70, rounds: true),
      make("bfloat16", K: 32, V: 40, full: true, B: 1, T: 20, type: .bfloat16),
    ]
  }()
}

/// Inputs: the forward's, x, dy, then dH and dG of the final memories where present. Outputs:
/// gradients of the forward's inputs up to G₀.
///
///     (Hₜ + diag λ) zₜ = Gₜ dyₜ    dq = z    dλ = −Σ z ∘ x
///     P ← e^g P + xₜ dyₜᵀ    Q ← e^g Q − zₜ xₜᵀ    dβ = kᵀ(Q k + P v)    dk = β (Q k + Qᵀ k + P v)
///     dv = β Pᵀ k    dg = e^g (⟨Q, Hₜ₋₁⟩ + ⟨P, Gₜ₋₁⟩)
public struct MesaBackward: Op {
  public static let name = "mesa_backward"
  public let forward: MesaForward
  public let inputCount: Int
  /// Positions after the forward's inputs: x, dy, dH, dG.
  public let extra: OptionalInputs

  /// Position among the outputs of the gradient of possible input `i`.
  public func place(_ i: Int) -> Int? { i < 8 ? forward.optional[i] : nil }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    (0..<8).compactMap { forward.optional.pick($0, i) }
  }

  public func reference(_ a: inout HostArguments) {
    let x = forward.extents(a.inputSpecs)
    let inputs = Array(a.inputs[..<inputCount])
    let rest = Array(a.inputs[inputCount...])
    let (K, V) = (x.keySize, x.valueSize)
    for b in 0..<x.batch {
      for h in 0..<x.heads {
        let all = forward.memories(inputs, x, b, h)
        let head = b * x.heads + h
        let ridge = inputs[5][h * K..<(h + 1) * K]
        var Q = HostMatrix(K, K, extra.pick(2, rest), at: head * K * K)
        var P = HostMatrix(K, V, extra.pick(3, rest), at: head * K * V)
        for t in stride(from: x.tokens - 1, through: 0, by: -1) {
          let (key, value, gate) = (x.key(b, t, h), x.value(b, t, h, V), x.value(b, t, h, 1))
          let found = rest[0][key..<key + K]
          let dy = rest[1][value..<value + V]
          let z = forward.solve(all[t + 1].H, ridge, all[t + 1].G.times(dy))
          accumulate(z, into: &a.outputs[0], at: key)
          for i in 0..<K { a.outputs[5][h * K + i] -= z[i] * found[key + i] }
          P.addOuter(found, dy)
          Q.addOuter(z[...], found, -1)
          let (k, v) = (inputs[1][key..<key + K], inputs[2][value..<value + V])
          let (Qk, Qtk, Pv) = (Q.times(k), Q.transposedTimes(k), P.times(v))
          let (beta, Pk) = (inputs[4][gate], P.transposedTimes(k))
          for i in 0..<K {
            a.outputs[4][gate] += k[key + i] * (Qk[i] + Pv[i])
            a.outputs[1][key + i] += beta * (Qk[i] + Qtk[i] + Pv[i])
          }
          for j in 0..<V { a.outputs[2][value + j] += beta * Pk[j] }
          let closed = forward.isReset(inputs, x, b, t)
          let decay = closed ? 0 : Functions.exp(inputs[3][gate])
          let slope = zip(Q.rowProducts(all[t].H), P.rowProducts(all[t].G))
            .reduce(0) { $0 + $1.0 + $1.1 }
          a.outputs[3][gate] += decay * slope
          Q.scaleRows([Double](repeating: decay, count: K))
          P.scaleRows([Double](repeating: decay, count: K))
        }
        if let place = place(6) { accumulate(Q.e, into: &a.outputs[place], at: head * K * K) }
        if let place = place(7) { accumulate(P.e, into: &a.outputs[place], at: head * K * V) }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
