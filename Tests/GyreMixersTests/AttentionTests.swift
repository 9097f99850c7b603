import GyreMixers
import GyreRecurrence
import GyreTensors
import Testing

/// Layers around attention, convolutions and small matrices against their formulas.
@Suite struct AttentionTests {
  @Test func gatedAssociativeMemory() throws {
    var c = GatedAssociativeMemory.Configuration()
    c.slots = 5
    let s = try Sample(GatedAssociativeMemory.self, c)
    let near = s.convolution("convolution", s.x, silu: false)
    let bank = rows(s["bank"], 8)
    s.expect(
      s.x.enumerated().map { t, x in
        let g = split(s.linear("gates", x).map(sigmoid), [8, 8])
        let w = softmax(bank.map { dot($0, x) })
        let found = zip(bank, w).reduce(Vector(repeating: 0, count: 8)) { sum, p in
          added(sum, p.0.map { $0 * p.1 })
        }
        return s.linear("output", g[0] * near[t] + g[1] * found)
      })
  }

  @Test func multiresConv() throws {
    var c = MultiresConv.Configuration()
    (c.taps, c.levels) = (3, 2)
    let s = try Sample(MultiresConv.self, c)
    let (low, high, w) = (rows(s["h0"], 8), rows(s["h1"], 8), rows(s["w"], 8))
    var a = s.x
    var y = s.x.map { $0 * w[3] }
    for level in 0..<2 {
      func filtered(_ h: [Vector]) -> [Vector] {
        a.indices.map { t in
          (0..<3).reduce(Vector(repeating: 0, count: 8)) { sum, m in
            t - m << level >= 0 ? sum + h[m] * a[t - m << level] : sum
          }
        }
      }
      let (next, detail) = (filtered(low), filtered(high))
      y = zip(y, detail).map { $0 + $1 * w[level] }
      a = next
    }
    s.expect(zip(y, a).map { s.gatedOutput($0 + $1 * w[2]) })
  }

  @Test func hrrformer() throws {
    var c = Hrrformer.Configuration()
    c.heads = 2
    let s = try Sample(Hrrformer.self, c)
    let K = 4
    func spectrum(_ v: Vector) -> [Complex] {
      (0..<K).map { m in
        v.enumerated().reduce(Complex(0)) { sum, e in
          sum + Complex.exp(Complex(0, -2 * .pi * Double(m * e.offset) / Double(K)))
            * Complex(e.element)
        }
      }
    }
    func unit(_ v: Vector) -> Vector { v.map { $0 / (dot(v, v) + 1e-6).squareRoot() } }
    var bound = [[Complex]](repeating: .init(repeating: Complex(0), count: K), count: 2)
    var total = [0.0, 0.0]
    s.expect(
      s.x.enumerated().map { t, x in
        let p = split(s.linear("qkv", x), [8, 8, 8]).map { rows($0, K) }
        let y = (0..<2).map { h in
          // k ⊛ v by its definition.
          let pair = (0..<K).map { n in
            (0..<K).reduce(0.0) { $0 + p[1][h][$1] * p[2][h][(n - $1 + K) % K] }
          }
          bound[h] = zip(bound[h], spectrum(pair)).map { $0 + $1 }
          let q = spectrum(p[0][h])
          let product = zip(q, bound[h]).map { q, b in
            Complex(q.re, -q.im) / Complex(q.re * q.re + q.im * q.im + 1e-6) * b
          }
          let recalled = (0..<K).map { n in
            product.enumerated().reduce(0.0) { sum, e in
              sum
                + (e.element * Complex.exp(Complex(0, 2 * .pi * Double(n * e.offset) / Double(K))))
                .re / Double(K)
            }
          }
          let weight = Functions.exp(dot(unit(p[2][h]), unit(recalled)))
          total[h] += weight
          return p[2][h].map { Double(t + 1) * weight / total[h] * $0 }
        }
        return s.linear("output", Array(y.joined()))
      })
  }

  @Test func regularLRNN() throws {
    var c = RegularLRNN.Configuration()
    (c.channels, c.block) = (6, 3)
    let s = try Sample(RegularLRNN.self, c)
    var h = Vector(repeating: 0, count: 6)
    s.expect(
      s.x.map { x in
        let columns = rows(s.linear("transition", x), 3)
        var next = s.linear("input", x)
        for j in 0..<6 {
          let size = Functions.pow(
            columns[j].reduce(0) { $0 + Functions.pow(abs($1) + 1e-6, 1.2) }, 1 / 1.2)
          for i in 0..<3 { next[j / 3 * 3 + i] += columns[j][i] / max(1, size) * h[j] }
        }
        h = next
        return s.linear("output", rms(h, 1e-6) * s["norm.weight"])
      })
  }

  @Test(arguments: [true, false]) func rat(_ rotary: Bool) throws {
    var c = RAT.Configuration()
    (c.heads, c.chunk, c.rotary, c.rotaryBase) = (2, 3, rotary, 20)
    let s = try Sample(RAT.self, c)
    var (k, v) = (Vector(repeating: 0, count: 8), Vector(repeating: 0, count: 8))
    var ends: [(Vector, Vector)] = []
    func turned(_ x: Vector, _ chunk: Int) -> Vector {
      guard rotary else { return x }
      return Array(
        rows(x, 4).map { part -> Vector in
          var y = part
          for i in 0..<2 {
            let angle = Double(chunk) * Functions.pow(20, -Double(i) / 2)
            let (c, s) = (Functions.cos(angle), Functions.sin(angle))
            (y[i], y[2 + i]) = (part[i] * c - part[2 + i] * s, part[i] * s + part[2 + i] * c)
          }
          return y
        }.joined())
    }
    s.expect(
      s.x.enumerated().map { t, x in
        let p = split(s.linear("qkvz", x), [8, 8, 8, 8])
        let g = s.linear("gate", x).map(sigmoid)
        if t % 3 == 0 { (k, v) = (k.map { _ in 0 }, v.map { _ in 0 }) }
        k = zip(g, zip(k, p[1])).map { $0 * $1.0 + (1 - $0) * $1.1 }
        v = zip(g, zip(v, p[2])).map { $0 * $1.0 + (1 - $0) * $1.1 }
        let q = turned(p[0], t / 3)
        let seen = ends + [(turned(k, t / 3), v)]
        let y = (0..<2).map { h in
          let w = softmax(seen.map { dot(rows(q, 4)[h], rows($0.0, 4)[h]) / 2 })
          return zip(seen, w).reduce(Vector(repeating: 0, count: 4)) { sum, e in
            added(sum, rows(e.0.1, 4)[h].map { $0 * e.1 })
          }
        }
        if t % 3 == 2 { ends = seen }
        return s.linear("output", Array(y.joined()) * p[3].map(sigmoid))
      })
  }

  @Test func seqBoat() throws {
    var c = SeqBoat.Configuration()
    (c.keySize, c.hidden, c.window) = (3, 6, 4)
    let s = try Sample(SeqBoat.self, c)
    var h = Vector(repeating: 0, count: 16)
    let context = s.x.map { x in
      (0..<8).map { d in
        var sum = s["omega"][d] * x[d]
        for n in 0..<2 {
          let i = d * 2 + n
          let a = sigmoid(s["alpha"][i])
          h[i] = (1 - a * sigmoid(s["delta"][i])) * h[i] + x[d]
          sum += a * s["beta"][i] * s["eta"][i] * h[i] / 2.0.squareRoot()
        }
        return silu(sum)
      }
    }
    let margins = context.map { c in
      let l = s.linear("router", c)
      return (l[1] - l[0]) * Functions.exp(-s["temperature"][0])
    }
    // Both kinds of token must occur.
    #expect(margins.contains { $0 > 0 } && margins.contains { $0 < 0 })
    let (scales, offsets) = (rows(s["scales"], 3), rows(s["offsets"], 3))
    let z = context.map { s.linear("z", $0).map(silu) }
    let v = s.x.map { s.linear("v", $0).map(silu) }
    s.expect(
      s.x.indices.map { t in
        let c = context[t]
        guard margins[t] > 0 else { return c }
        let seen = (max(0, t - 3)...t).filter { margins[$0] > 0 }
        let w = softmax(
          seen.map {
            dot(z[t] * scales[0] + offsets[0], z[$0] * scales[1] + offsets[1]) / 3.0.squareRoot()
          })
        let o = zip(seen, w).reduce(Vector(repeating: 0, count: 6)) { sum, e in
          added(sum, v[e.0].map { $0 * e.1 })
        }
        let g = split(s.linear("gates", c), [6, 8, 8])
        let candidate = (g[2] + s.linear("inner", g[0].map(silu) * o)).map(silu)
        return (0..<8).map { d in
          let i = sigmoid(g[1][d])
          return sigmoid(margins[t]) * (i * candidate[d] + (1 - i) * s.x[t][d])
        }
      })
  }

  /// Window attention and the states after the first block and the second.
  @Test(arguments: [BlockRecurrent.Configuration.Gate.fixed, .lstm])
  func blockRecurrent(_ gate: BlockRecurrent.Configuration.Gate) throws {
    var c = BlockRecurrent.Configuration()
    (c.heads, c.states, c.block, c.gate, c.rotaryBase) = (2, 3, 4, gate, 30)
    let s = try Sample(BlockRecurrent.self, c)
    let all = s.x.map { split(s.linear("kvqr", $0), [8, 8, 8, 8]) }
    func turned(_ x: Vector, _ t: Int) -> Vector {
      Array(
        rows(x, 4).map { part -> Vector in
          var y = part
          for i in 0..<2 {
            let angle = Double(t) * Functions.pow(30, -Double(i) / 2)
            let (c, s) = (Functions.cos(angle), Functions.sin(angle))
            (y[i], y[2 + i]) = (part[i] * c - part[2 + i] * s, part[i] * s + part[2 + i] * c)
          }
          return y
        }.joined())
    }
    func attend(_ q: Vector, _ k: [Vector], _ v: [Vector]) -> Vector {
      Array(
        (0..<2).map { h -> Vector in
          let w = softmax(k.map { dot(rows(q, 4)[h], rows($0, 4)[h]) / 2 })
          return zip(v, w).reduce(Vector(repeating: 0, count: 4)) { sum, e in
            added(sum, rows(e.0, 4)[h].map { $0 * e.1 })
          }
        }.joined())
    }
    var states = rows(s["initial"], 8)
    let ids = rows(s["ids"], 8)
    let keyValue = rows(s["kvqr.weight"], 8)
    s.expect(
      s.x.indices.map { t in
        let seen = Array(max(0, t - 3)...t)
        let near = attend(
          turned(all[t][2], t), seen.map { turned(all[$0][0], $0) }, seen.map { all[$0][1] })
        let normed = zip(states, ids).map { rms($0 + $1, 1e-6) * s["state_norm.weight"] }
        let own = normed.map { n in split(keyValue.prefix(16).map { dot($0, n) }, [8, 8]) }
        let (k, v) = (own.map { $0[0] }, own.map { $0[1] })
        let found = attend(all[t][3], k, v)
        if t % 4 == 3 {
          let block = t - 3...t
          states = states.indices.map { n in
            let q = split(s.linear("state_q", normed[n]), [8, 8])
            let parts = [
              attend(q[0], k, v), attend(q[1], block.map { all[$0][0] }, block.map { all[$0][1] }),
            ]
            let z = s.linear("update", Array(parts.joined()))
            if gate == .fixed {
              let keep = s["beta"].map(sigmoid)
              return states[n] * keep + z * keep.map { 1 - $0 }
            }
            let g = split(s.linear("input", z), [8, 8])
            return states[n] * s.linear("forget", states[n]).map(sigmoid)
              + g[0].map { Functions.tanh($0) } * g[1].map(sigmoid)
          }
        }
        return s.linear("output", Array([near, found].joined()))
      })
  }
}
