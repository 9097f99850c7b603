import GyreTensors

/// The Legendre memory unit: a nonlinear state beside memories that hold a sliding window of θ tokens
/// in Legendre polynomials. Voelker, Kajić and Eliasmith, 2019.
///
///     u = x_u + E_h h + E_m m    m ← Ā m + B̄ u    h ← tanh(x_h + R h + R_m m)
///
/// Ā, B̄ discretise θ m' = A m + B u with zero-order hold: A_ij = (2i + 1)(−1 for i < j, else
/// (−1)^(i−j+1)), B_i = (2i + 1)(−1)^i.
public struct LegendreMemory: Cell {
  public static let kind = "lmu"
  /// Memories, polynomials of each, and the window θ in tokens.
  public var memories = 4
  public var order = 8
  public var window = 64.0
  public init() {}
  public func problem(hidden: Int) -> (field: String, reason: String)? {
    if !(1...4096).contains(memories) { return ("memories", "must be in 1...4096") }
    if !(1...256).contains(order) { return ("order", "must be in 1...256, is \(order)") }
    return window >= 1 && window.isFinite ? nil : ("window", "must be at least 1, is \(window)")
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let signals = c.space(memories)
    let memory = c.space(memories * order)
    let h = c.state("h", bounds: -1...1)
    let m = c.state("m", space: memory)
    let (A, B) = LegendreMemory.discrete(order: order, window: window)
    let u =
      c.input("u", space: signals)
      + c.product("u_h", h, to: signals, heads: 1, .fanIn(c.hidden))
      + c.product("u_m", m, to: signals, heads: memories, .zeros)
    let next =
      c.product("A", m, to: memory, heads: memories, constant: A)
      + c.product("B", u, to: memory, heads: memories, constant: B)
    c.next(m, next)
    c.next(
      h,
      tanh(
        c.input("h") + c.recurrent("h", h)
          + c.product("h_m", next, heads: 1, .fanIn(memories * order))))
    return h
  }

  /// Ā `[q, q]` and B̄ `[q]` by the exponential of [[A, B], [0, 0]] / θ.
  static func discrete(order q: Int, window: Double) -> (A: [Double], B: [Double]) {
    let n = q + 1
    var M = [Double](repeating: 0, count: n * n)
    for i in 0..<q {
      let scale = Double(2 * i + 1) / window
      for j in 0..<q { M[i * n + j] = scale * (i < j || (i - j) % 2 == 0 ? -1 : 1) }
      M[i * n + q] = scale * (i % 2 == 0 ? 1 : -1)
    }
    let E = exponential(M, n)
    var (A, B) = ([Double](), [Double]())
    for i in 0..<q {
      A += E[i * n..<i * n + q]
      B.append(E[i * n + q])
    }
    return (A, B)
  }

  /// e^M by scaling, Taylor's series and squaring.
  private static func exponential(_ M: [Double], _ n: Int) -> [Double] {
    func times(_ a: [Double], _ b: [Double]) -> [Double] {
      var c = [Double](repeating: 0, count: n * n)
      for i in 0..<n {
        for k in 0..<n where a[i * n + k] != 0 {
          for j in 0..<n { c[i * n + j] += a[i * n + k] * b[k * n + j] }
        }
      }
      return c
    }
    var norm = (0..<n).map { i in (0..<n).reduce(0) { $0 + abs(M[i * n + $1]) } }.max() ?? 0
    var squarings = 0
    while norm > 0.5 {
      norm /= 2
      squarings += 1
    }
    let small = M.map { $0 / Double(1 << squarings) }
    var term = (0..<n * n).map { $0 / n == $0 % n ? 1.0 : 0 }
    var sum = term
    for k in 1...18 {
      term = times(term, small).map { $0 / Double(k) }
      sum = zip(sum, term).map { $0 + $1 }
    }
    for _ in 0..<squarings { sum = times(sum, sum) }
    return sum
  }
}
