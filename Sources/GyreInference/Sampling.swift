import GyreRecurrence
import GyreTensors
import GyreTokenizers

/// How the next token is drawn from logits.
public struct SamplingOptions: Sendable, Hashable, Codable {
  /// Divides the logits; 0 takes the most probable token always.
  public var temperature = 1.0
  /// Keeps the k most probable tokens; 0: all.
  public var topK = 0
  /// Keeps the fewest most probable tokens that together have this probability; 1: all.
  public var topP = 1.0
  /// Keeps tokens that are at least this part as probable as the most probable one; 0: all.
  public var minP = 0.0
  /// Divides positive and multiplies negative logits of recent tokens; 1: none.
  public var repetitionPenalty = 1.0
  /// How many recent tokens the penalty looks at.
  public var repetitionWindow = 64
  /// Equal seeds give equal draws on every device.
  public var seed: UInt64 = 0

  public init() {}

  /// - Throws: `invalidOption` naming the first field that cannot be.
  public func validate() throws(InferenceError) {
    func check(_ holds: Bool, _ field: String, _ rule: String) throws(InferenceError) {
      if !holds { throw .invalidOption(name: field, rule: rule) }
    }
    try check(temperature >= 0 && temperature.isFinite, "temperature", "must not be negative")
    try check(topK >= 0, "top-k", "must not be negative")
    try check(topP > 0 && topP <= 1, "top-p", "must be above 0 and at most 1")
    try check(minP >= 0 && minP <= 1, "min-p", "must be in 0...1")
    try check(
      repetitionPenalty > 0 && repetitionPenalty.isFinite, "repetition-penalty", "must be positive")
    try check(repetitionWindow >= 0, "repetition-window", "must not be negative")
  }
}

/// A token that may be drawn.
public struct Candidate: Sendable, Hashable {
  public var token: TokenID
  public var probability: Double
}

/// Draws tokens. A value: a copy draws the same from there on.
public struct Sampler: Sendable {
  public let options: SamplingOptions
  private let generator: CounterGenerator
  /// Draws made so far: the counter of the next one.
  private var draws: UInt64 = 0
  /// The last `repetitionWindow` tokens, a ring.
  private var recent: [TokenID] = []
  private var oldest = 0

  public init(_ options: SamplingOptions) {
    self.options = options
    generator = CounterGenerator(seed: options.seed, name: "sampling")
  }

  /// The same draws from here on, for a device that makes them.
  var deviceDraw: TokenDraw {
    var draw = TokenDraw()
    (draw.temperature, draw.topK, draw.topP) = (options.temperature, options.topK, options.topP)
    (draw.minP, draw.repetitionPenalty) = (options.minP, options.repetitionPenalty)
    draw.repetitionWindow = options.repetitionWindow
    (draw.seed, draw.stream, draw.firstDraw) = (generator.seed, generator.stream, Int(draws))
    return draw
  }
  /// Tokens that the repetition penalty sees, the oldest first.
  var remembered: [TokenID] { Array(recent[oldest...]) + Array(recent[..<oldest]) }

  /// Remembers a token for the repetition penalty.
  public mutating func observe(_ token: TokenID) {
    guard options.repetitionPenalty != 1, options.repetitionWindow > 0 else { return }
    if recent.count < options.repetitionWindow {
      recent.append(token)
    } else {
      recent[oldest] = token
      oldest = (oldest + 1) % recent.count
    }
  }

  /// Draws the next token and remembers it.
  ///
  /// - Throws: `noFiniteLogit`.
  public mutating func next(_ logits: [Float]) throws(InferenceError) -> TokenID {
    let candidates = try distribution(logits)
    let point = Double(generator.uniform(draws))
    draws += 1
    var sum = 0.0
    var chosen = candidates[candidates.count - 1].token
    for candidate in candidates {
      sum += candidate.probability
      if point < sum {
        chosen = candidate.token
        break
      }
    }
    observe(chosen)
    return chosen
  }

  /// The tokens that may follow, with probabilities that sum to 1: repetition penalty, temperature,
  /// top-k, top-p and min-p, in this order. Ties go to the smaller token.
  ///
  /// - Throws: `noFiniteLogit` when every logit is NaN or −∞.
  public func distribution(_ logits: [Float]) throws(InferenceError) -> [Candidate] {
    let scores = penalized(logits)
    guard let best = Sampler.argmax(scores) else { throw .noFiniteLogit }
    if options.temperature == 0 || scores[best] == .infinity {
      return [Candidate(token: TokenID(best), probability: 1)]
    }
    let top = Double(scores[best])
    var candidates: [Candidate] = []
    candidates.reserveCapacity(scores.count)
    for (i, score) in scores.enumerated() where score > -.infinity {
      let weight = Functions.exp((Double(score) - top) / options.temperature)
      candidates.append(Candidate(token: TokenID(i), probability: weight))
    }
    if options.topK > 0, options.topK < candidates.count {
      candidates.sort(by: Sampler.precedes)
      candidates.removeSubrange(options.topK...)
    }
    Sampler.normalize(&candidates)
    if options.topP < 1 { keepNucleus(&candidates) }
    if options.minP > 0 {
      let least = options.minP * (candidates.map(\.probability).max() ?? 0)
      candidates.removeAll { $0.probability < least }
      Sampler.normalize(&candidates)
    }
    return candidates
  }

  private func keepNucleus(_ candidates: inout [Candidate]) {
    // Tokens below (1 − p)/n have less than 1 − p together, so the nucleus is among the others.
    let negligible = (1 - options.topP) / Double(candidates.count)
    candidates.removeAll { $0.probability < negligible }
    candidates.sort(by: Sampler.precedes)
    var sum = 0.0
    var count = 0
    while count < candidates.count, sum < options.topP {
      sum += candidates[count].probability
      count += 1
    }
    candidates.removeSubrange(max(count, 1)...)
    Sampler.normalize(&candidates)
  }

  private func penalized(_ logits: [Float]) -> [Float] {
    var scores = logits
    for i in scores.indices where scores[i].isNaN { scores[i] = -.infinity }
    for token in Set(recent) where scores.indices.contains(Int(token)) {
      let penalty = Float(options.repetitionPenalty)
      let score = scores[Int(token)]
      scores[Int(token)] = score > 0 ? score / penalty : score * penalty
    }
    return scores
  }

  private static func argmax(_ scores: [Float]) -> Int? {
    var best: Int?
    for (i, score) in scores.enumerated() where score > (best.map { scores[$0] } ?? -.infinity) {
      best = i
    }
    return best
  }

  private static func precedes(_ a: Candidate, _ b: Candidate) -> Bool {
    a.probability != b.probability ? a.probability > b.probability : a.token < b.token
  }

  private static func normalize(_ candidates: inout [Candidate]) {
    let sum = candidates.reduce(0) { $0 + $1.probability }
    for i in candidates.indices { candidates[i].probability /= sum }
  }
}
