import GyreTensors

/// Possible inputs: q, k, v, log decay, β, a, b, S₀, reset; β makes it the delta rule, a and b the
/// generalised one. Outputs: y, S, and with `keepsChunks` what the backward kernel needs: the states
/// at the chunks' starts and what each token wrote.
public struct DeltaRuleForward: Op {
  public static let name = "delta_rule"
  public let form: SequenceForm
  public let scale: Double
  public let keepsChunks: Bool
  public let optional: OptionalInputs

  static func run(
    _ inputs: [Tensor?], _ scale: Double, _ form: SequenceForm, _ state: inout State
  ) -> Tensor {
    let op = DeltaRuleForward(
      form: form, scale: scale,
      keepsChunks: Tape.current != nil && inputs.contains { $0?.device.readsKeptStates ?? false },
      optional: OptionalInputs(inputs.map { $0 != nil }))
    let outputs = applyPresent(op, inputs)
    state["S"] = outputs[1]
    return outputs[0]
  }

  public func extents(_ i: [TensorSpec]) -> HeadExtents {
    HeadExtents(q: i[0].shape, v: i[2].shape)
  }

  /// States kept for one head: at the entry of each chunk, of each 32 tokens token by token.
  public func stateCount(_ tokens: Int) -> Int {
    switch form {
    case .recurrent: (tokens + 31) / 32
    case .chunkwise(let size): (tokens + size - 1) / size
    case .parallel: min(tokens, 1)
    }
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let x = extents(i)
    precondition(i[0].shape == i[1].shape, "delta_rule: q \(i[0].shape), k \(i[1].shape)")
    let vector: Shape = [x.batch, x.tokens, x.heads, x.keySize]
    let scalar: Shape = [x.batch, x.tokens, x.heads]
    if let g = optional.pick(3, i) {
      precondition(g.shape == scalar || g.shape == vector, "delta_rule: decay \(g.shape)")
    }
    if let beta = optional.pick(4, i) {
      precondition(beta.shape == scalar, "delta_rule: β \(beta.shape) where \(scalar) belongs")
    } else {
      precondition(
        optional.pick(5, i)?.shape == vector && optional.pick(6, i)?.shape == vector,
        "delta_rule: a and b must be \(vector)")
    }
    let kept = [x.batch, x.heads, stateCount(x.tokens), x.keySize, x.valueSize]
    return [i[2], TensorSpec(x.state)]
      + (keepsChunks ? [TensorSpec(Shape(kept)), TensorSpec(i[2].shape)] : [])
  }

  func decay(_ a: [[Double]], _ x: HeadExtents, _ b: Int, _ t: Int, _ h: Int) -> [Double] {
    guard let g = optional.pick(3, a) else { return [Double](repeating: 1, count: x.keySize) }
    if g.count == x.batch * x.tokens * x.heads && x.keySize != 1 {
      return [Double](repeating: Functions.exp(g[x.value(b, t, h, 1)]), count: x.keySize)
    }
    let start = x.value(b, t, h, x.keySize)
    return g[start..<start + x.keySize].map(Functions.exp)
  }

  func isReset(_ a: [[Double]], _ x: HeadExtents, _ b: Int, _ t: Int) -> Bool {
    (optional.pick(8, a)?[b * x.tokens + t] ?? 0) != 0
  }

  func start(_ a: [[Double]], _ x: HeadExtents, _ b: Int, _ h: Int) -> HostMatrix {
    HostMatrix(
      x.keySize, x.valueSize, optional.pick(7, a),
      at: (b * x.heads + h) * x.keySize * x.valueSize)
  }

  /// Moves the state over a token; returns the decay and the vector that the low-rank term wrote:
  /// v − (DS)ᵀk before β, or Sᵀa.
  func advance(
    _ a: [[Double]], _ x: HeadExtents, _ b: Int, _ t: Int, _ h: Int, _ S: inout HostMatrix
  ) -> (decay: [Double], read: [Double]) {
    let (K, V) = (x.keySize, x.valueSize)
    let (qk, vy) = (x.key(b, t, h), x.value(b, t, h, V))
    let k = a[1][qk..<qk + K]
    let v = a[2][vy..<vy + V]
    let d = decay(a, x, b, t, h)
    if let beta = optional.pick(4, a) {
      S.scaleRows(d)
      let error = zip(v, S.transposedTimes(k)).map { $0 - $1 }
      S.addOuter(k, error[...], beta[x.value(b, t, h, 1)])
      return (d, error)
    }
    let at = x.value(b, t, h, K)
    let read = S.transposedTimes(optional.pick(5, a)![at..<at + K])
    S.scaleRows(d)
    S.addOuter(optional.pick(6, a)![at..<at + K], read[...])
    S.addOuter(k, v)
    return (d, read)
  }

  public func reference(_ a: inout HostArguments) {
    let x = extents(a.inputSpecs)
    let (K, V) = (x.keySize, x.valueSize)
    for b in 0..<x.batch {
      for h in 0..<x.heads {
        var S = start(a.inputs, x, b, h)
        for t in 0..<x.tokens {
          if isReset(a.inputs, x, b, t) { S = HostMatrix(K, V) }
          _ = advance(a.inputs, x, b, t, h, &S)
          let qk = x.key(b, t, h)
          let y = S.transposedTimes(a.inputs[0][qk..<qk + K]).map { scale * $0 }
          accumulate(y, into: &a.outputs[0], at: x.value(b, t, h, V))
        }
        accumulate(S.e, into: &a.outputs[1], at: (b * x.heads + h) * K * V)
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = DeltaRuleBackward(
      forward: self, inputCount: c.inputs.count, hasState: c.cotangents[1] != nil)
    let kept: [Tensor?] = keepsChunks ? [c.outputs[2], c.outputs[3]] : [nil, nil]
    let g = applyPresent(
      op, c.inputs.map { $0 } + kept + [c.cotangent(0), c.cotangents[1]])
    return optional.gather { i in i == 8 ? nil : g[optional[i] ?? 0] }
  }
  public var saved: SavedValues {
    SavedValues(keepsInput: { _ in true }, keepsOutput: { $0 >= 2 })
  }
}

/// Inputs: the forward's, what it kept where it kept it, dy, then dS of the final state where
/// present. Outputs: gradients of the forward's inputs but reset.
public struct DeltaRuleBackward: Op {
  public static let name = "delta_rule_backward"
  public let forward: DeltaRuleForward
  public let inputCount: Int
  public let hasState: Bool

  /// Positions after the forward's inputs: kept states, kept writes, dy, dS.
  public var extra: OptionalInputs {
    OptionalInputs([forward.keepsChunks, forward.keepsChunks, true, hasState])
  }
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
    guard let dy = extra.pick(2, rest) else { return }
    for b in 0..<x.batch {
      for h in 0..<x.heads {
        var S = forward.start(inputs, x, b, h)
        var before: [HostMatrix] = []
        for t in 0..<x.tokens {
          if forward.isReset(inputs, x, b, t) { S = HostMatrix(K, V) }
          before.append(S)
          _ = forward.advance(inputs, x, b, t, h, &S)
        }
        let head = b * x.heads + h
        var dS = HostMatrix(K, V, extra.pick(3, rest), at: head * K * V)
        for t in stride(from: x.tokens - 1, through: 0, by: -1) {
          var after = before[t]
          let step = forward.advance(inputs, x, b, t, h, &after)
          let (qk, vy) = (x.key(b, t, h), x.value(b, t, h, V))
          let (q, g) = (inputs[0][qk..<qk + K], dy[vy..<vy + V])
          dS.addOuter(q, g, forward.scale)
          accumulate(after.times(g).map { forward.scale * $0 }, into: &a.outputs[0], at: qk)
          dS =
            forward.optional.has(4)
            ? beta(&a, inputs, x, b, t, h, before[t], step, dS)
            : general(&a, inputs, x, b, t, h, before[t], step, dS)
          if forward.isReset(inputs, x, b, t) { dS = HostMatrix(K, V) }
        }
        if let place = place(7) { accumulate(dS.e, into: &a.outputs[place], at: head * K * V) }
      }
    }
  }

  /// One token of the delta rule; returns the cotangent of the state before it.
  private func beta(
    _ a: inout HostArguments, _ inputs: [[Double]], _ x: HeadExtents, _ b: Int, _ t: Int, _ h: Int,
    _ S: HostMatrix, _ step: (decay: [Double], read: [Double]), _ dS: HostMatrix
  ) -> HostMatrix {
    let (K, V) = (x.keySize, x.valueSize)
    let (qk, vy) = (x.key(b, t, h), x.value(b, t, h, V))
    let k = inputs[1][qk..<qk + K]
    let at = x.value(b, t, h, 1)
    let strength = inputs[forward.optional[4] ?? 0][at]
    var decayed = S
    decayed.scaleRows(step.decay)
    let written = step.read.map { strength * $0 }
    var dk = dS.times(written[...])
    let dn = dS.transposedTimes(k)
    if let place = place(4) {
      a.outputs[place][at] += zip(dn, step.read).reduce(0) { $0 + $1.0 * $1.1 }
    }
    let de = dn.map { strength * $0 }
    accumulate(de, into: &a.outputs[2], at: vy)
    for (i, g) in decayed.times(de[...]).enumerated() { dk[i] -= g }
    accumulate(dk, into: &a.outputs[1], at: qk)
    var before = dS
    before.addOuter(k, de[...], -1)
    addDecay(&a, x, b, t, h, before.rowProducts(S), step.decay)
    before.scaleRows(step.decay)
    return before
  }

  /// One token of the generalised rule.
  private func general(
    _ a: inout HostArguments, _ inputs: [[Double]], _ x: HeadExtents, _ b: Int, _ t: Int, _ h: Int,
    _ S: HostMatrix, _ step: (decay: [Double], read: [Double]), _ dS: HostMatrix
  ) -> HostMatrix {
    let (K, V) = (x.keySize, x.valueSize)
    let (qk, vy, at) = (x.key(b, t, h), x.value(b, t, h, V), x.value(b, t, h, K))
    let k = inputs[1][qk..<qk + K]
    let erase = inputs[forward.optional[5] ?? 0][at..<at + K]
    let write = inputs[forward.optional[6] ?? 0][at..<at + K]
    accumulate(dS.times(inputs[2][vy..<vy + V]), into: &a.outputs[1], at: qk)
    accumulate(dS.transposedTimes(k), into: &a.outputs[2], at: vy)
    let dz = dS.transposedTimes(write)
    if let place = place(5) { accumulate(S.times(dz[...]), into: &a.outputs[place], at: at) }
    if let place = place(6) {
      accumulate(dS.times(step.read[...]), into: &a.outputs[place], at: at)
    }
    addDecay(&a, x, b, t, h, dS.rowProducts(S), step.decay)
    var before = dS
    before.scaleRows(step.decay)
    before.addOuter(erase, dz[...])
    return before
  }

  private func addDecay(
    _ a: inout HostArguments, _ x: HeadExtents, _ b: Int, _ t: Int, _ h: Int, _ slopes: [Double],
    _ decay: [Double]
  ) {
    guard let place = place(3) else { return }
    let scaled = zip(slopes, decay).map { $0 * $1 }
    if a.outputSpecs[place].shape.rank == 3 {
      a.outputs[place][x.value(b, t, h, 1)] += scaled.reduce(0, +)
    } else {
      accumulate(scaled, into: &a.outputs[place], at: x.value(b, t, h, x.keySize))
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}

extension DeltaRuleForward {
  public static let cases: [OpCase] = {
    let (B, T, H, K, V) = (2, 37, 2, 12, 20)
    func make(_ label: String, gate: Shape?, general: Bool = false, keyHeads: Int = 2) -> [OpCase] {
      [
        (SequenceForm.recurrent, true), (.chunkwise(size: 16), true), (.parallel, true),
        (.chunkwise, false),
      ].map { form, full in
        let key: Shape = [B, T, H, K]
        let inputs: [TestInput?] = [
          TestInput([B, T, keyHeads, K]), TestInput([B, T, keyHeads, K], .normal(scale: 0.3)),
          TestInput([B, T, H, V]), gate.map { TestInput($0, .uniform(-2, 0)) },
          general ? nil : TestInput([B, T, H], .uniform(0, 1.5)),
          general ? TestInput(key, .normal(scale: 0.2)) : nil,
          general ? TestInput(key, .normal(scale: 0.2)) : nil,
          full ? TestInput([B, H, K, V]) : nil, full ? testResets(batch: B, tokens: T) : nil,
        ]
        return OpCase(
          "\(label) \(form)\(full ? " full" : "")",
          DeltaRuleForward(
            form: form, scale: 0.3, keepsChunks: full,
            optional: OptionalInputs(inputs.map { $0 != nil })), inputs.compactMap { $0 },
          tolerance: 2e-5, gradientTolerance: 2e-4, differentiableOutputs: 2,
          comparedOutputs: 2)
      }
    }
    return make("no gate", gate: nil, keyHeads: 1) + make("scalar", gate: [B, T, H])
      + make("vector", gate: [B, T, H, K])
      + make("general", gate: [B, T, H, K], general: true) + halfCases + stepCases
  }()

  /// Values in bfloat16, whose products devices may form in it: two chunks and a bit; and calls that nothing is
  /// recorded of, from one chunk to nine.
  private static let halfCases: [OpCase] = {
    func make(
      _ label: String, channels: Bool? = nil, rounded: Bool = false, general: Bool = false,
      keyHeads: Int = 2, K: Int = 16, V: Int = 24, batch B: Int = 1, tokens T: Int = 70,
      isRecorded: Bool = true
    ) -> OpCase {
      let H = 2
      func input(_ shape: Shape, _ values: TestInput.Values = .normal()) -> TestInput {
        TestInput(shape, values, differentiable: isRecorded)
      }
      func half(_ shape: Shape, scale: Double = 1) -> TestInput {
        input(shape, .normal(scale: scale)).stored(as: .bfloat16)
      }
      let scalar: Shape = [B, T, H]
      let vector: Shape = [B, T, H, K]
      // |k|² is 1 about: what a rule takes back of a state is no more than was there.
      let unit = 1 / Double(K).squareRoot()
      let gate = channels.map { input($0 ? vector : scalar, .uniform(-0.5, 0)) }
      let inputs: [TestInput?] = [
        half([B, T, keyHeads, K]), half([B, T, keyHeads, K], scale: unit), half([B, T, H, V]),
        rounded ? gate?.stored(as: .bfloat16) : gate,
        general ? nil : input(scalar, .uniform(0, 1)),
        general ? half(vector, scale: 0.6 * unit) : nil,
        general ? half(vector, scale: 0.6 * unit) : nil,
        input([B, H, K, V]), testResets(batch: B, tokens: T),
      ]
      return OpCase(
        "bfloat16 \(isRecorded ? "" : "alone, ")\(label)"
          + (isRecorded ? "" : " \(K) by \(V), \(T) tokens"),
        DeltaRuleForward(
          form: .chunkwise, scale: 0.3, keepsChunks: isRecorded,
          optional: OptionalInputs(inputs.map { $0 != nil })), inputs.compactMap { $0 },
        tolerance: 1e-2, gradientTolerance: 2e-2, differenceTolerance: 1e-2,
        differentiableOutputs: 2, comparedOutputs: 2)
    }
    return [
      make("no gate"), make("scalar", channels: false, keyHeads: 1),
      make("vector", channels: true, rounded: true),
      make("general", channels: true, general: true),
      make("no gate", K: 128, V: 128, tokens: 140, isRecorded: false),
      make("no gate", keyHeads: 1, K: 64, V: 64, tokens: 530, isRecorded: false),
      make(
        "scalar", channels: false, keyHeads: 1, K: 40, V: 24, batch: 3, tokens: 64,
        isRecorded: false),
      make("scalar", channels: false, K: 96, V: 80, tokens: 330, isRecorded: false),
      make("vector", channels: true, rounded: true, K: 64, V: 128, tokens: 200, isRecorded: false),
      make("vector", channels: true, K: 128, V: 72, batch: 2, tokens: 6, isRecorded: false),
      make("general", channels: true, general: true, K: 64, V: 64, tokens: 200, isRecorded: false),
      make(
        "general", channels: true, general: true, K: 128, V: 128, tokens: 150, isRecorded: false),
    ]
  }()
}
