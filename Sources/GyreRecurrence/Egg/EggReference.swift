import GyreTensors

/// EGG in plain loops over whole numbers.
struct EggReference {
  let shape: EggShape
  let noise: EggNoise
  let weights: [Int]
  /// The numbers of a pair, where they are stored.
  let stored: [Double]?
  private let leaves: [EggShape.Leaf]
  private let byName: [String: Int]

  init(_ shape: EggShape, _ noise: EggNoise, weights: [Double], stored: [Double]?) {
    self.shape = shape
    self.noise = noise
    self.weights = weights.map { Int($0) }
    self.stored = stored
    leaves = shape.leaves
    byName = Dictionary(uniqueKeysWithValues: leaves.enumerated().map { ($1.name, $0) })
  }

  static func clip(_ x: Int) -> Int { min(max(x, -127), 127) }
  /// Rounds to minus infinity.
  static func divide(_ n: Int, _ d: Int) -> Int { n >= 0 ? n / d : -((d - 1 - n) / d) }
  static func root(_ n: Int) -> Int {
    var r = 0
    while (r + 1) * (r + 1) <= n { r += 1 }
    return r
  }

  /// B and A of a matrix, or the 2 d numbers of a vector and nothing.
  func numbers(pair: Int, leaf index: Int) -> (b: [Int], a: [Int]) {
    let leaf = leaves[index]
    let (n, m) = leaf.isMatrix ? (leaf.shape[1], leaf.shape[0]) : (2 * leaf.shape[0], 0)
    switch noise.source {
    case .none: return ([], [])
    case .stored:
      let row = pair * shape.noiseCount + leaf.noise
      let all = (stored ?? [])[row..<row + n + m].map { Int($0) }
      return (Array(all[..<n]), Array(all[n...]))
    case .generated(let seed, let epoch, let firstPair):
      func some(_ first: UInt32, _ count: Int) -> [Int] {
        EggNoise.generated(
          seed: seed, epoch: epoch, pair: firstPair &+ UInt32(pair), leaf: index, first: first,
          count: count)
      }
      return (some(0, n), some(1 << 31, m))
    }
  }

  /// One member: its sign and noise.
  struct Member {
    var sign: Int
    var numbers: [(b: [Int], a: [Int])]
  }

  func member(_ i: Int) -> Member? {
    if noise.source == .none { return nil }
    return Member(
      sign: i % 2 == 0 ? 1 : -1, numbers: leaves.indices.map { numbers(pair: i / 2, leaf: $0) })
  }

  private func vector(_ name: String, _ member: Member?) -> [Int] {
    let index = byName[name] ?? 0
    let p = weights[leaves[index].weights]
    guard let member else { return Array(p) }
    let z = member.numbers[index].b
    return p.enumerated().map { k, p in
      Self.clip(p + ((member.sign * z[2 * k] * z[2 * k + 1]) >> (4 + noise.sigmaShift)))
    }
  }

  private func product(_ x: [Int], _ name: String, _ member: Member?) -> [Int] {
    let index = byName[name] ?? 0
    let (outputs, inputs) = (leaves[index].shape[0], leaves[index].shape[1])
    let first = leaves[index].weight
    var z = 0
    if let member {
      for k in 0..<inputs { z += x[k] * member.numbers[index].b[k] }
      z *= member.sign
    }
    let divisor = 16 * Self.root(inputs)
    return (0..<outputs).map { r in
      var sum = 0
      for k in 0..<inputs { sum += weights[first + r * inputs + k] * x[k] }
      if let member { sum += (z * member.numbers[index].a[r]) >> (4 + noise.sigmaShift) }
      return Self.clip(Self.divide(sum, divisor))
    }
  }

  private func norm(_ x: [Int], _ w: [Int]) -> [Int] {
    let mean = max(x.reduce(0) { $0 + abs($1) }, 1) / shape.width
    return zip(x, w).map { x, w in
      mean == 0 ? (x * w == 0 ? -1 : -2) : Self.clip(Self.divide(x * w, mean))
    }
  }

  private func sum(_ terms: [Int]...) -> [Int] {
    terms[0].indices.map { i in Self.clip(terms.reduce(0) { $0 + $1[i] }) }
  }

  /// Reads a byte: the logits, and the state one token later.
  func step(_ token: Int, _ state: inout [[Int]], _ member: Member?) -> [Int] {
    if token == 0 { state = state.map { $0.map { _ in 0 } } }
    var x = Array(weights[token * shape.width..<(token + 1) * shape.width])
    if let member {
      let (b, a) = member.numbers[0]
      for k in x.indices {
        x[k] = Self.clip(x[k] + ((member.sign * a[token] * b[k]) >> (4 + noise.sigmaShift)))
      }
    }
    for l in 0..<shape.layers {
      let name = "layers.\(l)."
      let u = norm(x, vector(name + "ln1", member))
      var s = state[l]
      let f = sum(
        product(u, name + "att.Wf", member), product(s, name + "att.Uf", member),
        vector(name + "att.bf", member))
      let p = zip(f, s).map { (($0 + 127) * $1) >> 8 }
      let h = sum(
        product(u, name + "att.Wh", member), product(p, name + "att.Uh", member),
        vector(name + "att.bh", member))
      for k in s.indices { s[k] += ((f[k] + 127) * (h[k] - s[k])) >> 8 }
      state[l] = s
      x = sum(x, s)
      let v = norm(x, vector(name + "ln2", member))
      x = sum(x, product(product(v, name + "mlp.up", member), name + "mlp.down", member))
    }
    return product(norm(x, vector("ln_out", member)), "head", member)
  }

  /// 16·2^(v/16).
  private static func power(_ v: Int) -> Double {
    let fraction = Functions.pow(2, Double(v % 16) / 16)
    return 16 * fraction * Double(1 << (v / 16))
  }
  /// Rounded down; powers of two are exact, the others far from whole numbers.
  private static let powers: [Int] = (0..<256).map { Int(power($0)) }
  /// Rounded up.
  private static let roots: [Int] = (0..<400).map { Int(power($0).rounded(.up)) }

  /// y_target − trunc(16 log₂(Σ 2^(y/16))) with y = logit + 128, in sixteenths of a bit.
  static func logLikelihood(_ logits: [Int], _ target: Int) -> Int {
    let total = logits.reduce(0) { $0 + powers[$1 + 128] }
    var v = 0
    while roots[v + 1] <= total { v += 1 }
    return logits[target] + 128 - v
  }
}
