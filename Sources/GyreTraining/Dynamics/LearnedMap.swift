import GyreRecurrence
import GyreTensors

/// A trained piecewise-linear network on the host, in Double: z ← A z + U φ(V z) + h.
public struct LearnedMap: DynamicalSystem, Sendable {
  public let dimensions: Int
  let form: PiecewiseLinear.Form
  /// Units of φ's argument.
  let width: Int
  let nonlinearUnits: Int
  let A, h, h2: [Double]
  /// `[dimensions, width]` and `[width, dimensions]`.
  let U, V: [Double]

  /// φ and φ' at V z.
  private func bend(_ z: [Double]) -> (value: [Double], slope: [Double]) {
    var (value, slope) = (
      [Double](repeating: 0, count: width), [Double](repeating: 0, count: width)
    )
    for k in 0..<width {
      var a = form == .shallow ? 0 : z[k]
      if form == .shallow {
        for i in 0..<dimensions { a += V[k * dimensions + i] * z[i] }
      }
      switch form {
      case .shallow:
        let b = a + h2[k]
        value[k] = max(b, 0) - max(a, 0)
        slope[k] = (b > 0 ? 1 : 0) - (a > 0 ? 1 : 0)
      case .standard, .almostLinear:
        let isBent = form == .standard || k >= width - nonlinearUnits
        value[k] = isBent ? max(a, 0) : a
        slope[k] = isBent && a <= 0 ? 0 : 1
      }
    }
    return (value, slope)
  }

  public func next(_ z: [Double]) -> [Double] {
    let bent = bend(z).value
    return (0..<dimensions).map { i in
      var sum = A[i] * z[i] + h[i]
      for k in 0..<width { sum += U[i * width + k] * bent[k] }
      return sum
    }
  }

  /// ‖J‖₂ at z by power iteration on JᵀJ.
  public func jacobianNorm(_ z: [Double], iterations: Int = 12) -> Double {
    let slope = bend(z).slope
    var v = (0..<dimensions).map { 1 + 0.1 * Double($0) }
    var norm = 0.0
    for _ in 0..<iterations {
      let length = v.reduce(0) { $0 + $1 * $1 }.squareRoot()
      guard length > 0, length.isFinite else { return norm }
      v = v.map { $0 / length }
      let u = times(v, slope)
      norm = u.reduce(0) { $0 + $1 * $1 }.squareRoot()
      v = transposedTimes(u, slope)
    }
    return norm
  }

  private func times(_ v: [Double], _ slope: [Double]) -> [Double] {
    var inner = form == .shallow ? [Double](repeating: 0, count: width) : v
    if form == .shallow {
      for k in 0..<width where slope[k] != 0 {
        for i in 0..<dimensions { inner[k] += V[k * dimensions + i] * v[i] }
      }
    }
    return (0..<dimensions).map { i in
      (0..<width).reduce(A[i] * v[i]) { $0 + U[i * width + $1] * slope[$1] * inner[$1] }
    }
  }

  private func transposedTimes(_ u: [Double], _ slope: [Double]) -> [Double] {
    var inner = [Double](repeating: 0, count: width)
    for k in 0..<width where slope[k] != 0 {
      for i in 0..<dimensions { inner[k] += U[i * width + k] * u[i] }
      inner[k] *= slope[k]
    }
    return (0..<dimensions).map { i in
      let direct = A[i] * u[i]
      guard form == .shallow else { return direct + inner[i] }
      return (0..<width).reduce(direct) { $0 + V[$1 * dimensions + i] * inner[$1] }
    }
  }

  /// Which ReLUs are open at z: the symbolic code of a piecewise-linear orbit.
  public func symbol(_ z: [Double]) -> String {
    let first = form == .almostLinear ? width - nonlinearUnits : 0
    return bend(z).slope[first...].map { $0 == 0 ? "0" : "1" }.joined()
  }
}
