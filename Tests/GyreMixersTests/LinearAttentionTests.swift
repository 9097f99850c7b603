import GyreMixers
import GyreRecurrence
import GyreTensors
import Testing

/// Linear attention behind different gates and features against the formulas, token by token.
@Suite struct LinearAttentionTests {
  /// One head after the other of a flat vector.
  private func heads(_ v: Vector, _ count: Int) -> [Vector] { rows(v, v.count / count) }

  /// A matrix state per head.
  private struct Memory {
    var S: [[Vector]]
    init(_ heads: Int, _ K: Int, _ V: Int) {
      S = .init(repeating: .init(repeating: Vector(repeating: 0, count: V), count: K), count: heads)
    }
    mutating func write(_ h: Int, decay: Vector, _ k: Vector, _ v: Vector) {
      for i in k.indices { S[h][i] = zip(S[h][i], v).map { decay[i] * $0 + k[i] * $1 } }
    }
    func read(_ h: Int, _ q: Vector) -> Vector {
      var y = Vector(repeating: 0, count: S[h][0].count)
      for i in q.indices { y = added(y, S[h][i].map { $0 * q[i] }) }
      return y
    }
  }

  private func rotated(_ x: Vector, _ t: Int, base: Double) -> Vector {
    let half = x.count / 2
    var y = x
    for i in 0..<half {
      let angle = Double(t) * Functions.pow(base, -Double(i) / Double(half))
      let (c, s) = (Functions.cos(angle), Functions.sin(angle))
      y[i] = x[i] * c - x[half + i] * s
      y[half + i] = x[i] * s + x[half + i] * c
    }
    return y
  }

  @Test(arguments: [true, false]) func regla(_ refines: Bool) throws {
    var c = ReGLA.Configuration()
    (c.heads, c.keyExpansion, c.rank, c.refines) = (2, 0.5, 2, refines)
    let s = try Sample(ReGLA.self, c)
    var m = Memory(2, 2, 4)
    s.expect(
      s.x.map { x in
        let p = split(s.linear("qkvg", x), [4, 4, 8, 8])
        let g = s.lowRank("gate", x).map(sigmoid)
        var alpha = g
        if refines {
          let r = s.lowRank("refine", x).map(sigmoid)
          alpha = zip(g, r).map { (1 - $1) * $0 * $0 + $1 * (1 - (1 - $0) * (1 - $0)) }
        }
        let y = (0..<2).map { h in
          func features(_ v: Vector) -> Vector {
            softmax(heads(v, 2)[h]).map { $0 * 2.0.squareRoot() }
          }
          m.write(h, decay: heads(alpha, 2)[h], features(p[1]), heads(p[2], 2)[h])
          return rms(m.read(h, features(p[0])), c.normEpsilon) * s["norm.weight"]
        }
        return s.linear("output", Array(y.joined()) * p[3].map(silu))
      })
  }

  @Test(arguments: [TransNormer.Configuration.Rotary.all, .none])
  func transNormer(_ rotary: TransNormer.Configuration.Rotary) throws {
    var c = TransNormer.Configuration()
    (c.heads, c.rotary) = (2, rotary)
    let s = try Sample(TransNormer.self, c)
    var m = Memory(2, 4, 4)
    s.expect(
      s.x.enumerated().map { t, x in
        let p = split(s.linear("qkvu", x), [8, 8, 8, 8])
        let y = (0..<2).map { h in
          func placed(_ v: Vector) -> Vector {
            let part = heads(v.map(silu), 2)[h]
            return rotary == .all ? rotated(part, t, base: 10_000) : part
          }
          let decay = Functions.exp(-8.0 / 2 * (1 - 1.0 / 3) * Double(h))
          m.write(
            h, decay: Vector(repeating: decay, count: 4), placed(p[1]), heads(p[2], 2)[h])
          return m.read(h, placed(p[0]))
        }
        return s.linear("output", rms(Array(y.joined()), c.normEpsilon) * p[3])
      })
  }

  @Test func cosFormer2() throws {
    var c = CosFormer2.Configuration()
    (c.heads, c.base) = (2, 30)
    let s = try Sample(CosFormer2.self, c)
    let all = s.x.map { x in split(s.linear("qkvg", x), [8, 8, 8, 8]).map { heads($0, 2) } }
    s.expect(
      s.x.indices.map { t in
        let y = (0..<2).map { h in
          var y = Vector(repeating: 0, count: 4)
          for j in 0...t {
            let weight = (0..<4).reduce(0.0) { sum, i in
              let rate = Functions.pow(30, -Double(i) / 4)
              return sum + max(all[t][0][h][i], 0) * max(all[j][1][h][i], 0)
                * Functions.cos(Double(t - j) * rate)
            }
            y = added(y, all[j][2][h].map { $0 * weight / 8.0.squareRoot() })
          }
          return rms(y, c.normEpsilon) * s["norm.weight"] * all[t][3][h].map(silu)
        }
        return s.linear("output", Array(y.joined()))
      })
  }

  @Test func prefixLinearAttention() throws {
    var c = PrefixLinearAttention.Configuration()
    (c.heads, c.featureSize, c.prefix, c.featureMap) = (2, 3, 4, "elu")
    let s = try Sample(PrefixLinearAttention.self, c)
    func feature(_ v: Vector) -> Vector { v.map { $0 > 0 ? $0 + 1 : Functions.exp($0) } }
    let all = s.x.map { x in split(s.linear("qkv", x), [6, 6, 8, 6, 8]).map { heads($0, 2) } }
    s.expect(
      s.x.indices.map { t in
        let y = (0..<2).map { h in
          let q = feature(all[t][0][h])
          var (sum, total) = (Vector(repeating: 0, count: 4), 1e-6)
          func add(_ k: Vector, _ v: Vector) {
            let w = dot(q, feature(k))
            sum = added(sum, v.map { $0 * w })
            total += w
          }
          for j in 0...t {
            add(all[j][1][h], all[j][2][h])
            if j < c.prefix { add(all[j][3][h], all[j][4][h]) }
          }
          return sum.map { $0 / total }
        }
        return s.linear("output", Array(y.joined()))
      })
  }

  @Test(arguments: [GatedAttentionUnit.Configuration.Attention.softmax, .linear, .mixed])
  func gatedAttentionUnit(_ kind: GatedAttentionUnit.Configuration.Attention) throws {
    var c = GatedAttentionUnit.Configuration()
    (c.attention, c.keySize, c.hidden, c.window, c.rotary) = (kind, 4, 6, 3, false)
    let s = try Sample(GatedAttentionUnit.self, c)
    let all = s.x.map { x in split(s.linear("uvz", x).map(silu), [6, 6, 4]) }
    let (gamma, beta) = (rows(s["scales"], 4), rows(s["offsets"], 4))
    func score(_ t: Int, _ j: Int) -> Double {
      dot(all[t][2] * gamma[0] + beta[0], all[j][2] * gamma[1] + beta[1]) / 2
    }
    func mixed(_ weights: [(Int, Double)]) -> Vector {
      weights.reduce(Vector(repeating: 0, count: 6)) { sum, w in
        added(sum, all[w.0][1].map { $0 * w.1 })
      }
    }
    s.expect(
      s.x.indices.map { t in
        let seen = Array(max(0, t - 2)...t)
        let local = mixed(Array(zip(seen, softmax(seen.map { score(t, $0) }))))
        let far = rms(mixed((0...t).map { ($0, score(t, $0)) }), 1e-6)
        let y = kind == .softmax ? local : kind == .linear ? far : local + far
        return s.linear("output", all[t][0] * y)
      })
  }

  @Test func chela() throws {
    var c = CHELA.Configuration()
    (c.convolution, c.longTaps, c.branches, c.keySize, c.hidden) = (2, 3, 2, 3, 6)
    let s = try Sample(CHELA.self, c)
    let near = s.convolution("short", s.x)
    let context = near.indices.map { t in
      (0..<8).map { d in
        var sum = 0.0
        for (name, distance) in [("long.0", 1), ("long.1", 3)] {
          for m in 0..<3 where t - m * distance >= 0 {
            sum += s[name][m * 8 + d] * near[t - m * distance][d]
          }
        }
        return sum
      }
    }
    let (gamma, beta) = (rows(s["scales"], 3), rows(s["offsets"], 3))
    func feature(_ v: Vector) -> Vector { v.map { $0 > 0 ? $0 + 1 : Functions.exp($0) } }
    let z = context.map { s.linear("z", $0).map(silu) }
    let v = s.x.map { s.linear("v", $0).map(silu) }
    s.expect(
      s.x.indices.map { t in
        var o = Vector(repeating: 0, count: 6)
        for j in 0...t {
          let w =
            dot(
              feature(z[t] * gamma[0] + beta[0]), feature(z[j] * gamma[1] + beta[1]))
            / 3.0.squareRoot()
          o = added(o, v[j].map { $0 * w })
        }
        let g = split(s.linear("gates", context[t]), [6, 8, 8])
        let candidate = (g[2] + s.linear("inner", g[0].map(silu) * rms(o, 1e-6))).map(silu)
        return (0..<8).map { d in
          let i = sigmoid(g[1][d])
          return i * candidate[d] + (1 - i) * s.x[t][d]
        }
      })
  }

  /// With transitions of both signs.
  @Test func plstm() throws {
    var c = PLSTM.Configuration()
    (c.heads, c.transitions, c.convolution, c.gateBias) = (2, 2, 2, 0)
    c.transitionBias = 0.05
    let s = try Sample(PLSTM.self, c)
    let context = s.convolution("convolution", s.x)
    var C = [Double](repeating: 0, count: 4 * 16)
    s.expect(
      s.x.enumerated().map { t, x in
        let p = split(s.linear("qkv", x), [8, 8, 8]).map { heads($0, 2) }
        let g = split(s.linear("gates", context[t]), [4, 4, 4, 2])
        let y = (0..<2).map { h in
          var y = Vector(repeating: 0, count: 4)
          for j in 0..<2 {
            let lane = h * 2 + j
            let transition = Functions.tanh(5 * g[0][lane])
            for a in 0..<4 {
              for b in 0..<4 {
                let at = (lane * 4 + a) * 4 + b
                y[b] += sigmoid(g[2][lane]) * p[0][h][a] * C[at] / 2
                C[at] = transition * C[at] + sigmoid(g[1][lane]) * p[1][h][a] * p[2][h][b]
              }
            }
          }
          let direct = sigmoid(g[3][h]) * dot(p[0][h], p[1][h]) / 2
          return rms(added(y, p[2][h].map { $0 * direct }), c.normEpsilon) * s["norm.weight"]
        }
        return s.linear("output", Array(y.joined())) + s.linear("output", x * s["skip"])
      })
  }
}
