import GyreTensors

/// Sizes of an attention call: the first `keys` − `queries` keys are a cache.
public struct AttentionExtents: Sendable, Hashable {
  public var batch, queries, keys, heads, keyHeads, keySize, valueSize: Int
  /// Tokens before the first query.
  public var past: Int { keys - queries }
}

/// Possible inputs: q, k, v, log forget gates, document starts; the last four over all keys.
/// Outputs: y, and with `keepsSums` the logarithm of each softmax's sum `[B, T, H]`.
public struct AttentionForward: Op {
  public static let name = "softmax_attention"
  public let form: SequenceForm
  public let window: Int?
  public let scale: Double
  public let keepsSums: Bool
  public let optional: OptionalInputs
  /// Of products; sums are float32.
  public var precision: ComputePrecision = .float32

  public func extents(_ i: [TensorSpec]) -> AttentionExtents {
    let (q, k, v) = (i[0].shape, i[1].shape, i[2].shape)
    precondition(
      q.rank == 4 && k.rank == 4 && v.rank == 4 && q[0] == k[0] && k[0] == v[0] && k[1] == v[1]
        && q[1] <= k[1] && k[2] == v[2] && k[2] > 0 && q[2] % k[2] == 0 && q[3] == k[3],
      "softmax_attention: q \(q), k \(k), v \(v)")
    return AttentionExtents(
      batch: q[0], queries: q[1], keys: k[1], heads: q[2], keyHeads: k[2], keySize: q[3],
      valueSize: v[3])
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let x = extents(i)
    let gates = optional.pick(3, i)?.shape
    precondition(
      gates == nil || gates == [x.batch, x.keys, x.heads], "softmax_attention: gates \(gates ?? [])"
    )
    let starts = optional.pick(4, i)?.shape
    precondition(
      starts == nil || starts == [x.batch, x.keys], "softmax_attention: starts \(starts ?? [])")
    return [TensorSpec([x.batch, x.queries, x.heads, x.valueSize], i[0].dtype)]
      + (keepsSums ? [TensorSpec([x.batch, x.queries, x.heads])] : [])
  }

  /// One query: the first key it sees, its probabilities from there on, and log Σ exp.
  struct Row {
    var first: Int
    var weights: [Double]
    var sum: Double
  }

  func row(_ a: [[Double]], _ x: AttentionExtents, _ b: Int, _ i: Int, _ h: Int) -> Row {
    let place = x.past + i
    var first = max(0, place - (window ?? place + 1) + 1)
    if let starts = optional.pick(4, a) {
      for j in stride(from: place, to: first, by: -1) where starts[b * x.keys + j] != 0 {
        first = j
        break
      }
    }
    let q = ((b * x.queries + i) * x.heads + h) * x.keySize
    var scores = [Double](repeating: 0, count: place - first + 1)
    var forgotten = 0.0
    for j in stride(from: place, through: first, by: -1) {
      let k = key(x, b, j, h, x.keySize)
      var dot = 0.0
      for l in 0..<x.keySize { dot += a[0][q + l] * a[1][k + l] }
      scores[j - first] = scale * dot + forgotten
      forgotten += optional.pick(3, a)?[(b * x.keys + j) * x.heads + h] ?? 0
    }
    let top = scores.max() ?? 0
    let total = scores.reduce(0) { $0 + Functions.exp($1 - top) }
    return Row(
      first: first, weights: scores.map { Functions.exp($0 - top) / total },
      sum: top + Functions.log(total))
  }

  func key(_ x: AttentionExtents, _ b: Int, _ j: Int, _ h: Int, _ size: Int) -> Int {
    ((b * x.keys + j) * x.keyHeads + h / (x.heads / x.keyHeads)) * size
  }

  public func reference(_ a: inout HostArguments) {
    let x = extents(a.inputSpecs)
    for b in 0..<x.batch {
      for i in 0..<x.queries {
        for h in 0..<x.heads {
          let r = row(a.inputs, x, b, i, h)
          let at = (b * x.queries + i) * x.heads + h
          for (n, p) in r.weights.enumerated() {
            let v = key(x, b, r.first + n, h, x.valueSize)
            for l in 0..<x.valueSize {
              a.outputs[0][at * x.valueSize + l] += p * a.inputs[2][v + l]
            }
          }
          if keepsSums { a.outputs[1][at] = r.sum }
        }
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = AttentionBackward(forward: self, inputCount: c.inputs.count)
    let g = apply(op, c.inputs + [c.outputs[0], c.outputs[1], c.cotangent(0)])
    return optional.gather { i in i < 4 ? optional[i].map { g[$0] } : nil }
  }
  public var saved: SavedValues { .all }

  public static let cases: [OpCase] = {
    func make(
      _ label: String, _ form: SequenceForm, keys: Int = 37, window: Int? = nil, keyHeads: Int = 4,
      gates: Bool = false, starts: Bool = false, queries: Int = 37, keepsSums: Bool = true
    ) -> OpCase {
      let (B, H, K, V) = (2, 4, 12, 20)
      let inputs: [TestInput?] = [
        TestInput([B, queries, H, K], differentiable: keepsSums),
        TestInput([B, keys, keyHeads, K], differentiable: keepsSums),
        TestInput([B, keys, keyHeads, V], differentiable: keepsSums),
        gates ? TestInput([B, keys, H], .uniform(-2, 0)) : nil,
        starts ? testResets(batch: B, tokens: keys) : nil,
      ]
      return OpCase(
        "\(label) \(form)",
        AttentionForward(
          form: form, window: window, scale: 0.3, keepsSums: keepsSums,
          optional: OptionalInputs(inputs.map { $0 != nil })), inputs.compactMap { $0 },
        tolerance: 2e-5, gradientTolerance: 2e-4, differentiableOutputs: 1)
    }
    return [SequenceForm.recurrent, .chunkwise(size: 16), .parallel].flatMap { form in
      [
        make("causal", form), make("grouped", form, keyHeads: 2),
        make("window", form, window: 9, starts: true),
        make("cache", form, keys: 50, gates: true), make("gates", form, gates: true, starts: true),
      ]
    } + [
      make("one query", .recurrent, keys: 29, queries: 1),
      make("decoding", .recurrent, keys: 29, queries: 1, keepsSums: false),
      make("decoding grouped", .recurrent, keys: 150, keyHeads: 2, queries: 1, keepsSums: false),
      make(
        "decoding window", .recurrent, keys: 64, window: 64, keyHeads: 1, queries: 1,
        keepsSums: false),
      make(
        "decoding narrow window", .recurrent, keys: 64, window: 9, queries: 1, keepsSums: false),
    ] + halfCases
  }()

  /// Values in bfloat16, whose products devices may form in it, and float32 ones whose products are asked
  /// for in it.
  private static let halfCases: [OpCase] = {
    func make(
      _ label: String, queries: Int, keys: Int, window: Int? = nil, keyHeads: Int, size: Int,
      gates: Bool = false, starts: Bool = false, stored: Bool = true
    ) -> OpCase {
      let (B, H) = (1, 4)
      let type: DType = stored ? .bfloat16 : .float32
      let inputs: [TestInput?] = [
        TestInput([B, queries, H, size]).stored(as: type),
        TestInput([B, keys, keyHeads, size]).stored(as: type),
        TestInput([B, keys, keyHeads, size + 8]).stored(as: type),
        gates ? TestInput([B, keys, H], .uniform(-0.5, 0)) : nil,
        starts ? testResets(batch: B, tokens: keys) : nil,
      ]
      return OpCase(
        "bfloat16 \(stored ? "" : "products ")\(label)",
        AttentionForward(
          form: .chunkwise, window: window, scale: 0.2, keepsSums: true,
          optional: OptionalInputs(inputs.map { $0 != nil }), precision: .bfloat16),
        inputs.compactMap { $0 },
        tolerance: 1e-2, gradientTolerance: 2e-2, differenceTolerance: 1e-2,
        differentiableOutputs: 1)
    }
    return [
      make("causal", queries: 100, keys: 100, keyHeads: 4, size: 24),
      make("window", queries: 100, keys: 100, window: 33, keyHeads: 2, size: 20, starts: true),
      make("cache, gates", queries: 70, keys: 140, keyHeads: 1, size: 72, gates: true),
      make("tiles", queries: 150, keys: 210, window: 70, keyHeads: 2, size: 40, starts: true),
      make("large tiles", queries: 140, keys: 140, keyHeads: 1, size: 120, starts: true),
      make("causal", queries: 100, keys: 100, keyHeads: 4, size: 24, stored: false),
      make(
        "tiles", queries: 150, keys: 210, window: 70, keyHeads: 2, size: 40, starts: true,
        stored: false),
      make(
        "large tiles", queries: 140, keys: 170, keyHeads: 2, size: 120, starts: true,
        stored: false),
      make("gates", queries: 70, keys: 140, keyHeads: 1, size: 72, gates: true, stored: false),
    ]
  }()
}

/// Inputs: the forward's, y, the softmax sums, dy. Outputs: gradients of the forward's inputs but
/// the document starts.
///
///     dsᵢⱼ = pᵢⱼ (dyᵢ·vⱼ − dyᵢ·yᵢ)    dgₗ = Σ over i ≥ l > j of dsᵢⱼ
public struct AttentionBackward: Op {
  public static let name = "softmax_attention_backward"
  public let forward: AttentionForward
  public let inputCount: Int

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    (0..<4).compactMap { forward.optional.pick($0, i) }
  }

  public func reference(_ a: inout HostArguments) {
    let x = forward.extents(a.inputSpecs)
    let inputs = Array(a.inputs[..<inputCount])
    let dy = a.inputs[inputCount + 2]
    let (K, V) = (x.keySize, x.valueSize)
    for b in 0..<x.batch {
      for i in 0..<x.queries {
        for h in 0..<x.heads {
          let r = forward.row(inputs, x, b, i, h)
          let at = (b * x.queries + i) * x.heads + h
          var slopes = [Double](repeating: 0, count: r.weights.count)
          var mean = 0.0
          for (n, p) in r.weights.enumerated() {
            let v = forward.key(x, b, r.first + n, h, V)
            for l in 0..<V {
              slopes[n] += dy[at * V + l] * inputs[2][v + l]
              a.outputs[2][v + l] += p * dy[at * V + l]
            }
            mean += p * slopes[n]
          }
          var passed = 0.0
          for (n, p) in r.weights.enumerated() {
            let j = r.first + n
            if let place = forward.optional[3] {
              a.outputs[place][(b * x.keys + j) * x.heads + h] += passed
            }
            let ds = p * (slopes[n] - mean)
            passed += ds
            let k = forward.key(x, b, j, h, K)
            for l in 0..<K {
              a.outputs[0][at * K + l] += forward.scale * ds * inputs[1][k + l]
              a.outputs[1][k + l] += forward.scale * ds * inputs[0][at * K + l]
            }
          }
        }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
