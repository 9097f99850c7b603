import GyreTensors

/// How a matrix state decays.
public enum DecayKind: Int, Sendable, Hashable {
  case none, constant, scalar, vector
}

/// Possible inputs: q, k, v, log decay, input gate, bonus, S₀, z₀, m₀, reset.
/// Outputs: y, S, then z with a normaliser, m with exponential gates.
public struct LinearAttentionForward: Op {
  public static let name = "linear_attention"
  public let form: SequenceForm
  public let decay: DecayKind
  public let normalizer: LinearAttention.Normalizer
  public let scale: Double
  public let optional: OptionalInputs
  /// Of products, but in the recurrent form; states and sums are float32.
  public var precision: ComputePrecision = .float32

  public func extents(_ i: [TensorSpec]) -> HeadExtents {
    HeadExtents(q: i[0].shape, v: i[2].shape)
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let x = extents(i)
    precondition(i[0].shape == i[1].shape, "linear_attention: q \(i[0].shape), k \(i[1].shape)")
    let gate: Shape? =
      switch decay {
      case .none: nil
      case .constant: [x.heads]
      case .scalar: [x.batch, x.tokens, x.heads]
      case .vector: [x.batch, x.tokens, x.heads, x.keySize]
      }
    precondition(
      optional.pick(3, i)?.shape == gate,
      "linear_attention: decay \(String(describing: optional.pick(3, i)?.shape)) where \(String(describing: gate)) belongs"
    )
    return [i[2], TensorSpec(x.state)]
      + (normalizer.hasVector ? [TensorSpec([x.batch, x.heads, x.keySize])] : [])
      + (normalizer.isExponential ? [TensorSpec([x.batch, x.heads])] : [])
  }

  /// One head of one row, walked token by token.
  struct Walk {
    var S: HostMatrix
    var z: [Double]
    var m: Double
  }

  /// What a token did to a head: the decay of each row, the weight of its write, its stabiliser.
  func gates(_ a: [[Double]], _ x: HeadExtents, _ b: Int, _ t: Int, _ h: Int, m: Double)
    -> (decay: [Double], weight: Double, m: Double)
  {
    let g: [Double]
    switch decay {
    case .none: g = [Double](repeating: 0, count: x.keySize)
    case .constant: g = [Double](repeating: optional.pick(3, a)![h], count: x.keySize)
    case .scalar:
      g = [Double](repeating: optional.pick(3, a)![x.value(b, t, h, 1)], count: x.keySize)
    case .vector:
      let start = x.value(b, t, h, x.keySize)
      g = Array(optional.pick(3, a)![start..<start + x.keySize])
    }
    guard normalizer.isExponential, let gate = optional.pick(4, a) else {
      return (g.map(Functions.exp), 1, 0)
    }
    let input = gate[x.value(b, t, h, 1)]
    let top = max(g[0] + m, input)
    return (g.map { Functions.exp($0 + m - top) }, Functions.exp(input - top), top)
  }

  func start(_ a: [[Double]], _ x: HeadExtents, _ b: Int, _ h: Int) -> Walk {
    let head = b * x.heads + h
    return Walk(
      S: HostMatrix(
        x.keySize, x.valueSize, optional.pick(6, a), at: head * x.keySize * x.valueSize),
      z: optional.pick(7, a).map { Array($0[head * x.keySize..<(head + 1) * x.keySize]) }
        ?? [Double](repeating: 0, count: x.keySize),
      m: optional.pick(8, a)?[head] ?? 0)
  }

  func isReset(_ a: [[Double]], _ x: HeadExtents, _ b: Int, _ t: Int) -> Bool {
    (optional.pick(9, a)?[b * x.tokens + t] ?? 0) != 0
  }

  func cleared(_ x: HeadExtents) -> Walk {
    Walk(
      S: HostMatrix(x.keySize, x.valueSize), z: [Double](repeating: 0, count: x.keySize), m: 0)
  }

  /// a = s·z·q and what y is divided by, with the derivative of the divisor with respect to a.
  func divisor(_ z: [Double], _ q: ArraySlice<Double>, m: Double) -> (value: Double, slope: Double)
  {
    guard normalizer.hasVector else { return (1, 0) }
    var a = 0.0
    for (i, x) in z.enumerated() { a += x * q[q.startIndex + i] }
    a *= scale
    func floored(_ bound: Double, _ epsilon: Double) -> (Double, Double) {
      abs(a) > bound ? (abs(a) + epsilon, a > 0 ? 1 : -1) : (bound + epsilon, 0)
    }
    switch normalizer {
    case .none: return (1, 0)
    case .sum(let epsilon): return (a + epsilon, 1)
    case .floor(let bound, let epsilon): return floored(bound, epsilon)
    case .exponential(let epsilon): return floored(Functions.exp(-m), epsilon)
    }
  }

  public func reference(_ a: inout HostArguments) {
    let x = extents(a.inputSpecs)
    let (K, V) = (x.keySize, x.valueSize)
    for b in 0..<x.batch {
      for h in 0..<x.heads {
        var w = start(a.inputs, x, b, h)
        for t in 0..<x.tokens {
          if isReset(a.inputs, x, b, t) { w = cleared(x) }
          let (qk, vy) = (x.key(b, t, h), x.value(b, t, h, V))
          let q = a.inputs[0][qk..<qk + K]
          let step = advance(a.inputs, x, b, t, h, &w)
          let d = divisor(step.readZ, q, m: w.m).value
          for (j, n) in step.readS.transposedTimes(q).enumerated() {
            a.outputs[0][vy + j] = scale * n / d
          }
        }
        let head = b * x.heads + h
        accumulate(w.S.e, into: &a.outputs[1], at: head * K * V)
        if normalizer.hasVector { accumulate(w.z, into: &a.outputs[2], at: head * K) }
        if normalizer.isExponential { a.outputs[3][head] = w.m }
      }
    }
  }

  /// Moves the state over a token; returns what the query reads and the gates.
  func advance(
    _ a: [[Double]], _ x: HeadExtents, _ b: Int, _ t: Int, _ h: Int, _ w: inout Walk
  ) -> (readS: HostMatrix, readZ: [Double], decay: [Double], weight: Double) {
    let (K, V) = (x.keySize, x.valueSize)
    let (qk, vy) = (x.key(b, t, h), x.value(b, t, h, V))
    let k = a[1][qk..<qk + K]
    let v = a[2][vy..<vy + V]
    let g = gates(a, x, b, t, h, m: w.m)
    var (readS, readZ) = (w.S, w.z)
    w.S.scaleRows(g.decay)
    w.S.addOuter(k, v, g.weight)
    for i in 0..<K { w.z[i] = g.decay[i] * w.z[i] + g.weight * k[qk + i] }
    w.m = g.m
    if let bonus = optional.pick(5, a) {
      let lifted = (0..<K).map { bonus[h * K + $0] * k[qk + $0] }
      readS.addOuter(lifted[...], v)
      for i in 0..<K { readZ[i] += lifted[i] }
    } else {
      (readS, readZ) = (w.S, w.z)
    }
    return (readS, readZ, g.decay, g.weight)
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let z = normalizer.hasVector ? c.cotangents[2] : nil
    let op = LinearAttentionBackward(
      forward: self, inputCount: c.inputs.count, hasState: c.cotangents[1] != nil, hasNorm: z != nil
    )
    let g = applyPresent(
      op, c.inputs.map { $0 } + [c.outputs[0], c.cotangent(0), c.cotangents[1], z])
    var next = 0
    return optional.gather { i in
      if i >= 8 { return nil }
      defer { next += 1 }
      return g[next]
    }
  }
  public var saved: SavedValues {
    SavedValues(
      keepsInput: { _ in true }, keepsOutput: { [normalizer] in $0 == 0 && normalizer.hasVector })
  }
}

/// Inputs: the forward's, y, dy, then dS and dz of the final state where present.
/// Outputs: gradients of the forward's inputs up to z₀.
public struct LinearAttentionBackward: Op {
  public static let name = "linear_attention_backward"
  public let forward: LinearAttentionForward
  /// Inputs of the forward.
  public let inputCount: Int
  public let hasState: Bool
  public let hasNorm: Bool

  /// Positions after the forward's inputs: y, dy, dS, dz.
  public var extra: OptionalInputs { OptionalInputs([true, true, hasState, hasNorm]) }
  /// Position among the outputs of the gradient of possible input `i`.
  public func place(_ i: Int) -> Int? { i < 8 ? forward.optional[i] : nil }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    (0..<8).compactMap { forward.optional.pick($0, i) }
  }

  public func reference(_ a: inout HostArguments) {
    let x = forward.extents(a.inputSpecs)
    let (K, V) = (x.keySize, x.valueSize)
    let inputs = Array(a.inputs[..<inputCount])
    let rest = Array(a.inputs[inputCount...])
    let dy = rest[1]
    let s = forward.scale
    for b in 0..<x.batch {
      for h in 0..<x.heads {
        var w = forward.start(inputs, x, b, h)
        var before: [LinearAttentionForward.Walk] = []
        for t in 0..<x.tokens {
          if forward.isReset(inputs, x, b, t) { w = forward.cleared(x) }
          before.append(w)
          _ = forward.advance(inputs, x, b, t, h, &w)
        }
        let head = b * x.heads + h
        var dS = HostMatrix(K, V, extra.pick(2, rest), at: head * K * V)
        var dz =
          extra.pick(3, rest).map { Array($0[head * K..<(head + 1) * K]) }
          ?? [Double](repeating: 0, count: K)
        for t in stride(from: x.tokens - 1, through: 0, by: -1) {
          var after = before[t]
          let step = forward.advance(inputs, x, b, t, h, &after)
          let (qk, vy) = (x.key(b, t, h), x.value(b, t, h, V))
          let (q, k) = (inputs[0][qk..<qk + K], inputs[1][qk..<qk + K])
          let v = inputs[2][vy..<vy + V]
          let d = forward.divisor(step.readZ, q, m: after.m)
          let numerator = step.readS.transposedTimes(q).map { s * $0 }
          var dn = [Double](repeating: 0, count: V)
          var da = 0.0
          for j in 0..<V {
            dn[j] = dy[vy + j] / d.value
            da -= dy[vy + j] * numerator[j] / (d.value * d.value) * d.slope
          }
          var dq = step.readS.times(dn[...])
          for i in 0..<K { dq[i] = s * (dq[i] + da * step.readZ[i]) }
          accumulate(dq, into: &a.outputs[0], at: qk)
          var readS = HostMatrix(K, V)
          readS.addOuter(q, dn[...], s)
          let readZ = q.map { s * da * $0 }
          let bonus = forward.optional.pick(5, inputs)
          if bonus == nil {
            for i in dS.e.indices { dS.e[i] += readS.e[i] }
            for i in 0..<K { dz[i] += readZ[i] }
          }
          let along = dS.times(v)
          var dk = (0..<K).map { step.weight * (along[$0] + dz[$0]) }
          var dv = dS.transposedTimes(k).map { step.weight * $0 }
          if let gate = place(4) {
            a.outputs[gate][x.value(b, t, h, 1)] += zip(k, dk).reduce(0) { $0 + $1.0 * $1.1 }
          }
          if let bonus, let place = place(5) {
            let lifted = readS.times(v)
            for i in 0..<K {
              let u = bonus[h * K + i]
              dk[i] += u * (lifted[i] + readZ[i])
              a.outputs[place][h * K + i] += k[qk + i] * (lifted[i] + readZ[i])
            }
            let weighted = (0..<K).map { bonus[h * K + $0] * k[qk + $0] }
            for (j, g) in readS.transposedTimes(weighted[...]).enumerated() { dv[j] += g }
          }
          accumulate(dk, into: &a.outputs[1], at: qk)
          accumulate(dv, into: &a.outputs[2], at: vy)
          if let place = place(3) {
            var slopes = dS.rowProducts(before[t].S)
            for i in 0..<K { slopes[i] = step.decay[i] * (slopes[i] + dz[i] * before[t].z[i]) }
            switch forward.decay {
            case .none: break
            case .constant: a.outputs[place][h] += slopes.reduce(0, +)
            case .scalar: a.outputs[place][x.value(b, t, h, 1)] += slopes.reduce(0, +)
            case .vector: accumulate(slopes, into: &a.outputs[place], at: x.value(b, t, h, K))
            }
          }
          dS.scaleRows(step.decay)
          for i in 0..<K { dz[i] *= step.decay[i] }
          if bonus != nil {
            for i in dS.e.indices { dS.e[i] += readS.e[i] }
            for i in 0..<K { dz[i] += readZ[i] }
          }
          if forward.isReset(inputs, x, b, t) {
            dS = HostMatrix(K, V)
            dz = [Double](repeating: 0, count: K)
          }
        }
        if let place = place(6) { accumulate(dS.e, into: &a.outputs[place], at: head * K * V) }
        if let place = place(7) { accumulate(dz, into: &a.outputs[place], at: head * K) }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}

extension LinearAttentionForward {
  public static let cases: [OpCase] = {
    let (B, T, H, K, V) = (2, 37, 2, 12, 20)
    func make(
      _ label: String, _ decay: DecayKind, _ normalizer: LinearAttention.Normalizer = .none,
      bonus: Bool = false, keyHeads: Int = 2, gate: TestInput.Values = .uniform(-2, 0)
    ) -> [OpCase] {
      [
        (SequenceForm.recurrent, true), (.chunkwise(size: 16), true), (.parallel, true),
        (.chunkwise, false),
      ].map { form, full in
        let isSum = if case .sum = normalizer { true } else { false }
        let gateShape: Shape? =
          switch decay {
          case .none: nil
          case .constant: [H]
          case .scalar: [B, T, H]
          case .vector: [B, T, H, K]
          }
        let inputs: [TestInput?] = [
          // A sum is a divisor for features that are positive; of any sign it may come near zero.
          TestInput([B, T, keyHeads, K], isSum ? .uniform(0.1, 1) : .normal()),
          TestInput([B, T, keyHeads, K], normalizer.hasVector ? .uniform(0.1, 1) : .normal()),
          TestInput([B, T, H, V]),
          gateShape.map { TestInput($0, gate) },
          normalizer.isExponential ? TestInput([B, T, H]) : nil,
          bonus ? TestInput([H, K], .uniform(0, 1)) : nil,
          full ? TestInput([B, H, K, V]) : nil,
          full && normalizer.hasVector ? TestInput([B, H, K], .uniform(0.5, 1)) : nil,
          full && normalizer.isExponential ? TestInput([B, H], differentiable: false) : nil,
          full ? testResets(batch: B, tokens: T) : nil,
        ]
        let op = LinearAttentionForward(
          form: form, decay: decay, normalizer: normalizer, scale: 0.3,
          optional: OptionalInputs(inputs.map { $0 != nil }))
        return OpCase(
          "\(label) \(form)\(full ? " full" : "")", op, inputs.compactMap { $0 },
          tolerance: 2e-5, gradientTolerance: 2e-4,
          // Scaled states move with their stabiliser, whose choice has no gradient.
          differentiableOutputs: normalizer.isExponential ? 1 : nil)
      }
    }
    return make("no decay", .none, keyHeads: 1) + make("constant", .constant)
      + make("scalar", .scalar) + make("vector", .vector)
      + make("vector, closed gates", .vector, gate: .uniform(-60, 0))
      + make("bonus", .vector, bonus: true)
      + make("sum", .scalar, .sum(epsilon: 1)) + make("floor", .none, .floor(1, epsilon: 1e-6))
      + make("exponential", .scalar, .exponential(epsilon: 1e-6)) + halfCases + stepCases
  }()

  /// Values in bfloat16, whose products devices may form in it, and float32 ones whose products are asked
  /// for in it: two chunks and a bit.
  private static let halfCases: [OpCase] = {
    func make(
      _ label: String, _ decay: DecayKind, _ normalizer: LinearAttention.Normalizer = .none,
      bonus: Bool = false, keyHeads: Int = 2, K: Int = 16, V: Int = 24, stored: Bool = true,
      batch B: Int = 1, tokens T: Int = 70, isRecorded: Bool = true
    ) -> OpCase {
      let H = 2
      let type: DType = stored ? .bfloat16 : .float32
      let gate: TestInput? =
        switch decay {
        case .none: nil
        case .constant: TestInput([H], .uniform(-0.5, 0))
        case .scalar: TestInput([B, T, H], .uniform(-0.5, 0))
        case .vector: TestInput([B, T, H, K], .uniform(-0.5, 0)).stored(as: type)
        }
      // A divisor of both signs may come near zero, where it magnifies what rounding has left.
      let values: TestInput.Values = normalizer.hasVector ? .uniform(0.1, 1) : .normal()
      let inputs: [TestInput?] = [
        TestInput([B, T, keyHeads, K], values).stored(as: type),
        TestInput([B, T, keyHeads, K], values).stored(as: type),
        TestInput([B, T, H, V]).stored(as: type), gate,
        normalizer.isExponential ? TestInput([B, T, H]) : nil,
        bonus ? TestInput([H, K], .uniform(0, 1)) : nil,
        TestInput([B, H, K, V]),
        normalizer.hasVector ? TestInput([B, H, K], .uniform(0.5, 1)) : nil,
        normalizer.isExponential ? TestInput([B, H], differentiable: false) : nil,
        testResets(batch: B, tokens: T),
      ]
      var given = inputs.compactMap { $0 }
      if !isRecorded {
        for i in given.indices { given[i].isDifferentiable = false }
      }
      return OpCase(
        "bfloat16 \(stored ? "" : "products ")\(label)",
        LinearAttentionForward(
          form: .chunkwise, decay: decay, normalizer: normalizer, scale: 0.3,
          optional: OptionalInputs(inputs.map { $0 != nil }), precision: .bfloat16),
        given,
        tolerance: 1e-2, gradientTolerance: 2e-2, differenceTolerance: 1e-2,
        differentiableOutputs: normalizer.isExponential ? 1 : nil)
    }
    let exponential = LinearAttention.Normalizer.exponential(epsilon: 1e-6)
    func unrecorded(
      _ K: Int, _ V: Int, batch: Int = 1, tokens: Int, _ label: String, _ decay: DecayKind,
      _ normalizer: LinearAttention.Normalizer = .none, keyHeads: Int = 2
    ) -> OpCase {
      make(
        "alone, \(label) \(K) by \(V), \(tokens) tokens", decay, normalizer,
        keyHeads: keyHeads, K: K, V: V, batch: batch, tokens: tokens, isRecorded: false)
    }
    // From one chunk to two segments of nine.
    let alone = [
      unrecorded(64, 64, tokens: 200, "none", .none),
      unrecorded(96, 72, tokens: 130, "constant", .constant),
      unrecorded(40, 24, batch: 3, tokens: 200, "scalar", .scalar, keyHeads: 1),
      unrecorded(128, 128, tokens: 150, "sum", .none, .sum(epsilon: 1e-6)),
      unrecorded(64, 136, tokens: 64, "floor", .scalar, .floor(1, epsilon: 1e-6)),
      unrecorded(16, 24, batch: 3, tokens: 6, "exponential", .scalar, exponential, keyHeads: 1),
      unrecorded(64, 64, tokens: 1_100, "exponential", .scalar, exponential, keyHeads: 1),
      unrecorded(128, 128, batch: 2, tokens: 140, "exponential", .scalar, exponential),
      unrecorded(128, 64, tokens: 1_100, "scalar", .scalar),
      unrecorded(64, 40, batch: 2, tokens: 530, "vector", .vector),
      unrecorded(128, 128, tokens: 1_100, "vector", .vector),
    ]
    return alone + [
      make("vector in segments", .vector, K: 64, V: 64, tokens: 330),
      make("vector in segments, wide", .vector, K: 96, V: 128, tokens: 400),
      make("none", .none), make("constant", .constant), make("scalar", .scalar, keyHeads: 1),
      make("vector", .vector), make("bonus", .vector, bonus: true),
      make("sum", .none, .sum(epsilon: 1e-6)), make("floor", .scalar, .floor(1, epsilon: 1e-6)),
      make("exponential", .scalar, exponential, keyHeads: 1),
      make("exponential wide", .scalar, exponential, K: 136, V: 136),
      make("none", .none, stored: false), make("scalar", .scalar, keyHeads: 1, stored: false),
      make("vector", .vector, V: 80, stored: false),
      make("bonus", .vector, bonus: true, stored: false),
      make("sum", .none, .sum(epsilon: 1e-6), stored: false),
      make("exponential", .scalar, exponential, keyHeads: 1, K: 40, V: 64, stored: false),
    ]
  }()
}
