import GyreLayers
import GyreTensors

/// Where the poles of diagonal state space models start: Re A = −½, Im A as the name says.
///
/// | name | Im Aₙ, n < N | |
/// | --- | --- | --- |
/// | `lin` | π n | S4D-Lin, the Fourier modes of a window |
/// | `inv` | (2N/π)(2N/(2n + 1) − 1) | S4D-Inv |
/// | `legs` | eigenvalues of the normal part of HiPPO-LegS | S4D-LegS, S5 |
///
/// Gu et al., "On the parameterization and initialization of diagonal state space models", 2022.
/// https://arxiv.org/abs/2206.11893
public enum DiagonalStart: String, Codable, Hashable, Sendable, CaseIterable {
  case lin, inv, legs

  /// Largest N of `legs`, whose eigenvalues are found by rotations.
  static let legsLimit = 64

  /// - Throws: for more states than the eigenvalues can be found of.
  func validate(states: Int, _ field: String) throws(ConfigurationError) {
    if self == .legs {
      try require(
        states <= Self.legsLimit, field, "must be at most \(Self.legsLimit) with legs, is \(states)"
      )
    }
  }

  /// Im A of N conjugate pairs, rising.
  func frequencies(_ count: Int) -> [Double] {
    let (pi, n) = (Double.pi, Double(count))
    switch self {
    case .lin: return (0..<count).map { pi * Double($0) }
    case .inv: return (0..<count).map { 2 * n / pi * (2 * n / Double(2 * $0 + 1) - 1) }.reversed()
    case .legs: return LegendreModes(count).frequencies
    }
  }
}

/// Eigenvalues −½ + iω and unit eigenvectors of the normal part of HiPPO-LegS with 2N states,
///
///     S = −½ I + K    Kₙₖ = −½ √(2n + 1) √(2k + 1) sign(n − k)
///
/// one of each conjugate pair, ω > 0 rising.
struct LegendreModes {
  let frequencies: [Double]
  /// `[2N][N]`: vector m is column m.
  let vectors: [[(re: Double, im: Double)]]

  init(_ pairs: Int) {
    let n = 2 * pairs
    // K v = iω v with v = x + iy is M (x, y) = ω (x, y) with M = [[0, K], [−K, 0]], symmetric; every
    // ω twice, for v and iv.
    var m = [Double](repeating: 0, count: 4 * n * n)
    for r in 0..<n {
      for c in 0..<n where r != c {
        let size = 0.5 * (Double((2 * r + 1) * (2 * c + 1))).squareRoot()
        let k = r > c ? -size : size
        m[r * 2 * n + n + c] = k
        m[(n + r) * 2 * n + c] = -k
      }
    }
    let (values, columns) = Self.eigen(&m, 2 * n)
    let order = values.indices.sorted { values[$0] < values[$1] }
    let chosen = (0..<pairs).map { order[n + 2 * $0] }
    frequencies = chosen.map { values[$0] }
    vectors = (0..<n).map { r in
      chosen.map { c in (columns[r * 2 * n + c], columns[(n + r) * 2 * n + c]) }
    }
  }

  /// Jacobi's rotations: eigenvalues and unit eigenvectors, the columns, of a symmetric matrix.
  private static func eigen(_ a: inout [Double], _ n: Int) -> ([Double], [Double]) {
    var v = [Double](repeating: 0, count: n * n)
    for i in 0..<n { v[i * n + i] = 1 }
    let total = a.reduce(0) { $0 + $1 * $1 }
    for _ in 0..<60 {
      var off = 0.0
      for p in 0..<n { for q in p + 1..<n { off += a[p * n + q] * a[p * n + q] } }
      if off <= 1e-26 * total { break }
      for p in 0..<n {
        for q in p + 1..<n where abs(a[p * n + q]) > 1e-300 {
          let theta = (a[q * n + q] - a[p * n + p]) / (2 * a[p * n + q])
          let t = (theta < 0 ? -1 : 1) / (abs(theta) + (theta * theta + 1).squareRoot())
          let c = 1 / (t * t + 1).squareRoot()
          let s = t * c
          for k in 0..<n {
            let (x, y) = (a[k * n + p], a[k * n + q])
            (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y)
          }
          for k in 0..<n {
            let (x, y) = (a[p * n + k], a[q * n + k])
            (a[p * n + k], a[q * n + k]) = (c * x - s * y, s * x + c * y)
            let (u, w) = (v[k * n + p], v[k * n + q])
            (v[k * n + p], v[k * n + q]) = (c * u - s * w, s * u + c * w)
          }
        }
      }
    }
    return ((0..<n).map { a[$0 * n + $0] }, v)
  }
}

extension Initializer {
  /// ln Δ with Δ log-uniform between `low` and `high`.
  static func logUniform(_ low: Double, _ high: Double) -> Initializer {
    .uniform(Functions.log(low), Functions.log(high))
  }
}

/// What follows a state space layer: gelu, then y = a ∘ σ(b) of one map to (a, b).
struct GatedOutput: Sendable {
  private let map: Linear
  private let width: Int

  init(inputs: Int, width: Int, _ p: inout ParameterBuilder) throws(ConfigurationError) {
    self.width = width
    map = try Linear("output", inputs: inputs, outputs: 2 * width, bias: .zeros, &p)
  }

  func callAsFunction(_ y: Tensor) -> Tensor {
    let parts = map(y.unary(.gelu)).split([width, width])
    return parts[0] * parts[1].sigmoid()
  }
}

/// Checks that the time-invariant systems share.
enum SystemChecks {
  static func states(_ count: Int, _ field: String = "stateSize") throws(ConfigurationError) {
    try require((1...4096).contains(count), field, "must be in 1...4096, is \(count)")
  }

  static func steps(_ low: Double, _ high: Double) throws(ConfigurationError) {
    try require(low > 0 && low <= 10, "stepLow", "must be in (0, 10], is \(low)")
    try require(high >= low && high <= 10, "stepHigh", "must be in [stepLow, 10], is \(high)")
  }

  /// Of the parameters that set the dynamics, over the others'.
  static func rate(_ value: Double) throws(ConfigurationError) {
    try require(
      value >= 0 && value <= 16, "dynamicsRate", "must be in [0, 16], is \(value)")
  }
}
