import GyreTensors

/// The direction in which a population's scores point.
public enum Estimate {
  /// Pairs whose noise is in memory at once. A constant: sums are rounded in its order.
  static let chunk = 256

  /// For each parameter in `used` what an optimiser that descends takes for a gradient:
  ///
  ///     −1/√N Σ_members f̂ s σ/√r A Bᵀ    (vectors: −1/√N Σ f̂ s σ z)
  ///
  /// one product a chunk of pairs, in an order that does not depend on how the members were scored.
  ///
  /// - Parameter weights: f̂ of each member; as many as the population has.
  public static func gradients(
    _ strategy: Perturbation.Strategy, epoch: UInt32, weights: [Double], parameters: [Parameter],
    used: Set<Int>, on device: any Device
  ) -> [Tensor?] {
    let n = weights.count
    let differences = (0..<n / 2).map { Float(weights[2 * $0] - weights[2 * $0 + 1]) }
    var sums = [Tensor?](repeating: nil, count: parameters.count)
    // Pairs whose members score the same say nothing.
    let pairs = differences.indices.filter { differences[$0] != 0 }
    for first in stride(from: 0, to: pairs.count, by: chunk) {
      let some = pairs[first..<min(first + chunk, pairs.count)]
      let members = Tensor(some.map { Int32(2 * $0) }, shape: [some.count], on: device)
      let factor = Tensor(some.map { differences[$0] }, shape: [some.count, 1], on: device)
      let noise = Perturbation.Noise(strategy, epoch: epoch, members: members)
      for leaf in used.sorted() {
        let sum = part(noise, leaf, parameters[leaf].shape, factor)
        sums[leaf] = sums[leaf].map { $0 + sum } ?? sum
      }
    }
    let scale = -1 / Double(max(n, 1)).squareRoot()
    return sums.enumerated().map { leaf, sum in
      guard let sum else {
        return used.contains(leaf) ? .zeros(parameters[leaf].shape, on: device) : nil
      }
      let isLowRank = parameters[leaf].shape.rank == 2 && strategy.rank != nil
      return sum.reshaped(parameters[leaf].shape)
        * (scale * (isLowRank ? strategy.matrixScale : strategy.sigma))
    }
  }

  /// Σ_j F_j A_j B_jᵀ, or Σ_j F_j z_j, of some pairs.
  private static func part(
    _ noise: Perturbation.Noise, _ leaf: Int, _ shape: Shape, _ factor: Tensor
  ) -> Tensor {
    let pairs = factor.shape[0]
    guard shape.rank == 2, let r = noise.strategy.rank else {
      let z = noise.full(leaf, shape, scale: 1, signed: false)
        .reshaped([pairs, shape.elementCount])
      return factor.matmul(z, transposingLeft: true, precision: .float32)
    }
    let (down, up) = noise.factors(leaf, shape, scale: 1, signed: false)
    let weighted = up.reshaped([pairs, r * shape[0]]) * factor
    return weighted.reshaped([pairs * r, shape[0]]).matmul(
      down.reshaped([pairs * r, shape[1]]), transposingLeft: true, precision: .float32)
  }
}
