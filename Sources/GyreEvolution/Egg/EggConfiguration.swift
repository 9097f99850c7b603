import FoundationEssentials
import GyreLayers
import GyreModels
import GyreRecurrence
import GyreTensors

/// How EGG evolves: what `evolution.json` of a run folder holds.
public struct EggConfiguration: Codable, Hashable, Sendable {
  public enum Schedule: String, Codable, Hashable, Sendable, CaseIterable {
    /// α falls from `alpha` to `finalAlpha` by the same factor every generation.
    case exponential
    /// α = max(1 / (0.015 t + 1), `finalAlpha`), the published schedule.
    case published
  }

  public enum Votes: String, Codable, Hashable, Sendable, CaseIterable {
    /// Each generation's votes alone move weights, as published.
    case fresh
    /// Votes too weak to move a weight are kept and added to the next ones.
    case carried
  }

  /// D.
  public var width = 32
  public var layers = 1
  /// Standard deviation of a matrix's first weights; 16 is one, and what was published.
  public var deviation = 3.0
  /// Members scored in one generation, an even number.
  public var population = 4096
  /// Bytes that every member reads in one generation.
  public var tokens = 16
  public var generations = 6000
  /// Streams that the text is cut into; equal groups of members share one.
  public var streams = 2048
  /// σ of `EggNoise`: the perturbation of a weight is about 16·2^−σ.
  public var sigmaShift = 4
  /// The part of the weights that noise alone would move in a generation, at first and at last.
  public var alpha = 0.3
  public var finalAlpha = 0.004
  public var schedule = Schedule.exponential
  public var votes = Votes.carried
  /// Generations that share one noise; 0: the same noise always.
  public var noiseReuse = 1
  public var seed: UInt64 = 0
  /// Generations between evaluations and between checkpoints; 0: at the end only.
  public var evaluateEvery = 500
  public var checkpointEvery = 1000
  public var keptCheckpoints = 2

  public init() {}

  enum CodingKeys: String, CodingKey, CaseIterable {
    case width, layers, deviation, population, tokens, generations, streams, alpha, schedule, votes
    case seed
    case sigmaShift = "sigma_shift"
    case finalAlpha = "final_alpha"
    case noiseReuse = "noise_reuse"
    case evaluateEvery = "evaluate_every"
    case checkpointEvery = "checkpoint_every"
    case keptCheckpoints = "kept_checkpoints"
  }

  /// Reads JSON text over the defaults.
  ///
  /// - Throws: the path of the first field that is unknown, of the wrong type or impossible.
  public init(json: [UInt8]) throws(ConfigurationError) {
    self = try ConfigurationFile.read(
      json, over: EggConfiguration(), keys: CodingKeys.allCases.map(\.rawValue))
    try validate()
  }

  public func json() throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    return String(decoding: try encoder.encode(self), as: UTF8.self) + "\n"
  }

  /// - Throws: the first field that cannot be.
  public func validate() throws(ConfigurationError) {
    try require(width, CodingKeys.width, in: 1...4096)
    try require(layers, CodingKeys.layers, in: 0...1024)
    try require(
      deviation >= 0 && deviation <= 127, "deviation", "must be in 0...127, is \(deviation)")
    try require(population, CodingKeys.population, in: 2...1 << 24)
    try require(population % 2 == 0, "population", "must be even, is \(population)")
    try require(tokens, CodingKeys.tokens, in: 1...1 << 20)
    try require(generations, CodingKeys.generations, in: 1...1 << 31)
    try require(streams, CodingKeys.streams, in: 1...population / 2)
    try require(
      population % (2 * streams) == 0, "streams",
      "must divide the \(population / 2) pairs, is \(streams)")
    try require(sigmaShift, CodingKeys.sigmaShift, in: 0...20)
    try require(alpha > 0 && alpha <= 1, "alpha", "must be above 0 and at most 1, is \(alpha)")
    try require(
      finalAlpha > 0 && finalAlpha <= alpha, "final_alpha",
      "must be above 0 and at most alpha, is \(finalAlpha)")
    try require(noiseReuse, CodingKeys.noiseReuse, in: 0...1 << 31)
    try require(evaluateEvery, CodingKeys.evaluateEvery, in: 0...1 << 40)
    try require(checkpointEvery, CodingKeys.checkpointEvery, in: 0...1 << 40)
    try require(keptCheckpoints, CodingKeys.keptCheckpoints, in: 1...1 << 20)
  }

  public var shape: EggShape { EggShape(width: width, layers: layers) }

  /// α of a generation, counted from 0.
  public func alpha(at generation: Int) -> Double {
    switch schedule {
    case .published: return max(1 / (0.015 * Double(generation) + 1), finalAlpha)
    case .exponential:
      let progress = Double(generation) / Double(max(generations - 1, 1))
      return alpha * Functions.pow(finalAlpha / alpha, min(progress, 1))
    }
  }

  /// τ = trunc(16 Φ⁻¹(1 − α/2)).
  public static func threshold(alpha: Double) -> Int {
    alpha >= 1 ? 0 : Int(16 * normalQuantile(1 - alpha / 2))
  }

  /// The carried votes of one step: noise alone, of deviation 256 √pairs a generation, then moves the part α
  /// of the weights.
  func carriedLimit(at generation: Int) -> Int {
    let noise = 256 * (Double(population) / 2).squareRoot()
    return Int(min(noise / alpha(at: generation).squareRoot(), Double(Int32.max)))
  }

  /// The update of a generation.
  func update(_ noise: EggNoise, at generation: Int) -> EggUpdate {
    switch votes {
    case .fresh:
      EggUpdate(
        shape, noise: noise, threshold: Self.threshold(alpha: alpha(at: generation)))
    case .carried: EggUpdate(shape, noise: noise, carriedLimit: carriedLimit(at: generation))
    }
  }

  /// The noise number of a generation.
  func epoch(_ generation: Int) -> UInt32 {
    noiseReuse == 0 ? 0 : UInt32(truncatingIfNeeded: generation / noiseReuse)
  }
}
