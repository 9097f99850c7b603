import GyreTensors

/// Linear attention whose values are scaled token by token, and that adds them to what it reads, as
/// Mamba-2 does:
///
///     Sₜ = Dₜ Sₜ₋₁ + kₜ (sₜ vₜ)ᵀ    yₜ = scale · Sₜᵀ qₜ + d ∘ vₜ
///
/// Inputs: those of `LinearAttentionForward`, then s `[B, T, H]` and d `[H]` or `[H V]`, all float32.
/// Outputs: as there, without a normaliser. Spares writing s v and d ∘ v and reading them again.
public struct ScaledLinearAttention: Op, SavesPasses {
  public static let name = "scaled_linear_attention"
  public let attention: LinearAttentionForward

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let inner = Array(i.dropLast(2))
    let x = attention.extents(inner)
    let (s, d) = (i[i.count - 2].shape, i[i.count - 1].shape.elementCount)
    precondition(
      !attention.normalizer.hasVector && s == [x.batch, x.tokens, x.heads]
        && (d == x.heads || d == x.heads * x.valueSize),
      "scaled_linear_attention: values \(i[2].shape), scales \(s), \(d) factors")
    return attention.infer(inner)
  }

  /// s v, of a head's number `e / V`.
  static func scaled(_ v: [Double], _ s: [Double], _ size: Int) -> [Double] {
    v.indices.map { v[$0] * s[$0 / size] }
  }
  /// Where d's factor of element `e` of the values lies.
  static func place(_ e: Int, _ x: HeadExtents, _ count: Int) -> Int {
    count == x.heads ? e / x.valueSize % x.heads : e % (x.heads * x.valueSize)
  }

  public func reference(_ a: inout HostArguments) {
    let x = attention.extents(a.inputSpecs)
    let (v, s, d) = (a.inputs[2], a.inputs[a.inputs.count - 2], a.inputs[a.inputs.count - 1])
    var inputs = Array(a.inputs.dropLast(2))
    inputs[2] = Self.scaled(v, s, x.valueSize)
    var inner = HostArguments(
      inputs: inputs, inputSpecs: Array(a.inputSpecs.dropLast(2)), outputSpecs: a.outputSpecs)
    attention.reference(&inner)
    a.outputs = inner.outputs
    for e in v.indices { a.outputs[0][e] += d[Self.place(e, x, d.count)] * v[e] }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let inner = LinearAttentionBackward(
      forward: attention, inputCount: c.inputs.count - 2, hasState: c.cotangents[1] != nil,
      hasNorm: false)
    let g = applyPresent(
      Backward(attention: inner), c.inputs.map { $0 } + [c.cotangent(0), c.cotangents[1]])
    var next = 0
    let gradients = attention.optional.gather { i -> Tensor? in
      if i >= 8 { return nil }
      defer { next += 1 }
      return g[next]
    }
    return gradients + [g[next], g[next + 1]]
  }
  public var saved: SavedValues { .inputs }

  /// Inputs: the forward's, dy, then dS of the final state where present. Outputs: gradients of the
  /// attention's inputs up to z₀, of s and of d.
  public struct Backward: Op {
    public static let name = "scaled_linear_attention_backward"
    public let attention: LinearAttentionBackward
    /// Inputs of the forward.
    public var first: Int { attention.inputCount + 2 }

    public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
      attention.infer(i) + [i[first - 2], i[first - 1]]
    }

    public func reference(_ a: inout HostArguments) {
      let x = attention.forward.extents(a.inputSpecs)
      let (v, s, d, dy) = (a.inputs[2], a.inputs[first - 2], a.inputs[first - 1], a.inputs[first])
      var inputs = Array(a.inputs[..<(first - 2)])
      inputs[2] = ScaledLinearAttention.scaled(v, s, x.valueSize)
      // y, which only normalisers look at, in dy's place.
      let specs =
        a.inputSpecs[..<(first - 2)] + [a.inputSpecs[first]] + a.inputSpecs[first...]
      var inner = HostArguments(
        inputs: inputs + [dy] + a.inputs[first...], inputSpecs: Array(specs),
        outputSpecs: Array(a.outputSpecs.dropLast(2)))
      attention.reference(&inner)
      let count = inner.outputs.count
      for (i, gradient) in inner.outputs.enumerated() { a.outputs[i] = gradient }
      for e in v.indices {
        let (row, factor) = (e / x.valueSize, ScaledLinearAttention.place(e, x, d.count))
        a.outputs[2][e] = inner.outputs[2][e] * s[row] + dy[e] * d[factor]
        a.outputs[count][row] += inner.outputs[2][e] * v[e]
        a.outputs[count + 1][factor] += dy[e] * v[e]
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  public static let cases: [OpCase] = {
    func make(
      _ decay: DecayKind, heads H: Int, keyHeads: Int, K: Int, V: Int, perChannel: Bool,
      full: Bool, _ precision: ComputePrecision, stored: DType = .float32
    ) -> OpCase {
      let (B, T) = (2, 70)
      let gate: TestInput? =
        switch decay {
        case .none: nil
        case .constant: TestInput([H], .uniform(-0.5, 0))
        case .scalar: TestInput([B, T, H], .uniform(-0.5, 0))
        case .vector: TestInput([B, T, H, K], .uniform(-0.5, 0))
        }
      let inputs: [TestInput?] = [
        TestInput([B, T, keyHeads, K]).stored(as: stored),
        TestInput([B, T, keyHeads, K]).stored(as: stored),
        TestInput([B, T, H, V]).stored(as: stored),
        gate, nil, nil, full ? TestInput([B, H, K, V]) : nil, nil, nil,
        full ? testResets(batch: B, tokens: T) : nil,
      ]
      let isHalf = precision == .bfloat16
      return OpCase(
        "\(H) heads of \(K) by \(V), \(decay) \(perChannel ? "channels " : "")\(precision)"
          + (stored == .float32 ? "" : " arrays"),
        ScaledLinearAttention(
          attention: LinearAttentionForward(
            form: .chunkwise, decay: decay, normalizer: .none, scale: 0.3,
            optional: OptionalInputs(inputs.map { $0 != nil }), precision: precision)),
        inputs.compactMap { $0 }
          + [TestInput([B, T, H], .uniform(0.1, 1)), TestInput(perChannel ? [H * V] : [H])],
        tolerance: isHalf ? 1e-2 : 2e-5, gradientTolerance: isHalf ? 2e-2 : 2e-4,
        differenceTolerance: isHalf ? 1e-2 : 2e-4)
    }
    return [ComputePrecision.float32, .bfloat16].flatMap {
      [
        make(.scalar, heads: 2, keyHeads: 1, K: 16, V: 24, perChannel: false, full: true, $0),
        make(.scalar, heads: 4, keyHeads: 2, K: 40, V: 72, perChannel: true, full: false, $0),
        make(.constant, heads: 2, keyHeads: 2, K: 16, V: 16, perChannel: false, full: true, $0),
        make(.vector, heads: 2, keyHeads: 1, K: 16, V: 16, perChannel: false, full: false, $0),
      ]
    } + [
      make(
        .scalar, heads: 4, keyHeads: 1, K: 16, V: 24, perChannel: false, full: true, .bfloat16,
        stored: .bfloat16),
      make(
        .scalar, heads: 4, keyHeads: 2, K: 40, V: 72, perChannel: true, full: false, .bfloat16,
        stored: .bfloat16),
      make(
        .constant, heads: 2, keyHeads: 2, K: 64, V: 64, perChannel: false, full: true, .bfloat16,
        stored: .bfloat16),
      make(
        .vector, heads: 2, keyHeads: 1, K: 16, V: 16, perChannel: false, full: false, .bfloat16,
        stored: .bfloat16),
    ]
  }()
}
