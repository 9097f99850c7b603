import GyreMixers
import GyreRecurrence
import GyreTensors
import Testing

/// Layers that learn while they read, token by token with derivatives by differences.
@Suite struct MemoryTests {
  /// ∂f/∂z by central differences.
  private func gradient(_ z: Vector, _ f: (Vector) -> Double) -> Vector {
    z.indices.map { i in
      var (up, down) = (z, z)
      up[i] += 1e-5
      down[i] -= 1e-5
      return (f(up) - f(down)) / 2e-5
    }
  }

  private func layerNorm(_ z: Vector, _ weight: Vector, _ bias: Vector) -> Vector {
    let mean = z.reduce(0, +) / Double(z.count)
    return rms(z.map { $0 - mean }, 1e-6) * weight + bias
  }

  private func turned(_ x: Vector, _ place: Int, base: Double) -> Vector {
    let half = x.count / 2
    var y = x
    for i in 0..<half {
      let angle = Double(place) * Functions.pow(base, -Double(i) / Double(half))
      let (c, s) = (Functions.cos(angle), Functions.sin(angle))
      (y[i], y[half + i]) = (x[i] * c - x[half + i] * s, x[i] * s + x[half + i] * c)
    }
    return y
  }

  private func geluTanh(_ x: Double) -> Double {
    0.5 * x * (1 + Functions.tanh(0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)))
  }

  @Test(arguments: [TTT.Configuration.Network.linear, .mlp])
  func ttt(_ network: TTT.Configuration.Network) throws {
    var c = TTT.Configuration()
    (c.heads, c.network, c.batchSize, c.rotaryBase) = (2, network, 4, 50)
    let s = try Sample(TTT.self, c)
    let K = 4
    // Weights of a head as rows of inputs, the bias last.
    func start(_ h: Int) -> [[Vector]] {
      (0..<(network == .mlp ? 2 : 1)).map { l in
        let outputs = network == .mlp && l == 0 ? 16 : K
        let all = rows(s["W\(l)"], outputs)
        return Array(all[h * all.count / 2..<(h + 1) * all.count / 2])
      }
    }
    func product(_ w: [Vector], _ a: Vector) -> Vector {
      zip(w, a + 1).reduce(Vector(repeating: 0, count: w[0].count)) { sum, p in
        added(sum, p.0.map { $0 * p.1 })
      }
    }
    func run(_ w: [[Vector]], _ a: Vector) -> Vector {
      let z = product(w[0], a)
      return w.count == 1 ? z : product(w[1], z.map(geluTanh))
    }
    var weights = (0..<2).map { start($0) }
    var sums = weights.map { $0.map { $0.map { $0.map { _ in 0.0 } } } }
    let (gamma, beta) = (rows(s["inner_norm.weight"], K), rows(s["inner_norm.bias"], K))
    s.expect(
      s.x.enumerated().map { t, x in
        let (place, p) = (t % 4, split(s.linear("qkv", x), [8, 8, 8]).map { rows($0, K) })
        let eta = s.linear("rate", x).map { sigmoid($0) / Double(K) }
        let u = max(1 / Double(place + 1) + s["place"][place], 0)
        let y = (0..<2).map { h in
          let (q, k) = (turned(p[0][h], place, base: 50), turned(p[1][h], place, base: 50))
          let target = zip(p[2][h], k).map { $0 - $1 }
          func loss(_ z: Vector) -> Double {
            let e = zip(layerNorm(z, gamma[h], beta[h]), target).map { $0 - $1 }
            return 0.5 * dot(e, e)
          }
          // The gradient of every weight through the outputs of its layer.
          let w = weights[h]
          let first = product(w[0], k)
          var pairs: [(Vector, Vector)] = []
          if w.count == 1 {
            pairs = [(k, gradient(first, loss))]
          } else {
            let inner = first.map(geluTanh)
            pairs = [
              (k, gradient(first) { loss(product(w[1], $0.map(geluTanh))) }),
              (inner, gradient(product(w[1], inner), loss)),
            ]
          }
          for (l, pair) in pairs.enumerated() {
            for (i, a) in (pair.0 + 1).enumerated() {
              sums[h][l][i] = added(sums[h][l][i], pair.1.map { a * eta[h] * $0 })
            }
          }
          let moved = zip(w, sums[h]).map { zip($0, $1).map { added($0, $1.map { -u * $0 }) } }
          if place == 3 {
            weights[h] = moved
            sums[h] = sums[h].map { $0.map { $0.map { _ in 0 } } }
          }
          return q + layerNorm(run(moved, q), gamma[h], beta[h])
        }
        return s.linear(
          "output", layerNorm(Array(y.joined()), s["norm.weight"], s["norm.bias"]))
      })
  }

  /// The memory alone, one linear map a head, momentum and forgetting as written in the paper.
  @Test func titansMemory() throws {
    var c = Titans.Configuration()
    (c.mode, c.heads, c.segment, c.convolution) = (.memory, 2, 4, 0)
    let s = try Sample(Titans.self, c)
    let K = 4
    func unit(_ v: Vector) -> Vector { v.map { $0 / (dot(v, v) + 1e-6).squareRoot() } }
    // M[h][i][j] takes input i to output j.
    var M = (0..<2).map { h in rows(s["M0"], K).dropFirst(h * K).prefix(K).map { $0 } }
    var base = M
    var S = M.map { $0.map { $0.map { _ in 0.0 } } }
    func read(_ m: [Vector], _ a: Vector) -> Vector {
      zip(m, a).reduce(Vector(repeating: 0, count: K)) { sum, p in added(sum, p.0.map { $0 * p.1 })
      }
    }
    s.expect(
      s.x.enumerated().map { t, x in
        let p = split(s.linear("qkv", x).map(silu), [8, 8, 8]).map { rows($0, K) }
        let g = split(s.linear("gates", x).map(sigmoid), [2, 2, 2])
        let y = (0..<2).map { h in
          let (q, k) = (unit(p[0][h]), unit(p[1][h]))
          let error = zip(read(base[h], k), p[2][h]).map { $0 - $1 }
          let size = (1 + dot(error, error) / Double(K)).squareRoot()
          for i in 0..<K {
            for j in 0..<K {
              S[h][i][j] = g[1][h] * S[h][i][j] - g[2][h] / 4 * k[i] * error[j] / size
              M[h][i][j] = (1 - g[0][h]) * M[h][i][j] + S[h][i][j]
            }
          }
          return read(M[h], q)
        }
        if t % 4 == 3 { base = M }
        let m = rms(Array(y.joined()), 1e-6) * s["memory_norm.weight"]
        return s.linear("output", m * s.linear("gate", x).map(silu))
      })
  }
}

extension Array where Element == Double {
  /// With one more element, the input of a bias.
  static func + (a: [Double], one: Int) -> [Double] {
    var a = a
    a.append(Double(one))
    return a
  }
}
