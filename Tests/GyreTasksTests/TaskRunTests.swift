import FoundationEssentials
import GyreCPU
import GyreCheckpoints
import GyreLayers
import GyreModels
import GyreTensors
import GyreTokenizers
import GyreTraining
import Testing

@testable import GyreTasks

@Suite struct TaskRunTests {
  /// A folder of its own that goes away with the test.
  private final class Temporary {
    let path =
      FileManager.default.temporaryDirectory.path + "/gyre-tasks-\(UInt64.random(in: 0 ... .max))"
    deinit { try? FileManager.default.removeItem(atPath: path) }
  }

  private func create(_ path: String, steps: Int = 8) throws -> TaskFolder {
    let tasks = TaskFolder(RunFolder(path))
    var training = TaskDefaults.training
    (training.steps, training.batch, training.length) = (steps, 4, 12)
    (training.checkpointEvery, training.evaluateEvery) = (3, 4)
    let vocabulary = try TaskCatalog.task("modular_addition").vocabulary.count
    let model = try #require(try Study.model("gru", vocabulary: vocabulary))
    try tasks.create(
      TaskRun(task: "modular_addition", shortest: 2, curriculum: 6, heldOut: 8), model: model,
      training: training)
    return tasks
  }

  @Test func resumingIsExact() throws {
    let (whole, parts) = (Temporary(), Temporary())
    let device = try CPUDevice()
    let first = try create(whole.path).trainer(on: device)
    try first.run()
    let folder = try create(parts.path)
    let interrupted = try folder.trainer(on: device)
    var steps = 0
    try interrupted.run(shouldStop: { steps == 5 }, report: { _ in steps += 1 })
    let second = try folder.trainer(on: device)
    _ = try second.resume()
    try second.run()
    #expect(first.history.map(\.trainBitsPerByte) == second.history.map(\.trainBitsPerByte))
    #expect(first.history.last?.accuracy == second.history.last?.accuracy)
    #expect(first.history.last?.accuracy != nil)
    for (a, b) in zip(first.model.parameters, second.model.parameters) {
      #expect(try a.value.elements(Float.self) == b.value.elements(Float.self))
    }
  }

  /// The words of every task survive as the run folder's tokenizer.
  @Test(arguments: TaskCatalog.entries.map(\.name)) func tokenizer(_ name: String) throws {
    let task = try TaskCatalog.task(name)
    let tokenizer = try TaskTokenizer.make(task)
    #expect(tokenizer.vocabularySize == task.vocabulary.count)
    let text = task.vocabulary.joined(separator: " ")
    let tokens = tokenizer.encode(text)
    #expect(tokens == (0..<task.vocabulary.count).map { TokenID($0) })
    #expect(tokenizer.decode(tokens) == text)
  }

  /// A model that always gives one answer is as good as that answer is frequent.
  @Test func scoreCountsAnswers() throws {
    let device = try CPUDevice()
    let task = try TaskCatalog.task("even_pairs")
    var c = ModelConfiguration()
    (c.vocabulary, c.width, c.layers, c.pattern, c.feedForward) = (4, 8, 1, ["min_gru"], nil)
    let model = try LanguageModel(
      c, source: RandomParameters(seed: 1, device: device), device: device)
    let score = try TaskScore(model, task, length: 20, rows: 40, seed: 1)
    #expect(score.answers == 800 && score.rows == 40)
    #expect(score.accuracy >= 0 && score.accuracy <= 1 && score.bits ?? 0 > 0)
    #expect(score.wholeRows <= score.lastAnswers)
    let again = try TaskScore(model, task, length: 20, rows: 40, seed: 1)
    #expect(score == again)
  }

  @Test func damagedDescription() throws {
    let temporary = Temporary()
    let tasks = try create(temporary.path)
    #expect(tasks.exists)
    try AtomicFile.write(
      #"{"task": "parity:x=1", "shortest": 2, "curriculum": 0, "held_out": 4}"#,
      to: tasks.description)
    #expect(throws: TaskError.self) { try tasks.run() }
    try AtomicFile.write("{", to: tasks.description)
    #expect(throws: TaskError.self) { try tasks.run() }
  }

  /// Every cell of every study can be made, and the table says what the cells say.
  @Test func studies() throws {
    for study in Study.all {
      #expect(Set(study.models.map(\.name)).count == study.models.count)
      #expect(Set(study.tasks.map(\.name)).count == study.tasks.count)
      for task in study.tasks {
        let made = try TaskCatalog.task(task.task)
        try TaskRun(task: task.task, shortest: task.shortest ?? task.length)
          .validate(length: task.length)
        for model in study.models {
          _ = try model.configuration(
            vocabulary: made.vocabulary.count, width: study.width, layers: study.layers)
        }
      }
    }
    #expect(throws: TaskError.self) { try Study.named("x") }
    let device = try CPUDevice()
    var study = Study.stateTracking
    study.tasks = [study.tasks[0]]
    study.tasks[0].steps = 3
    study.models = Array(study.models.filter { $0.name == "lstm" || $0.name == "mamba2-negative" })
    study.rows = 4
    let temporary = Temporary()
    let folder = StudyFolder(study, path: temporary.path)
    let cells = try study.models.compactMap {
      try folder.measure(study.tasks[0], $0, seed: 1, on: device, shouldStop: { false })
    }
    #expect(cells.count == 2 && cells[0].curve.scores.map(\.length) == [40, 80, 160, 320, 640])
    #expect(folder.stored(study.tasks[0], study.models[0], seed: 1) == cells[0])
    #expect(folder.stored(study.tasks[0], study.models[0], seed: 2) == nil)
    let table = StudyTable(study, cells)
    #expect(table.markdown().contains("| lstm |") && table.svg().hasSuffix("</svg>\n"))
    #expect(cells[0].curve.svg().contains("<path"))
  }
}
