import GyreCPU
import GyreCheckpoints
import GyreDistributed
import GyreLayers
import GyreModels
import GyreTensors
import GyreTokenizers
import Testing

@testable import GyreTraining

@Suite struct ParallelTests {
  /// Every kind of state: linear recurrences, a delta rule with its convolutions, a nonlinear cell, token
  /// shifts, keys and values.
  static let patterns = [
    ["min_gru", "gated_delta_net"], ["lstm"], ["rwkv7"], ["softmax_attention", "min_gru"],
  ]

  private static func train(
    _ folder: RunFolder, _ training: TrainingConfiguration, ranks: Int, parts: Int,
    resumes: Bool = false
  ) throws -> (losses: [Double], norms: [Double], weights: [[Float]]) {
    let runs = try RankGroup.local(count: ranks) { group in
      let device = try CPUDevice()
      let parallel = try Parallelism(HostCommunicator(group, device: device), parts: parts)
      let model = try LanguageModel(
        try folder.modelConfiguration(), source: RandomParameters(seed: 1, device: device),
        device: device)
      let trainer = try Trainer(
        model: model, configuration: training, folder: folder, parallel: parallel)
      if resumes { _ = try trainer.resume() }
      // Nobody may write while others still read.
      try group.barrier()
      try trainer.run()
      return (
        trainer.history.map(\.trainBitsPerByte), trainer.history.map(\.gradientNorm),
        try weights(trainer)
      )
    }
    // All ranks hold the same bits.
    for run in runs { #expect(run.2 == runs[0].2) }
    return runs[0]
  }

  private static func folder(
    _ pattern: [String], _ training: TrainingConfiguration
  ) throws -> TemporaryRun {
    let run = try TemporaryRun()
    var model = smallModel()
    model.pattern = pattern
    if !pattern.contains("gated_delta_net") { model.mixers = [:] }
    if pattern.contains("rwkv7") { model.mixers["rwkv7"] = .object(["headSize": .integer(8)]) }
    try run.folder.create(
      corpus: Corpus(train: [text(900), text(320)], validation: [text(90)], source: "test"),
      tokenizer: ByteTokenizer(), model: model, training: training)
    return run
  }

  /// Losses, gradient norms and weights are those of one process but for rounding, however rows and tokens
  /// are spread; with carried state and with packed documents.
  @Test(arguments: patterns, [TrainingConfiguration.Data.stream, .packed])
  func spreadRunsLearnTheSame(
    pattern: [String], data: TrainingConfiguration.Data
  ) throws {
    let training = settings {
      $0.steps = 5
      $0.batch = 4
      $0.length = 24
      $0.data = data
      $0.optimizer = .sgd
      $0.learningRate = 0.05
      $0.accumulation = 2
    }
    let run = try ParallelTests.folder(pattern, training)
    let alone = try ParallelTests.train(run.folder, training, ranks: 1, parts: 1)
    for (ranks, parts) in [(2, 1), (2, 2), (4, 2), (3, 3)] {
      let other = try ParallelTests.folder(pattern, training)
      let spread = try ParallelTests.train(other.folder, training, ranks: ranks, parts: parts)
      for (a, b) in zip(alone.losses + alone.norms, spread.losses + spread.norms) {
        #expect(abs(a - b) <= 2e-5 * abs(a), "\(ranks) ranks, \(parts) parts: \(a) and \(b)")
      }
      #expect(spread.losses.count == 5)
      for (a, b) in zip(alone.weights.joined(), spread.weights.joined()) {
        #expect(abs(a - b) <= 1e-4 * max(1, abs(a)))
      }
    }
  }

  /// A checkpoint of two processes goes on in one, in four, and in two with cut rows.
  @Test func checkpointsOutliveTheNumberOfRanks() throws {
    let training = settings {
      $0.steps = 4
      $0.batch = 4
      $0.length = 24
      $0.checkpointEvery = 2
      $0.optimizer = .sgd
      // A schedule that does not know the end: both runs take the same first steps.
      $0.schedule = .constant
    }
    var longer = training
    longer.steps = 8
    let whole = try ParallelTests.folder(ParallelTests.patterns[0], longer)
    let reference = try ParallelTests.train(whole.folder, longer, ranks: 1, parts: 1)
    for (ranks, parts) in [(1, 1), (4, 1), (2, 2)] {
      let run = try ParallelTests.folder(ParallelTests.patterns[0], longer)
      _ = try ParallelTests.train(run.folder, training, ranks: 2, parts: 1)
      let resumed = try ParallelTests.train(
        run.folder, longer, ranks: ranks, parts: parts, resumes: true)
      #expect(resumed.losses.count == 8)
      for (a, b) in zip(reference.losses, resumed.losses) { #expect(abs(a - b) <= 2e-5 * abs(a)) }
    }
  }

  @Test func whatCannotBeCutIsNamed() throws {
    let training = settings { $0.batch = 3 }
    let run = try ParallelTests.folder(ParallelTests.patterns[0], training)
    for (ranks, parts, word) in [(2, 1, "batch"), (3, 3, "length"), (3, 2, "sequence parts")] {
      #expect {
        try ParallelTests.train(run.folder, training, ranks: ranks, parts: parts)
      } throws: { "\($0)".contains(word) }
    }
  }

  /// A rank that dies ends the others with its name; the checkpoint before stays whole.
  @Test func aLostRankEndsTheOthers() throws {
    let training = settings {
      $0.steps = 40
      $0.checkpointEvery = 2
    }
    let run = try ParallelTests.folder(ParallelTests.patterns[0], training)
    let folder = run.folder
    struct Dies: Error {}
    let outcomes = try RankGroup.outcomes(count: 2) { group in
      let device = try CPUDevice()
      let parallel = try Parallelism(HostCommunicator(group, device: device))
      let model = try LanguageModel(
        try folder.modelConfiguration(), source: RandomParameters(seed: 1, device: device),
        device: device)
      let trainer = try Trainer(
        model: model, configuration: training, folder: folder, parallel: parallel)
      try trainer.run(report: { metrics in if group.rank == 1, metrics.step == 5 { throw Dies() } })
    }
    #expect { try outcomes[0].get() } throws: { "\($0)".contains("rank 1 is gone") }
    #expect(throws: Dies.self) { try outcomes[1].get() }
    #expect(try folder.store.latest().checkpoint != nil)
  }
}
