import GyreTensors

/// `MesaForward` with the roundings of flash-linear-attention's kernel, for `--compat fla_mesa_net`.
///
/// Tokens go by chunks of 64 from the first of the call. In a chunk, with cᵢ the sum of its decays up to
/// token i, e = exp cᵢ and mᵢⱼ = exp(cᵢ − cⱼ) βⱼ for j ≤ i, ⌊·⌋ float16 and ⌊·⌋' bfloat16:
///
///     A p = Σⱼ ⌊mᵢⱼ (⌊p⌋·kⱼ)⌋ kⱼ + (e p) H + λ ∘ p    y = Σⱼ mᵢⱼ (⌊x⌋·kⱼ) vⱼ + ⌊e x⌋' ⌊G⌋'
///     H ← e H + Σⱼ ⌊kⱼ exp(c − cⱼ) βⱼ⌋ kⱼᵀ             G ← e G + Σⱼ ⌊kⱼ exp(c − cⱼ) βⱼ⌋ vⱼᵀ
///
/// Sums are float32. q and k come in rounded. Documents within a row are not known to that kernel: a
/// call with resets does not ask for this.
struct HalfMesa {
  static let chunk = 64

  let op: MesaForward
  let x: HeadExtents

  func run(_ a: inout HostArguments) {
    for b in 0..<x.batch {
      for h in 0..<x.heads { run(&a, b, h) }
    }
  }

  private func run(_ a: inout HostArguments, _ b: Int, _ h: Int) {
    let (K, V, head) = (x.keySize, x.valueSize, b * x.heads + h)
    func memory(_ input: Int, _ width: Int) -> [[Float]] {
      let start = op.optional.pick(input, a.inputs)
      return (0..<K).map { i in
        (0..<width).map { j in start.map { Float($0[(head * K + i) * width + j]) } ?? 0 }
      }
    }
    func vector(_ input: Int, _ from: Int, _ count: Int) -> [Float] {
      a.inputs[input][from..<from + count].map(Float.init)
    }
    var (H, G) = (memory(6, K), memory(7, V))
    let ridge = vector(5, h * K, K)
    for first in stride(from: 0, to: x.tokens, by: Self.chunk) {
      let tokens = first..<min(first + Self.chunk, x.tokens)
      let keys = tokens.map { vector(1, x.key(b, $0, h), K) }
      let values = tokens.map { vector(2, x.value(b, $0, h, V), V) }
      let beta = tokens.map { Float(a.inputs[4][x.value(b, $0, h, 1)]) }
      var decays: [Float] = []
      for t in tokens {
        decays.append((decays.last ?? 0) + Float(a.inputs[3][x.value(b, t, h, 1)]))
      }
      let stored = G.map { $0.map(Self.bfloat16) }
      for (i, t) in tokens.enumerated() {
        let strengths = (0...i).map { Self.exp(decays[i] - decays[$0]) * beta[$0] }
        let reach = Self.exp(decays[i])
        func scores(_ p: [Float]) -> [Float] {
          let p = p.map(Self.half)
          return (0...i).map { Self.dot(p, keys[$0]) * strengths[$0] }
        }
        let key = x.key(b, t, h)
        let found = op.solve(vector(0, key, K)) { p in
          var image = zip(ridge, p).map { $0 * $1 }
          for (row, p) in zip(H, p) { Self.add(row, p * reach, to: &image) }
          for (k, score) in zip(keys, scores(p)) { Self.add(k, Self.half(score), to: &image) }
          return image
        }
        var y = [Float](repeating: 0, count: V)
        for (v, score) in zip(values, scores(found)) { Self.add(v, score, to: &y) }
        for (row, p) in zip(stored, found) { Self.add(row, Self.bfloat16(p * reach), to: &y) }
        accumulate(y.map(Double.init), into: &a.outputs[0], at: x.value(b, t, h, V))
        accumulate(found.map { Double(Self.half($0)) }, into: &a.outputs[1], at: key)
      }
      let last = decays[decays.count - 1]
      let (kept, fades) = (Self.exp(last), decays.map { Self.exp(last - $0) })
      for i in 0..<K {
        for j in 0..<K { H[i][j] *= kept }
        for j in 0..<V { G[i][j] *= kept }
        for n in keys.indices {
          let k = Self.half(keys[n][i] * fades[n] * beta[n])
          Self.add(keys[n], k, to: &H[i])
          Self.add(values[n], k, to: &G[i])
        }
      }
    }
    accumulate(H.joined().map(Double.init), into: &a.outputs[2], at: head * K * K)
    accumulate(G.joined().map(Double.init), into: &a.outputs[3], at: head * K * V)
  }

  private static func exp(_ x: Float) -> Float { Float(Functions.exp(Double(x))) }
  private static func half(_ x: Float) -> Float { Half.float(Half.bits(x)) }
  private static func bfloat16(_ x: Float) -> Float { BFloat16.float(BFloat16.bits(x)) }
  private static func dot(_ a: [Float], _ b: [Float]) -> Float {
    zip(a, b).reduce(0) { $0 + $1.0 * $1.1 }
  }
  private static func add(_ x: [Float], _ factor: Float, to y: inout [Float]) {
    for i in y.indices { y[i] += factor * x[i] }
  }
}
