/// How raw scores become the weights of directions.
public enum FitnessShaping: String, Codable, Hashable, Sendable, CaseIterable {
  /// (g − mean) / √(variance + 1e-5) over the population.
  case zScore = "z-score"
  /// The mean of the member's group subtracted, divided by the deviation of all.
  case group
  /// Each question's mean over the population subtracted, divided by the deviation of all.
  case perQuestion = "per-question"
  /// Member 0 of a group subtracted, divided by the group's deviation; the first pair counts nothing.
  case baseline
  /// rank / (N − 1) − ½, equal scores sharing their mean rank.
  case centeredRank = "centered-rank"
  /// The sign of a pair's difference, ± for its members.
  case sign
  /// g / (σ² √N): with plain SGD the step is rate · mean of g s E / σ, the finite-difference gradient.
  case gradient

  /// - Parameters:
  ///   - scores: of each member, one a question.
  ///   - group: members of a group, for `group` and `baseline`; 0: the population.
  ///   - sigma: σ of the perturbation.
  public func weights(_ scores: [[Double]], group: Int = 0, sigma: Double = 1) -> [Double] {
    let n = scores.count
    guard n > 0 else { return [] }
    let means = scores.map { $0.reduce(0, +) / Double(max($0.count, 1)) }
    func mean(_ x: some Collection<Double>) -> Double {
      x.reduce(0, +) / Double(max(x.count, 1))
    }
    func variance(_ x: some Collection<Double>) -> Double {
      let m = mean(x)
      return x.reduce(0) { $0 + ($1 - m) * ($1 - m) } / Double(max(x.count, 1))
    }
    let size = group > 0 ? min(group, n) : n
    let groups = stride(from: 0, to: n, by: size).map { $0..<min($0 + size, n) }
    switch self {
    case .zScore:
      let (m, deviation) = (mean(means), (variance(means) + 1e-5).squareRoot())
      return means.map { ($0 - m) / deviation }
    case .group:
      let deviation = (variance(means) + 1e-5).squareRoot()
      return groups.flatMap { range in
        let m = mean(means[range])
        return range.map { (means[$0] - m) / deviation }
      }
    case .perQuestion:
      let all = scores.flatMap { $0 }
      let deviation = (variance(all) + 1e-5).squareRoot()
      let questions = scores[0].count
      let each = (0..<questions).map { q in mean(scores.map { $0[q] }) }
      return scores.map { row in
        mean(zip(row, each).map { ($0 - $1) / deviation })
      }
    case .baseline:
      return groups.flatMap { range -> [Double] in
        let deviation = variance(means[range]).squareRoot() + 1e-8
        let base = means[range.lowerBound]
        return range.map {
          $0 < range.lowerBound + 2 ? 0 : (means[$0] - base) / deviation
        }
      }
    case .centeredRank:
      let order = means.indices.sorted { means[$0] < means[$1] }
      var weights = [Double](repeating: 0, count: n)
      var i = 0
      while i < n {
        var j = i
        while j + 1 < n, means[order[j + 1]] == means[order[i]] { j += 1 }
        let rank = Double(i + j) / 2
        for k in i...j { weights[order[k]] = rank / Double(max(n - 1, 1)) - 0.5 }
        i = j + 1
      }
      return weights
    case .sign:
      return means.indices.map { i in
        let other = i ^ 1
        guard other < n, means[i] != means[other] else { return 0 }
        return means[i] > means[other] ? 1 : -1
      }
    case .gradient:
      let scale = 1 / (sigma * sigma * Double(n).squareRoot())
      return means.map { $0 * scale }
    }
  }
}
