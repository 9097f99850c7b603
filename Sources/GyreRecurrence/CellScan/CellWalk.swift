import GyreTensors

/// Sizes of a cell scan: B, T, heads, units a head, gates a unit.
public struct CellExtents: Sendable, Hashable {
  public var batch, tokens, heads, units, gates: Int
  /// Arrays of all tokens are `[T, B, ·]`.
  public var isTimeMajor = false
  public var hidden: Int { heads * units }
  /// Which of all B·T tokens token `t` of row `b` is.
  func place(_ b: Int, _ t: Int) -> Int { isTimeMajor ? t * batch + b : b * tokens + t }
}

/// One row of a cell scan on the host, token by token: the definition of the cells.
struct CellWalk {
  struct Step {
    /// State before the token, after a reset.
    var previous, memory, normalizer, stabilizer: [Double]
    /// Activated gates and R h + b, `[G·H]`.
    var gates, product: [Double]
    var h, c, n, m: [Double]
  }

  private let op: CellForward
  private let x: CellExtents
  private let inputs: [[Double]]
  private let row: Int
  private(set) var h, c, n, m: [Double]

  init(_ op: CellForward, _ x: CellExtents, _ inputs: [[Double]], row: Int) {
    (self.op, self.x, self.inputs, self.row) = (op, x, inputs, row)
    func start(_ i: Int) -> [Double] {
      op.optional.pick(i, inputs).map { Array($0[row * x.hidden..<(row + 1) * x.hidden]) }
        ?? [Double](repeating: 0, count: x.hidden)
    }
    (h, c, n, m) = (start(3), start(4), start(6), start(7))
  }

  func isReset(_ t: Int) -> Bool { (op.optional.pick(5, inputs)?[x.place(row, t)] ?? 0) != 0 }

  /// Visits the elements of some gates' rows of R: (gate·H + output unit, input unit, weight).
  private func weights(of gates: Range<Int>, _ body: (Int, Int, Double) -> Void) {
    let R = inputs[1]
    for head in 0..<x.heads {
      for g in gates {
        for j in 0..<x.units {
          let from = ((head * x.gates + g) * x.units + j) * x.units
          for k in 0..<x.units {
            body(g * x.hidden + head * x.units + j, head * x.units + k, R[from + k])
          }
        }
      }
    }
  }

  mutating func advance(_ t: Int) -> Step {
    let (H, G) = (x.hidden, x.gates)
    if isReset(t) {
      h = [Double](repeating: 0, count: H)
      (c, n, m) = (h, h, h)
    }
    let place = x.place(row, t)
    let xw = inputs[0][place * G * H..<(place + 1) * G * H]
    func input(_ i: Int) -> Double { xw[xw.startIndex + i] }
    let (previous, memory, normalizer, stabilizer) = (h, c, n, m)
    var product = op.optional.pick(2, inputs) ?? [Double](repeating: 0, count: G * H)
    let first = op.cell == .gruOriginal ? 2 : G
    weights(of: 0..<first) { product[$0] += $2 * previous[$1] }
    var gates = [Double](repeating: 0, count: G * H)
    switch op.cell {
    case .elmanTanh: for u in 0..<H { gates[u] = Functions.tanh(input(u) + product[u]) }
    case .elmanReLU: for u in 0..<H { gates[u] = max(input(u) + product[u], 0) }
    case .gru, .gruOriginal:
      for i in 0..<2 * H { gates[i] = Functions.sigmoid(input(i) + product[i]) }
      if op.cell == .gruOriginal {
        weights(of: 2..<3) { product[$0] += $2 * gates[$1] * previous[$1] }
      }
      for u in 0..<H {
        let reset = op.cell == .gru ? gates[u] : 1
        gates[2 * H + u] = Functions.tanh(input(2 * H + u) + reset * product[2 * H + u])
      }
    case .lstm:
      for i in 0..<4 * H {
        let sum = input(i) + product[i]
        gates[i] = i / H == 2 ? Functions.tanh(sum) : Functions.sigmoid(sum)
      }
    case .slstm:
      for i in 0..<4 * H {
        let sum = input(i) + product[i]
        gates[i] = i / H < 2 ? sum : i / H == 2 ? Functions.tanh(sum) : Functions.sigmoid(sum)
      }
    }
    for u in 0..<H {
      switch op.cell {
      case .elmanTanh, .elmanReLU: h[u] = gates[u]
      case .gru, .gruOriginal:
        h[u] = (1 - gates[H + u]) * gates[2 * H + u] + gates[H + u] * previous[u]
      case .lstm:
        c[u] = gates[H + u] * memory[u] + gates[u] * gates[2 * H + u]
        h[u] = gates[3 * H + u] * Functions.tanh(c[u])
      case .slstm:
        let carried = Functions.logSigmoid(gates[H + u]) + m[u]
        m[u] = n[u] == 0 ? gates[u] : max(carried, gates[u])
        let (input, forget) = CellWalk.rates(gates, u, H, normalizer[u], stabilizer[u], m[u])
        c[u] = forget * memory[u] + input * gates[2 * H + u]
        n[u] = forget * normalizer[u] + input
        h[u] = gates[3 * H + u] * c[u] / n[u]
      }
    }
    return Step(
      previous: previous, memory: memory, normalizer: normalizer, stabilizer: stabilizer,
      gates: gates, product: product, h: h, c: c, n: n, m: m)
  }

  /// What sLSTM takes of the new and keeps of the old, both scaled by e^−m.
  private static func rates(
    _ gates: [Double], _ u: Int, _ H: Int, _ normalizer: Double, _ before: Double, _ m: Double
  ) -> (input: Double, forget: Double) {
    let kept = Functions.exp(Functions.logSigmoid(gates[H + u]) + before - m)
    return (Functions.exp(gates[u] - m), normalizer == 0 ? 0 : kept)
  }

  /// Takes the cotangents of h, c and n over a token; returns those of x and of R h + b.
  func retreat(
    _ s: Step, _ dh: inout [Double], _ dc: inout [Double], _ dn: inout [Double]
  ) -> (gates: [Double], recurrent: [Double]) {
    let (H, G) = (x.hidden, x.gates)
    var d = [Double](repeating: 0, count: G * H)
    var before = [Double](repeating: 0, count: H)
    switch op.cell {
    case .elmanTanh: for u in 0..<H { d[u] = dh[u] * (1 - s.h[u] * s.h[u]) }
    case .elmanReLU: for u in 0..<H { d[u] = s.h[u] > 0 ? dh[u] : 0 }
    case .gru, .gruOriginal:
      for u in 0..<H {
        let (z, n) = (s.gates[H + u], s.gates[2 * H + u])
        d[2 * H + u] = dh[u] * (1 - z) * (1 - n * n)
        d[H + u] = dh[u] * (s.previous[u] - n) * z * (1 - z)
        before[u] = dh[u] * z
      }
    case .lstm:
      for u in 0..<H {
        let (i, f, g, o) = (s.gates[u], s.gates[H + u], s.gates[2 * H + u], s.gates[3 * H + u])
        let squashed = Functions.tanh(s.c[u])
        let total = dc[u] + dh[u] * o * (1 - squashed * squashed)
        d[u] = total * g * i * (1 - i)
        d[H + u] = total * s.memory[u] * f * (1 - f)
        d[2 * H + u] = total * i * (1 - g * g)
        d[3 * H + u] = dh[u] * squashed * o * (1 - o)
        dc[u] = total * f
      }
    case .slstm:
      for u in 0..<H {
        let (z, o) = (s.gates[2 * H + u], s.gates[3 * H + u])
        let (input, forget) = CellWalk.rates(
          s.gates, u, H, s.normalizer[u], s.stabilizer[u], s.m[u])
        let hidden = s.c[u] / s.n[u]
        let scaled = dh[u] * o / s.n[u]
        let (c, n) = (dc[u] + scaled, dn[u] - scaled * hidden)
        d[u] = input * (z * c + n)
        d[H + u] =
          forget * (s.memory[u] * c + s.normalizer[u] * n) * Functions.sigmoid(-s.gates[H + u])
        d[2 * H + u] = c * input * (1 - z * z)
        d[3 * H + u] = dh[u] * hidden * o * (1 - o)
        (dc[u], dn[u]) = (forget * c, forget * n)
      }
    }
    var recurrent = d
    if op.cell == .gru {
      for u in 0..<H {
        let r = s.gates[u]
        d[u] = d[2 * H + u] * s.product[2 * H + u] * r * (1 - r)
        recurrent[u] = d[u]
        recurrent[2 * H + u] = d[2 * H + u] * r
      }
    } else if op.cell == .gruOriginal {
      var gated = [Double](repeating: 0, count: H)
      weights(of: 2..<3) { gated[$1] += $2 * d[$0] }
      for u in 0..<H {
        let r = s.gates[u]
        d[u] = gated[u] * s.previous[u] * r * (1 - r)
        recurrent[u] = d[u]
        before[u] += gated[u] * r
      }
    }
    weights(of: 0..<(op.cell == .gruOriginal ? 2 : G)) { before[$1] += $2 * recurrent[$0] }
    dh = before
    return (d, recurrent)
  }
}
