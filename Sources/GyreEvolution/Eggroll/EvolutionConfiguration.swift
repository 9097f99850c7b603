import FoundationEssentials
import GyreLayers
import GyreModels
import GyreTensors

/// How a float32 model evolves: what `evolution.json` of a run folder holds.
public struct EvolutionConfiguration: Codable, Hashable, Sendable {
  public enum OptimizerKind: String, Codable, Hashable, Sendable, CaseIterable {
    case sgd, momentum, adamw
  }
  /// Members of a generation, an even number.
  public var population = 256
  public var generations = 500
  /// r of the perturbations; 0: full matrices, the classical evolution strategy.
  public var rank = 1
  public var sigma = 0.02
  /// Factors on σ and the learning rate every generation.
  public var sigmaDecay = 1.0
  public var learningRateDecay = 1.0
  /// η; with unit-variance weights pure noise moves an entry by about η σ.
  public var learningRate = 1.0
  public var optimizer = OptimizerKind.sgd
  public var momentum = 0.9
  public var weightDecay = 0.0
  public var shaping = FitnessShaping.zScore
  /// Members that share data; 0: all.
  public var group = 0
  public var noiseReuse = 1
  /// Whether vectors (biases, norms) are perturbed, not matrices only.
  public var vectors = true
  /// Rows of a batch that go through the model at once: bounds the memory.
  public var chunkRows = 256
  /// Rows of text, prompts or episodes that score one member.
  public var rows = 1
  /// Tokens of a row.
  public var length = 128
  /// What is scored: loss, accuracy, an environment's name, or a program.
  public var reward = "loss"
  public var seed: UInt64 = 0
  public var evaluateEvery = 25
  public var checkpointEvery = 100
  public var keptCheckpoints = 2

  public init() {}

  enum CodingKeys: String, CodingKey, CaseIterable {
    case population, generations, rank, sigma, optimizer, momentum, shaping, group, vectors, rows
    case length, reward, seed
    case sigmaDecay = "sigma_decay"
    case learningRateDecay = "learning_rate_decay"
    case learningRate = "learning_rate"
    case weightDecay = "weight_decay"
    case noiseReuse = "noise_reuse"
    case chunkRows = "chunk_rows"
    case evaluateEvery = "evaluate_every"
    case checkpointEvery = "checkpoint_every"
    case keptCheckpoints = "kept_checkpoints"
  }

  /// Reads JSON text over the defaults.
  ///
  /// - Throws: the path of the first field that is unknown, of the wrong type or impossible.
  public init(json: [UInt8]) throws(ConfigurationError) {
    self = try ConfigurationFile.read(
      json, over: EvolutionConfiguration(), keys: CodingKeys.allCases.map(\.rawValue))
    try validate()
  }

  public func json() throws -> String { try ConfigurationFile.text(self) }

  /// - Throws: the first field that cannot be.
  public func validate() throws(ConfigurationError) {
    try require(population, CodingKeys.population, in: 2...1 << 24)
    try require(population % 2 == 0, "population", "must be even, is \(population)")
    try require(generations, CodingKeys.generations, in: 1...1 << 31)
    try require(rank, CodingKeys.rank, in: 0...1 << 12)
    try require(sigma, CodingKeys.sigma, in: 1e-12...1e6)
    try require(sigmaDecay, CodingKeys.sigmaDecay, in: 1e-3...1)
    try require(learningRateDecay, CodingKeys.learningRateDecay, in: 1e-3...1)
    try require(learningRate, CodingKeys.learningRate, in: 0...1e6)
    try require(momentum, CodingKeys.momentum, in: 0...(1 - 1e-9))
    try require(weightDecay, CodingKeys.weightDecay, in: 0...1e3)
    try require(group, CodingKeys.group, in: 0...population)
    try require(group % 2 == 0, "group", "must be even, so that pairs share data, is \(group)")
    try require(
      shaping != .baseline || group == 0 || group >= 4, "group",
      "must be at least 4 with the shaping baseline, is \(group)")
    try require(noiseReuse, CodingKeys.noiseReuse, in: 0...1 << 31)
    try require(chunkRows, CodingKeys.chunkRows, in: 1...1 << 20)
    try require(rows, CodingKeys.rows, in: 1...1 << 20)
    try require(length, CodingKeys.length, in: 1...1 << 20)
    try require(evaluateEvery, CodingKeys.evaluateEvery, in: 0...1 << 40)
    try require(checkpointEvery, CodingKeys.checkpointEvery, in: 0...1 << 40)
    try require(keptCheckpoints, CodingKeys.keptCheckpoints, in: 1...1 << 20)
  }

  /// σ of a generation, counted from 0.
  func sigma(at generation: Int) -> Double {
    sigma * Functions.pow(sigmaDecay, Double(generation))
  }
  func strategy(at generation: Int) -> Perturbation.Strategy {
    Perturbation.Strategy(
      seed: seed &+ 0x4547_4752_4F4C_4C, sigma: sigma(at: generation),
      rank: rank == 0 ? nil : rank, includesVectors: vectors)
  }
  func epoch(_ generation: Int) -> UInt32 {
    noiseReuse == 0 ? 0 : UInt32(truncatingIfNeeded: generation / noiseReuse)
  }
}
