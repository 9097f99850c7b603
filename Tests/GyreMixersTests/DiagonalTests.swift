import GyreLayers
import GyreMixers
import GyreRecurrence
import GyreTensors
import Testing

/// Diagonal recurrences against their formulas, token by token in Double.
@Suite struct DiagonalTests {
  private func discrete(
    _ rule: Discretization, _ A: Complex, _ step: Double
  ) -> (decay: Complex, input: Complex) {
    let z = A * Complex(step)
    switch rule {
    case .zoh:
      let e = Complex.exp(z)
      return (e, (e - Complex(1)) / A)
    case .bilinear:
      let (up, down) = (
        Complex(1 + z.re / 2, z.im / 2), Complex(1 - z.re / 2, -z.im / 2)
      )
      return (up / down, Complex(step) / down)
    }
  }

  @Test(arguments: Discretization.allCases)
  func s4d(_ rule: Discretization) throws {
    var c = S4D.Configuration()
    (c.stateSize, c.discretization, c.start) = (3, rule, rule == .zoh ? .inv : .legs)
    let s = try Sample(S4D.self, c)
    let n = c.stateSize
    var h = [Complex](repeating: Complex(0), count: 8 * n)
    s.expect(
      s.x.map { x in
        s.gatedOutput(
          (0..<8).map { d in
            var y = s["D"][d] * x[d]
            for m in 0..<n {
              let i = d * n + m
              let (a, b) = discrete(
                rule, Complex(-Functions.exp(s["log_A_real"][i]), s["A_imag"][i]),
                Functions.exp(s["log_dt"][d]))
              h[i] = a * h[i] + b * Complex(x[d])
              y += 2 * (Complex(s["C"][i], s["C"][8 * n + i]) * h[i]).re
            }
            return y
          })
      })
  }

  @Test(arguments: Discretization.allCases)
  func s5(_ rule: Discretization) throws {
    var c = S5.Configuration()
    (c.stateSize, c.blocks, c.discretization) = (6, 2, rule)
    let s = try Sample(S5.self, c)
    let (B, C) = (rows(s["B"], 8), rows(s["C"], 12))
    var h = [Complex](repeating: Complex(0), count: 6)
    s.expect(
      s.x.map { x in
        for m in 0..<6 {
          let (a, b) = discrete(
            rule, Complex(s["Lambda_re"][m], s["Lambda_im"][m]), Functions.exp(s["log_step"][m]))
          h[m] = a * h[m] + b * Complex(dot(B[m], x), dot(B[6 + m], x))
        }
        return s.gatedOutput(
          (0..<8).map { d in
            (0..<6).reduce(s["D"][d] * x[d]) {
              $0 + 2 * (Complex(C[d][$1], C[d][6 + $1]) * h[$1]).re
            }
          })
      })
  }

  /// Eigenvectors of S5's start: V Λ V⁻¹ is the normal part of HiPPO-LegS, as far as pairs tell it.
  @Test func legendreModesAreEigenvectors() throws {
    var c = S4D.Configuration()
    (c.stateSize, c.start) = (4, .legs)
    let device = ReferenceDevice()
    let source = RememberedParameters(device)
    var p = ParameterBuilder(source: source, device: device)
    _ = try S4D(c, width: 1, layer: LayerPosition(index: 0, count: 1), parameters: &p)
    // Known: the imaginary parts of an 8 × 8 HiPPO-LegS sum, squared, to half of ‖K‖².
    let start = p.parameters.first { $0.name == "A_imag" }
    let values = try #require(start).value.doubles()
    let noise = CounterGenerator(seed: 3, name: "A_imag noise").normals(4).map { 0.1 * Double($0) }
    let frequencies = zip(values, noise).map { $0 - $1 }
    var norm = 0.0
    for r in 0..<8 {
      for k in 0..<r { norm += 2 * 0.25 * Double((2 * r + 1) * (2 * k + 1)) }
    }
    let sum = frequencies.reduce(0) { $0 + 2 * $1 * $1 }
    #expect(abs(sum - norm) < 1e-4 * norm)
    #expect(zip(frequencies, frequencies.dropFirst()).allSatisfy { $0 < $1 && $0 > 0 })
  }

  @Test func lru() throws {
    var c = LRU.Configuration()
    c.stateSize = 5
    let s = try Sample(LRU.self, c)
    let (B, C) = (rows(s["B"], 8), rows(s["C"], 10))
    var h = [Complex](repeating: Complex(0), count: 5)
    s.expect(
      s.x.map { x in
        for m in 0..<5 {
          let a = Complex.exp(
            Complex(-Functions.exp(s["nu_log"][m]), Functions.exp(s["theta_log"][m])))
          let u = Complex(dot(B[m], x), dot(B[5 + m], x))
          h[m] = a * h[m] + Complex(Functions.exp(s["gamma_log"][m])) * u
        }
        return s.gatedOutput(
          (0..<8).map { d in
            (0..<5).reduce(s["D"][d] * x[d]) { $0 + (Complex(C[d][$1], C[d][5 + $1]) * h[$1]).re }
          })
      })
  }

  @Test func gss() throws {
    var c = GSS.Configuration()
    (c.stateSize, c.inner, c.hidden) = (3, 4, 12)
    let s = try Sample(GSS.self, c)
    var h = [Complex](repeating: Complex(0), count: 12)
    s.expect(
      s.x.map { x in
        let v = s.linear("v", x).map(gelu)
        let y = (0..<4).map { d in
          var y = s["D"][d] * v[d]
          for m in 0..<3 {
            let A = Complex(-Functions.exp(s["Lambda_re"][m]), Functions.exp(s["Lambda_im"][m]))
            let e = Complex.exp(A)
            h[d * 3 + m] = e * h[d * 3 + m] + Complex(v[d])
            let C = Complex(s["C"][d * 3 + m], s["C"][12 + d * 3 + m])
            y += (C * ((e - Complex(1)) / A) * h[d * 3 + m]).re
          }
          return y
        }
        return s.linear("output", s.linear("gate", y) * s.linear("u", x).map(gelu))
      })
  }

  @Test func longhorn() throws {
    var c = Longhorn.Configuration()
    (c.stateSize, c.inner, c.rank, c.convolution) = (3, 6, 2, 2)
    let s = try Sample(Longhorn.self, c)
    let both = s.x.map { split(s.linear("input", $0), [6, 6]) }
    let x = s.convolution("convolution", both.map { $0[0] })
    var S = [Double](repeating: 0, count: 18)
    s.expect(
      s.x.indices.map { t in
        let p = split(s.linear("select", x[t]), [2, 3, 3])
        let delta = s.linear("step", p[0]).map(sigmoid)
        let y = (0..<6).map { d in
          let e = delta[d] / (1 + delta[d] * dot(p[1], p[1]))
          for n in 0..<3 {
            S[d * 3 + n] = (1 - e * p[1][n] * p[1][n]) * S[d * 3 + n] + e * x[t][d] * p[1][n]
          }
          return dot(Array(S[d * 3..<d * 3 + 3]), p[2]) + s["D"][d] * x[t][d]
        }
        return s.linear("output", y * both[t][1].map(silu))
      })
  }

  @Test(arguments: [0, 2], [true, false])
  func gateLoop(_ heads: Int, _ rotates: Bool) throws {
    var c = GateLoop.Configuration()
    (c.heads, c.rotates) = (heads, rotates)
    let s = try Sample(GateLoop.self, c)
    let (H, K) = (heads > 0 ? heads : 8, heads > 0 ? 8 / heads : 1)
    var S = [Complex](repeating: Complex(0), count: H * K * K)
    s.expect(
      s.x.map { x in
        let p = split(s.linear("qkvg", x), [8, 8, 8, 8])
        let g = s.linear("transition", x)
        var y = Vector(repeating: 0, count: 8)
        for h in 0..<H {
          for i in 0..<K {
            let m = h * K + i
            let angle = rotates ? g[8 + m] : 0
            let a = Complex(sigmoid(g[m])) * Complex.exp(Complex(0, angle))
            for j in 0..<K {
              let at = (h * K + i) * K + j
              S[at] = a * S[at] + Complex(p[1][m] * p[2][h * K + j])
              y[h * K + j] += p[0][m] * S[at].re
            }
          }
        }
        return s.linear("output", y * p[3].map(silu))
      })
  }
}
