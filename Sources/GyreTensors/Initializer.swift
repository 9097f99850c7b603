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

  /// Gram–Schmidt in Double on a normal matrix: its condition, at most a few times its size, leaves
  /// orthogonality far below float32's rounding.
  private static func orthogonal(
    rows: Int, columns: Int, _ gain: Double, _ generator: CounterGenerator
  ) -> [Float] {
    let (n, m) = (min(rows, columns), max(rows, columns))
    var q = generator.normals(n * m).map(Double.init)
    q.withUnsafeMutableBufferPointer { q in
      for i in 0..<n {
        let row = UnsafeMutableBufferPointer(rebasing: q[i * m..<(i + 1) * m])
        for j in 0..<i {
          let unit = UnsafeBufferPointer(rebasing: q[j * m..<(j + 1) * m])
          Lanes.subtract(Lanes.dot(unit, UnsafeBufferPointer(row)), unit, from: row)
        }
        let rowOnly = UnsafeBufferPointer(row)
        let scale = 1 / max(Lanes.dot(rowOnly, rowOnly).squareRoot(), 1e-30)
        for c in 0..<m { row[c] *= scale }
      }
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

/// Sums over rows in eight lanes: the compiler may not reorder sums of its own accord.
private enum Lanes {
  private typealias Lane = SIMD8<Double>

  static func dot(_ a: UnsafeBufferPointer<Double>, _ b: UnsafeBufferPointer<Double>) -> Double {
    let whole = a.count / 8 * 8
    var sum = Lane.zero
    guard let x = a.baseAddress, let y = b.baseAddress else { return 0 }
    var c = 0
    while c < whole {
      let u = UnsafeRawPointer(x + c).loadUnaligned(as: Lane.self)
      let v = UnsafeRawPointer(y + c).loadUnaligned(as: Lane.self)
      sum += u * v
      c &+= 8
    }
    var total = sum.sum()
    for c in whole..<a.count { total += a[c] * b[c] }
    return total
  }

  /// y − factor · x.
  static func subtract(
    _ factor: Double, _ x: UnsafeBufferPointer<Double>, from y: UnsafeMutableBufferPointer<Double>
  ) {
    let whole = x.count / 8 * 8
    guard let source = x.baseAddress, let target = y.baseAddress else { return }
    let factors = Lane(repeating: factor)
    var c = 0
    while c < whole {
      let u = UnsafeRawPointer(source + c).loadUnaligned(as: Lane.self)
      let place = UnsafeMutableRawPointer(target + c)
      place.storeBytes(of: place.loadUnaligned(as: Lane.self) - factors * u, as: Lane.self)
      c &+= 8
    }
    for c in whole..<x.count { y[c] -= factor * x[c] }
  }
}
