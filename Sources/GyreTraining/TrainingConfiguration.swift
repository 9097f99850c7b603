import FoundationEssentials
import GyreLayers
import GyreModels
import GyreTensors

/// How a run trains: what `training.json` of a run folder holds.
public struct TrainingConfiguration: Codable, Hashable, Sendable {
  public enum OptimizerKind: String, Codable, Hashable, Sendable, CaseIterable {
    case adamw, sgd, muon
    /// SGD that averages its parameters from the evaluation on that shows no progress.
    case ntasgd
  }
  public enum Data: String, Codable, Hashable, Sendable, CaseIterable {
    /// Each row reads its own contiguous part of the corpus; the state carries over steps.
    case stream
    /// Shuffled windows of packed documents, with resets where documents begin.
    case packed
  }

  /// Optimiser steps.
  public var steps = 1000
  /// Rows of a batch.
  public var batch = 16
  /// Tokens of a row.
  public var length = 256
  /// Batches whose gradients are averaged in one step.
  public var accumulation = 1
  public var data = Data.stream
  public var optimizer = OptimizerKind.adamw
  /// Highest learning rate η.
  public var learningRate = 3e-3
  /// η of the matrices that Muon updates; the rest take `learningRate` with AdamW.
  public var muonLearningRate = 0.02
  public var schedule = Schedule.Kind.cosine
  public var warmupSteps = 50
  /// Steps of the last part of the warm-up-stable-decay schedule.
  public var decaySteps = 200
  /// η at the end as a part of the highest.
  public var finalFraction = 0.1
  public var weightDecay = 0.1
  public var beta1 = 0.9
  public var beta2 = 0.95
  public var epsilon = 1e-8
  /// μ of SGD and Muon.
  public var momentum = 0.95
  public var nesterov = true
  /// Evaluations without progress before NT-ASGD averages.
  public var averagingPatience = 5
  /// Largest norm of all gradients together; nil for no clipping.
  public var clipNorm: Double? = 1
  public var precision = ComputePrecision.float32
  public var rematerializes = false
  public var seed: UInt64 = 0
  /// Steps between evaluations; 0 for the end only.
  public var evaluateEvery = 250
  /// Steps between checkpoints; 0 for the end only.
  public var checkpointEvery = 250
  public var keptCheckpoints = 2
  /// A loss of more than this times its running mean skips the step; nil never does.
  public var spikeFactor: Double? = 3
  /// Skipped steps in a row after which training stops.
  public var maximumSkips = 10

  public init() {}

  /// What NT-ASGD is run with (Merity, Keskar and Socher, 2017): a constant rate of 30 on gradients of
  /// norm 0.25 at most, hardly any decay.
  public mutating func setAveraging() {
    optimizer = .ntasgd
    learningRate = 30
    schedule = .constant
    warmupSteps = 0
    clipNorm = 0.25
    weightDecay = 1.2e-6
  }

  private enum CodingKeys: String, CodingKey, CaseIterable {
    case steps, batch, length, accumulation, data, optimizer, schedule, momentum, nesterov
    case precision, rematerializes, seed, beta1, beta2, epsilon
    case learningRate = "learning_rate"
    case averagingPatience = "averaging_patience"
    case muonLearningRate = "muon_learning_rate"
    case warmupSteps = "warmup_steps"
    case decaySteps = "decay_steps"
    case finalFraction = "final_fraction"
    case weightDecay = "weight_decay"
    case clipNorm = "clip_norm"
    case evaluateEvery = "evaluate_every"
    case checkpointEvery = "checkpoint_every"
    case keptCheckpoints = "kept_checkpoints"
    case spikeFactor = "spike_factor"
    case maximumSkips = "maximum_skips"
  }

  /// Reads JSON text over the defaults.
  ///
  /// - Throws: the path of the first field that is unknown, of the wrong type or impossible.
  public init(json: [UInt8]) throws(ConfigurationError) {
    self = try ConfigurationFile.read(
      json, over: TrainingConfiguration(), keys: CodingKeys.allCases.map(\.rawValue))
    try validate()
  }

  /// The file's text: sorted keys, indented; what is off is written as null.
  public func json() throws -> String {
    var fields = try JSONValue(encoding: self).members ?? [:]
    for key in [CodingKeys.clipNorm, .spikeFactor] where fields[key.rawValue] == nil {
      fields[key.rawValue] = .null
    }
    return try ConfigurationFile.text(JSONValue.object(fields))
  }

  /// - Throws: the first field that cannot be.
  public func validate() throws(ConfigurationError) {
    try require(steps, CodingKeys.steps, in: 1...1 << 40)
    try require(batch, CodingKeys.batch, in: 1...1 << 20)
    try require(length, CodingKeys.length, in: 1...1 << 24)
    try require(accumulation, CodingKeys.accumulation, in: 1...1 << 20)
    try require(warmupSteps, CodingKeys.warmupSteps, in: 0...1 << 40)
    try require(decaySteps, CodingKeys.decaySteps, in: 0...1 << 40)
    try require(evaluateEvery, CodingKeys.evaluateEvery, in: 0...1 << 40)
    try require(checkpointEvery, CodingKeys.checkpointEvery, in: 0...1 << 40)
    try require(keptCheckpoints, CodingKeys.keptCheckpoints, in: 1...1 << 20)
    try require(averagingPatience, CodingKeys.averagingPatience, in: 0...1 << 20)
    try require(maximumSkips, CodingKeys.maximumSkips, in: 1...1 << 20)
    try require(learningRate, CodingKeys.learningRate, in: 0...1e3)
    try require(muonLearningRate, CodingKeys.muonLearningRate, in: 0...1e3)
    try require(finalFraction, CodingKeys.finalFraction, in: 0...1)
    try require(weightDecay, CodingKeys.weightDecay, in: 0...1e3)
    try require(beta1, CodingKeys.beta1, in: 0...(1 - 1e-9))
    try require(beta2, CodingKeys.beta2, in: 0...(1 - 1e-9))
    try require(epsilon, CodingKeys.epsilon, in: 1e-30...1)
    try require(momentum, CodingKeys.momentum, in: 0...(1 - 1e-9))
    if let clipNorm { try require(clipNorm, CodingKeys.clipNorm, in: 1e-12...1e12) }
    if let spikeFactor { try require(spikeFactor, CodingKeys.spikeFactor, in: 1...1e12) }
  }
}
