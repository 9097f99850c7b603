import GyreLayers
import GyreTensors

/// How far the update of rank r is from that of full rank: theory says 1/r (arXiv 2511.16652, theorem 4).
///
/// The network is y = W x, the fitness Σ_i sin y_i. For noise of full rank the direction is known exactly:
///
///     E[f(W + σE) E]_{ik} / σ = cos(y_i) x_k exp(−σ²|x|²/2)
///
/// That of rank r is measured with this library's own perturbed forward pass and noise.
public enum RankEvidence {
  public struct Row: Sendable, Codable {
    public var rank: Int
    /// ‖g_r − g‖ / ‖g‖ along g, and the standard error of the measurement.
    public var distance, standardError: Double
  }
  public struct Result: Sendable, Codable {
    public var rows: [Row]
    /// Slope of log distance over log rank, by least squares.
    public var slope: Double
  }

  /// - Parameter pairs: antithetic pairs drawn for every rank.
  public static func measure(
    ranks: [Int] = [1, 2, 4, 8, 16], pairs: Int = 1 << 22, size: Int = 4, seed: UInt64 = 1,
    device: any Device
  ) throws -> Result {
    let sigma = 0.45
    let x = CounterGenerator(seed: seed, name: "x").normals(size)
    let norm = x.reduce(0.0) { $0 + Double($1) * Double($1) }.squareRoot()
    let unit = x.map { $0 / Float(norm) }
    // Slopes of the fitness that do not vanish.
    let y = (0..<size).map { Float(0.2 + 0.3 * Double($0) / Double(size)) }
    let weight = y.flatMap { value in unit.map { value * $0 } }
    let parameter = Parameter(
      name: "W", value: Tensor(weight, shape: [size, size], on: device))
    let factor = Functions.exp(-sigma * sigma / 2)
    let exact = y.flatMap { value in
      unit.map { Functions.cos(Double(value)) * Double($0) * factor }
    }
    let size2 = exact.reduce(0) { $0 + $1 * $1 }
    var rows: [Row] = []
    for rank in ranks {
      let strategy = Perturbation.Strategy(
        seed: seed &+ UInt64(rank), sigma: sigma, rank: rank, includesVectors: false)
      // The estimate along g in blocks, whose spread is the error of their mean.
      var along: [Double] = []
      let block = 1 << 15
      for first in stride(from: 0, to: pairs, by: block) {
        along.append(
          try project(
            strategy, parameter, unit, first, min(block, pairs - first), exact, device) / size2)
      }
      let mean = along.reduce(0, +) / Double(along.count)
      let variance =
        along.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(max(along.count - 1, 1))
      rows.append(
        Row(
          rank: rank, distance: abs(1 - mean),
          standardError: (variance / Double(along.count)).squareRoot()))
    }
    return Result(rows: rows, slope: slope(rows))
  }

  /// ⟨ĝ, g⟩ for some pairs. By symmetry the mean of ĝ is a multiple of g, up to terms that vanish with
  /// the number of pairs.
  private static func project(
    _ strategy: Perturbation.Strategy, _ parameter: Parameter, _ x: [Float], _ first: Int,
    _ pairs: Int, _ exact: [Double], _ device: any Device
  ) throws -> Double {
    let n = x.count
    let members = (2 * first..<2 * (first + pairs)).map { Int32($0) }
    let perturbation = Perturbation(
      strategy, epoch: 0, members: members, parameters: [parameter], on: device)
    let input = Tensor(
      Array(repeatElement(x, count: members.count).joined()), shape: [members.count, 1, n],
      on: device)
    let found = try Perturbation.$current.withValue(perturbation) {
      try input.linear(parameter.value).unary(.sine).floats()
    }
    let even = Tensor((0..<pairs).map { Int32(2 * (first + $0)) }, shape: [pairs], on: device)
    let (down, up) = Perturbation.Noise(strategy, epoch: 0, members: even)
      .factors(0, [n, n], scale: 1, signed: false)
    let (b, a) = (try down.floats(), try up.floats())
    let r = strategy.rank ?? 1
    // Only E x matters of E, and its part along g: Σ_i cos(y_i) (E u)_i.
    var sum = 0.0
    let scale = 1 / Double(r).squareRoot()
    let slopes = (0..<n).map { i in exact[i * n] / Double(x[0]) }
    for j in 0..<pairs {
      var difference = 0.0
      for i in 0..<n {
        difference += Double(found[2 * j * n + i]) - Double(found[(2 * j + 1) * n + i])
      }
      var along = 0.0
      for l in 0..<r {
        var dot = 0.0
        for k in 0..<n { dot += Double(b[(j * r + l) * n + k]) * Double(x[k]) }
        var weighted = 0.0
        for i in 0..<n { weighted += slopes[i] * Double(a[(j * r + l) * n + i]) }
        along += dot * weighted
      }
      sum += difference / 2 * along * scale / strategy.sigma
    }
    return sum / Double(pairs)
  }

  static func slope(_ rows: [Row]) -> Double {
    let points = rows.map {
      (Functions.log(Double($0.rank)), Functions.log(max($0.distance, 1e-300)))
    }
    let n = Double(points.count)
    let (mx, my) = (points.reduce(0) { $0 + $1.0 } / n, points.reduce(0) { $0 + $1.1 } / n)
    let top = points.reduce(0) { $0 + ($1.0 - mx) * ($1.1 - my) }
    let bottom = points.reduce(0) { $0 + ($1.0 - mx) * ($1.0 - mx) }
    return top / bottom
  }
}
