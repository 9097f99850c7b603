import FoundationEssentials
import GyreCPU
import GyreCheckpoints
import GyreLayers
import GyreModels
import GyreTensors
import GyreTokenizers
import Testing

@testable import GyreTraining

/// A run folder of its own that goes away with the test.
final class TemporaryRun {
  let folder: RunFolder

  init() throws {
    let path =
      FileManager.default.temporaryDirectory.path + "/gyre-test-\(UInt64.random(in: 0 ... .max))"
    folder = RunFolder(path)
  }
  deinit { try? FileManager.default.removeItem(atPath: folder.path) }
}

let sentence = Array("the quick brown fox jumps over the lazy dog; ".utf8)
func text(_ count: Int) -> [UInt8] {
  (0..<count).map { sentence[($0 * $0 / 7 + $0) % sentence.count] }
}

func smallModel() -> ModelConfiguration {
  var c = ModelConfiguration()
  c.width = 16
  c.layers = 2
  c.pattern = ["min_gru", "gated_delta_net"]
  c.mixers["gated_delta_net"] = .object(["headSize": .integer(8), "heads": .integer(2)])
  return c
}

func settings(_ change: (inout TrainingConfiguration) -> Void = { _ in }) -> TrainingConfiguration {
  var c = TrainingConfiguration()
  c.steps = 12
  c.batch = 2
  c.length = 8
  c.warmupSteps = 2
  c.checkpointEvery = 5
  c.evaluateEvery = 6
  change(&c)
  return c
}

func makeTrainer(
  _ folder: RunFolder, _ training: TrainingConfiguration, creates: Bool = true,
  model configuration: ModelConfiguration = smallModel()
) throws -> Trainer {
  if creates {
    try folder.create(
      corpus: Corpus(train: [text(300), text(120)], validation: [text(90)], source: "test"),
      tokenizer: ByteTokenizer(), model: configuration, training: training)
  }
  let device = try CPUDevice()
  let model = try LanguageModel(
    try folder.modelConfiguration(), source: RandomParameters(seed: 1, device: device),
    device: device)
  return try Trainer(model: model, configuration: training, folder: folder)
}

/// A weight that is not a number: three skipped steps, an error, and the other weights as they were.
func expectStopAtNaN(_ trainer: Trainer) throws {
  let bad = trainer.model.parameters[0]
  let before = try weights(trainer).dropFirst()
  bad.value = .full(.nan, bad.shape, on: bad.value.device)
  #expect(throws: TrainingError.self) { try trainer.run() }
  #expect(trainer.history.count == 3 && trainer.history.allSatisfy { $0.skipped != nil })
  #expect(try weights(trainer).dropFirst() == before)
}

func weights(_ trainer: Trainer) throws -> [[Float]] {
  try trainer.model.parameters.map { try $0.value.elements(Float.self) }
}

@Suite struct TrainerTests {
  /// An interrupted run that goes on gives the bits of one that was not interrupted: losses and
  /// weights, with carried state and over the end of an epoch.
  @Test(arguments: [
    (TrainingConfiguration.OptimizerKind.adamw, TrainingConfiguration.Data.stream),
    (.sgd, .stream), (.muon, .stream), (.adamw, .packed),
  ])
  func resumingIsExact(
    kind: TrainingConfiguration.OptimizerKind, data: TrainingConfiguration.Data
  ) throws {
    let training = settings {
      $0.optimizer = kind
      $0.data = data
      $0.accumulation = 2
    }
    let (whole, parts) = (try TemporaryRun(), try TemporaryRun())
    let first = try makeTrainer(whole.folder, training)
    try first.run()
    let interrupted = try makeTrainer(parts.folder, training)
    var steps = 0
    try interrupted.run(shouldStop: { steps == 7 }, report: { _ in steps += 1 })
    #expect(interrupted.step == 7)
    let second = try makeTrainer(parts.folder, training, creates: false)
    _ = try second.resume()
    try second.run()
    #expect(try weights(first) == weights(second))
    #expect(first.history.map(\.trainBitsPerByte) == second.history.map(\.trainBitsPerByte))
    let lines = Metrics.read(parts.folder.metrics)
    #expect(lines.map(\.step) == Array(1...12))
    #expect(lines.map(\.trainBitsPerByte) == first.history.map(\.trainBitsPerByte))
  }

  /// A process that dies between checkpoints loses the steps since the last one and no more.
  @Test func dyingLosesStepsSinceTheLastCheckpoint() throws {
    let training = settings()
    let (whole, parts) = (try TemporaryRun(), try TemporaryRun())
    let first = try makeTrainer(whole.folder, training)
    try first.run()
    struct Death: Error {}
    let dying = try makeTrainer(parts.folder, training)
    #expect(throws: Death.self) { try dying.run(report: { if $0.step == 8 { throw Death() } }) }
    let second = try makeTrainer(parts.folder, training, creates: false)
    _ = try second.resume()
    #expect(second.step == 5)
    try second.run()
    #expect(try weights(first) == weights(second))
  }

  /// An error names the file, and the field where there is one.
  @Test func damagedSettingsAreNamed() throws {
    let run = try TemporaryRun()
    _ = try makeTrainer(run.folder, settings())
    for (file, text, field) in [
      (run.folder.training, "{", ""), (run.folder.training, #"{"batch": 0}"#, "batch"),
      (run.folder.configuration, "[", ""), (run.folder.configuration, #"{"width": -1}"#, "width"),
    ] {
      try AtomicFile.write(Array(text.utf8), to: file)
      let error = #expect(throws: TrainingError.self) {
        if file == run.folder.training {
          _ = try run.folder.trainingConfiguration()
        } else {
          _ = try run.folder.modelConfiguration()
        }
      }
      let message = error?.description ?? ""
      #expect(message.hasPrefix(file + ": ") && message.contains(field), "\(message)")
      #expect(!message.contains(": :"), "\(message)")
    }
  }

  @Test func damagedCheckpointIsPassedOver() throws {
    let training = settings()
    let run = try TemporaryRun()
    try makeTrainer(run.folder, training).run()
    let newest = try #require(try run.folder.store.latest().checkpoint)
    try AtomicFile.write([1, 2, 3], to: newest.path + "/model.safetensors")
    let second = try makeTrainer(run.folder, training, creates: false)
    let rejected = try second.resume()
    #expect(rejected.count == 1 && second.step == 10)
  }

  @Test func lossFallsAndIsScored() throws {
    let run = try TemporaryRun()
    let trainer = try makeTrainer(run.folder, settings { $0.steps = 60 })
    try trainer.run()
    let losses = trainer.history.map(\.trainBitsPerByte)
    #expect(losses.last ?? 9 < 0.8 * losses[0])
    #expect(trainer.history.last?.validationBitsPerByte != nil)
  }

  /// A loss that is not a number changes nothing, is reported, and ends the run after some.
  @Test func lossThatIsNotANumberStopsTheRun() throws {
    let run = try TemporaryRun()
    let trainer = try makeTrainer(run.folder, settings { $0.maximumSkips = 3 })
    try expectStopAtNaN(trainer)
  }

  @Test func rematerializingChangesNoBits() throws {
    let (kept, again) = (try TemporaryRun(), try TemporaryRun())
    let first = try makeTrainer(kept.folder, settings())
    try first.run()
    let training = settings()
    try again.folder.create(
      corpus: Corpus(train: [text(300), text(120)], validation: [text(90)], source: "test"),
      tokenizer: ByteTokenizer(), model: smallModel(), training: training)
    let device = try CPUDevice()
    var model = try LanguageModel(
      smallModel(), source: RandomParameters(seed: 1, device: device), device: device)
    model.rematerializes = true
    let second = try Trainer(model: model, configuration: training, folder: again.folder)
    try second.run()
    #expect(try weights(first) == weights(second))
  }
}
