import GyreTensors

/// Extents of a recurrence with a matrix state a head, and where its numbers lie.
public struct HeadExtents: Sendable, Hashable {
  public var batch, tokens, heads, keyHeads, keySize, valueSize: Int

  init(q: Shape, v: Shape) {
    precondition(
      q.rank == 4 && v.rank == 4 && q[0] == v[0] && q[1] == v[1] && q[2] > 0 && v[2] % q[2] == 0,
      "queries \(q) and values \(v): batch and tokens must agree, key heads divide heads")
    (batch, tokens, heads, keyHeads, keySize, valueSize) = (v[0], v[1], v[2], q[2], q[3], v[3])
  }

  public var state: Shape { [batch, heads, keySize, valueSize] }

  /// First element of a token's head in `[B, T, H, ·]`.
  func value(_ b: Int, _ t: Int, _ h: Int, _ size: Int) -> Int {
    ((b * tokens + t) * heads + h) * size
  }
  /// First element of the head's key in `[B, T, Hk, K]`.
  func key(_ b: Int, _ t: Int, _ h: Int) -> Int {
    ((b * tokens + t) * keyHeads + h / (heads / keyHeads)) * keySize
  }
}

/// A K × V matrix on the host for references.
struct HostMatrix {
  let rows: Int
  let columns: Int
  var e: [Double]

  init(_ rows: Int, _ columns: Int, _ source: [Double]? = nil, at start: Int = 0) {
    self.rows = rows
    self.columns = columns
    e =
      source.map { Array($0[start..<start + rows * columns]) }
      ?? [Double](repeating: 0, count: rows * columns)
  }

  /// M x.
  func times(_ x: ArraySlice<Double>) -> [Double] {
    (0..<rows).map { i in
      var sum = 0.0
      for j in 0..<columns { sum += e[i * columns + j] * x[x.startIndex + j] }
      return sum
    }
  }

  /// Mᵀ x.
  func transposedTimes(_ x: ArraySlice<Double>) -> [Double] {
    var out = [Double](repeating: 0, count: columns)
    for i in 0..<rows {
      for j in 0..<columns { out[j] += e[i * columns + j] * x[x.startIndex + i] }
    }
    return out
  }

  /// M ← M + c x yᵀ.
  mutating func addOuter(_ x: ArraySlice<Double>, _ y: ArraySlice<Double>, _ c: Double = 1) {
    for i in 0..<rows {
      for j in 0..<columns { e[i * columns + j] += c * x[x.startIndex + i] * y[y.startIndex + j] }
    }
  }

  /// M ← diag(d) M.
  mutating func scaleRows(_ d: [Double]) {
    for i in 0..<rows { for j in 0..<columns { e[i * columns + j] *= d[i] } }
  }

  /// ⟨row i of self, row i of other⟩.
  func rowProducts(_ other: HostMatrix) -> [Double] {
    (0..<rows).map { i in
      var sum = 0.0
      for j in 0..<columns { sum += e[i * columns + j] * other.e[i * columns + j] }
      return sum
    }
  }
}

/// `target[at...] += values`.
func accumulate(_ values: [Double], into target: inout [Double], at start: Int) {
  for (i, v) in values.enumerated() { target[start + i] += v }
}
