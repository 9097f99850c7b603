import GyreTensors

/// A map from one observation to the next, and what is asked of it.
public protocol DynamicalSystem {
  /// Numbers of a state; the first ones are observed.
  var dimensions: Int { get }
  func next(_ state: [Double]) -> [Double]
}

extension DynamicalSystem {
  /// States after `start`.
  public func orbit(from start: [Double], steps: Int) -> [[Double]] {
    var (states, z) = ([[Double]](), start)
    states.reserveCapacity(steps)
    for _ in 0..<steps {
      z = next(z)
      states.append(z)
    }
    return states
  }

  /// The largest Lyapunov exponent a step: mean growth of the distance of two close orbits, brought
  /// close again after each step (Benettin, 1976).
  public func lyapunovExponent(from start: [Double], steps: Int) -> Double {
    let distance = 1e-7
    var (z, w) = (start, start)
    w[0] += distance
    var sum = 0.0
    for _ in 0..<steps {
      (z, w) = (next(z), next(w))
      let gap = zip(w, z).map { $0 - $1 }
      let length = gap.reduce(0) { $0 + $1 * $1 }.squareRoot()
      guard length.isFinite, length > 0 else { return .nan }
      sum += Functions.log(length / distance)
      w = zip(z, gap).map { $0 + $1 * distance / length }
    }
    return sum / Double(steps)
  }
}

/// The convection model of Lorenz, 1963, in units of its attractor: every coordinate has mean 0 and
/// deviation 1 there.
///
///     x' = σ(y − x)    y' = x(ρ − z) − y    z' = xy − βz
public struct Lorenz63: DynamicalSystem {
  /// Time of a step.
  public let interval: Double
  /// Mean and deviation of the attractor with σ = 10, ρ = 28, β = 8/3.
  static let scales = [(0.0, 7.92), (0.0, 9.01), (23.55, 8.62)]
  public var dimensions: Int { 3 }

  public init(interval: Double = 0.01) { self.interval = interval }

  /// One step of the fourth-order Runge–Kutta method.
  public func next(_ state: [Double]) -> [Double] {
    let u = zip(state, Lorenz63.scales).map { $0 * $1.1 + $1.0 }
    func slope(_ u: [Double]) -> [Double] {
      [10 * (u[1] - u[0]), u[0] * (28 - u[2]) - u[1], u[0] * u[1] - 8 / 3 * u[2]]
    }
    func moved(_ k: [Double], _ h: Double) -> [Double] { zip(u, k).map { $0 + h * $1 } }
    let k1 = slope(u)
    let k2 = slope(moved(k1, interval / 2))
    let k3 = slope(moved(k2, interval / 2))
    let k4 = slope(moved(k3, interval))
    return (0..<3).map { i in
      let v = u[i] + interval / 6 * (k1[i] + 2 * k2[i] + 2 * k3[i] + k4[i])
      return (v - Lorenz63.scales[i].0) / Lorenz63.scales[i].1
    }
  }

  /// A point of the attractor that the seed decides.
  public func point(seed: UInt64) -> [Double] {
    let noise = CounterGenerator(seed: seed, name: "lorenz63").normals(3)
    return orbit(from: noise.map(Double.init), steps: 3000)[2999]
  }
}
