/// How a parameter starts.
public enum Initializer: Sendable {
  case zeros
  case constant(Double)
  case normal(standardDeviation: Double, mean: Double = 0)
  case uniform(Double, Double)
  /// Columns or rows orthonormal times `gain`; for matrices.
  case orthogonal(gain: Double)
  /// Any function of the element count and a generator of the parameter's own.
  case values(@Sendable (Int, CounterGenerator) -> [Float])

  /// Uniform in ±1/√fanIn: PyTorch's Linear.
  public static func fanIn(_ fanIn: Int) -> Initializer {
    let bound = 1 / Double(max(fanIn, 1)).squareRoot()
    return .uniform(-bound, bound)
  }

  /// A function of the element's index.
  public static func each(_ f: @escaping @Sendable (Int) -> Double) -> Initializer {
    .values { count, _ in (0..<count).map { Float(f($0)) } }
  }

  /// Δ-bias of Mamba: τ = exp(U(0,1)(ln high − ln low) + ln low), max(τ, 1e-4), inverse softplus.
  public static func mambaStep(low: Double = 0.001, high: Double = 0.1) -> Initializer {
    .values { count, generator in
      generator.uniforms(count).map { u in
        let span = Functions.log(high) - Functions.log(low)
        let tau = max(Functions.exp(Double(u) * span + Functions.log(low)), 1e-4)
        return Float(tau + Functions.log(-Functions.expm1(-tau)))
      }
    }
  }

  /// The elements of a parameter of `shape`.
  public func elements(_ shape: Shape, _ generator: CounterGenerator) -> [Float] {
    let count = shape.elementCount
    switch self {
    case .zeros: return [Float](repeating: 0, count: count)
    case .constant(let value): return [Float](repeating: Float(value), count: count)
    case .normal(let deviation, let mean):
      return generator.normals(count).map { Float(mean) + Float(deviation) * $0 }
    case .uniform(let low, let high): return generator.uniforms(count, Float(low), Float(high))
    case .orthogonal(let gain):
      return Initializer.orthogonal(rows: shape.rowCount, columns: shape.last, gain, generator)
    case .values(let make): return make(count, generator)
    }
  }

  /// Gram–Schmidt, twice for stability, on a normal matrix.
  private static func orthogonal(
    rows: Int, columns: Int, _ gain: Double, _ generator: CounterGenerator
  ) -> [Float] {
    let (n, m) = (min(rows, columns), max(rows, columns))
    let g = generator.normals(n * m)
    var q = [Double](repeating: 0, count: n * m)
    for i in 0..<n {
      var v = (0..<m).map { Double(g[i * m + $0]) }
      for _ in 0..<2 {
        for j in 0..<i {
          var dot = 0.0
          for c in 0..<m { dot += v[c] * q[j * m + c] }
          for c in 0..<m { v[c] -= dot * q[j * m + c] }
        }
      }
      let norm = v.reduce(0) { $0 + $1 * $1 }.squareRoot()
      for c in 0..<m { q[i * m + c] = v[c] / max(norm, 1e-30) }
    }
    var result = [Float](repeating: 0, count: rows * columns)
    for r in 0..<rows {
      for c in 0..<columns {
        result[r * columns + c] = Float(gain * (rows <= columns ? q[r * m + c] : q[c * m + r]))
      }
    }
    return result
  }
}
