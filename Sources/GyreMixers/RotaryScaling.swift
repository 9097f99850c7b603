import GyreLayers
import GyreTensors

/// How rotary embeddings reach beyond the length they were trained at: rates r′ᵢ in place of
/// rᵢ = base^(−2i/R), and a factor on the rotated channels.
///
/// - `linear`: r / f (Chen et al., 2023).
/// - `dynamic`: base · (f·n/L − f + 1)^(R/(R−2)) at n > L tokens (NTK-aware).
/// - `yarn`: a ramp from r to r / f between two numbers of turns over L, and a magnitude (Peng et
///   al., "YaRN", 2023. https://arxiv.org/abs/2309.00071).
/// - `llama3`: r / f beyond a long wavelength, r below a short one, mixed between.
/// - `longrope`: r / sᵢ with short factors up to L tokens, long ones beyond (Ding et al., 2024.
///   https://arxiv.org/abs/2402.13753).
public struct RotaryScaling: Codable, Hashable, Sendable {
  public enum Kind: String, Codable, Hashable, Sendable, CaseIterable {
    case linear, dynamic, yarn, llama3, longrope
  }
  public var kind: Kind
  /// f.
  public var factor: Double
  /// L: the length before scaling.
  public var length: Double
  /// Magnitude of the rotated channels; nil: the kind's own.
  public var magnitude: Double?
  /// Turns over L between which `yarn` mixes.
  public var fastTurns, slowTurns: Double
  /// Whether `yarn` rounds the ends of its ramp outwards.
  public var roundsRamp: Bool
  /// `llama3`: L over the longest and shortest wavelength that mix.
  public var lowFrequency, highFrequency: Double
  /// `longrope`: a divisor a pair.
  public var shortFactors, longFactors: [Double]

  public init(
    kind: Kind, factor: Double, length: Double, magnitude: Double? = nil, fastTurns: Double = 32,
    slowTurns: Double = 1, roundsRamp: Bool = true, lowFrequency: Double = 1,
    highFrequency: Double = 4, shortFactors: [Double] = [], longFactors: [Double] = []
  ) {
    self.kind = kind
    self.factor = factor
    self.length = length
    self.magnitude = magnitude
    self.fastTurns = fastTurns
    self.slowTurns = slowTurns
    self.roundsRamp = roundsRamp
    self.lowFrequency = lowFrequency
    self.highFrequency = highFrequency
    self.shortFactors = shortFactors
    self.longFactors = longFactors
  }

  /// - Throws: the first field that cannot be.
  public func validate(rotated: Int) throws(ConfigurationError) {
    try require(factor > 0 && factor.isFinite, "factor", "must be positive, is \(factor)")
    try require(
      length >= 1 && length <= 1e12, "length", "must be in 1...1e12, is \(length)")
    if let magnitude { try require(magnitude.isFinite, "magnitude", "must be finite") }
    try require(
      fastTurns > 0 && slowTurns > 0 && fastTurns.isFinite && slowTurns.isFinite, "fastTurns",
      "and slowTurns must be positive")
    try require(
      lowFrequency > 0 && highFrequency > lowFrequency && highFrequency.isFinite,
      "highFrequency", "must be above lowFrequency \(lowFrequency), is \(highFrequency)")
    if kind == .dynamic { try require(rotated > 2, "kind", "dynamic needs more than 2 channels") }
    if kind == .longrope {
      for (factors, name) in [(shortFactors, "shortFactors"), (longFactors, "longFactors")] {
        try require(
          factors.count == rotated / 2 && factors.allSatisfy { $0 > 0 }, name,
          "must be \(rotated / 2) positive numbers, are \(factors.count)")
      }
    }
  }

  /// The rates of R/2 pairs for a sequence of `tokens`, and the magnitude.
  public func rates(
    base: Double, rotated: Int, tokens: Int
  ) -> (rates: [Double], magnitude: Double) {
    func plain(_ base: Double) -> [Double] {
      (0..<rotated / 2).map { Functions.pow(base, -2 * Double($0) / Double(rotated)) }
    }
    let rates = plain(base)
    switch kind {
    case .linear: return (rates.map { $0 / factor }, magnitude ?? 1)
    case .dynamic:
      let n = max(Double(tokens), length) / length
      let growth = Functions.pow(
        factor * n - (factor - 1), Double(rotated) / Double(rotated - 2))
      return (plain(base * growth), magnitude ?? 1)
    case .yarn: return (yarn(rates, base: base, rotated: rotated), magnitude ?? yarnMagnitude)
    case .llama3:
      return (
        rates.map { rate in
          let turns = length * rate / (2 * Double.pi)
          if turns > highFrequency { return rate }
          if turns < lowFrequency { return rate / factor }
          let mix = (turns - lowFrequency) / (highFrequency - lowFrequency)
          return (1 - mix) * rate / factor + mix * rate
        }, magnitude ?? 1
      )
    case .longrope:
      let divisors = Double(tokens) > length ? longFactors : shortFactors
      let own =
        factor <= 1
        ? 1 : (1 + Functions.log(factor) / Functions.log(length)).squareRoot()
      return (zip(rates, divisors).map { $0 / $1 }, magnitude ?? own)
    }
  }

  private var yarnMagnitude: Double { factor <= 1 ? 1 : 0.1 * Functions.log(factor) + 1 }

  private func yarn(_ rates: [Double], base: Double, rotated: Int) -> [Double] {
    /// The pair that makes so many turns over L.
    func pair(_ turns: Double) -> Double {
      Double(rotated) * Functions.log(length / (turns * 2 * Double.pi))
        / (2 * Functions.log(base))
    }
    var (low, high) = (pair(fastTurns), pair(slowTurns))
    if roundsRamp { (low, high) = (low.rounded(.down), high.rounded(.up)) }
    (low, high) = (max(low, 0), min(high, Double(rotated - 1)))
    if low == high { high += 0.001 }
    return rates.enumerated().map { i, rate in
      let ramp = min(max((Double(i) - low) / (high - low), 0), 1)
      return rate / factor * ramp + rate * (1 - ramp)
    }
  }
}
