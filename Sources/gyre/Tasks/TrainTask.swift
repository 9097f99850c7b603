import ArgumentParser
import GyreCheckpoints
import GyreLayers
import GyreModels
import GyrePlatform
import GyreTasks
import GyreTensors
import GyreTraining

/// `gyre train --task NAME`: a run whose rows are generated.
extension Train {
  /// The model of a task unless another is named.
  static let taskModel = "gated_delta_net-negative"

  /// - Parameter task: nil to go on with the task of the run folder.
  func runTask(_ task: String?, _ device: any Device) throws {
    let name = task.map { String($0.prefix { $0 != ":" }) } ?? ""
    let tasks = TaskFolder(RunFolder(out ?? Files.nextRunFolder(name)))
    if let task { try freshTask(task, tasks) } else { try changeStored(tasks) }
    let trainer = try tasks.trainer(on: device)
    if task == nil {
      for rejected in try trainer.resume() { Terminal.note("passed over \(rejected)") }
    }
    let (run, c, t) = (try tasks.run(), trainer.model.configuration, trainer.configuration)
    Interrupts.install()
    note(
      "\(Format.count(Double(trainer.model.parameterCount))) parameters, \(c.pattern.joined(separator: " ")) × \(c.layers), "
        + "\(t.precision == .bfloat16 ? "bf16" : "f32") on \(Devices.detail(of: device)), task: \(run.task)"
    )
    var progress = Progress(total: t.steps, first: trainer.step, quiet: json)
    var held: Double?
    try trainer.run(shouldStop: { Interrupts.isRequested }) { m in
      held = m.accuracy ?? held
      if json { try JSONOutput.line(m) }
      progress.update(
        m.step,
        "\(Format.fixed(m.trainBitsPerByte, 3)) bits/answer  "
          + (held.map { "right \(Format.fixed(100 * $0, 1)) %  " } ?? "")
          + "\(Format.count(m.tokensPerSecond)) tokens/s"
          + (m.skipped.map { "  skipped: \($0)" } ?? "")
      )
    }
    progress.end()
    let folder = tasks.folder
    if trainer.step < t.steps {
      return note(
        "stopped at step \(trainer.step); gyre train --resume --out \(folder.path) goes on")
    }
    let curve = try TaskCurve.measure(
      trainer.model, folder, task: run.task, lengths: nil, rows: run.heldOut, seed: t.seed)
    let report = Report(
      title: "Gyre run \(folder.path)", metrics: trainer.history,
      settings: [
        ("task", run.task),
        ("model", "\(c.pattern.joined(separator: ", ")), width \(c.width), \(c.layers) layers"),
        ("parameters", Format.grouped(trainer.model.parameterCount)),
        ("batch × length", "\(t.batch) × \(t.length)"),
        ("bits/byte in the curve", "bits an answer"),
        ("device", Devices.detail(of: device)), ("seed", "\(t.seed)"),
      ], samples: TaskCurve.lines(curve))
    try report.write(to: folder.report)
    if !json {
      TaskCurve.table(curve).print()
      Terminal.line("\(folder.path): model.safetensors, metrics.jsonl, report.html, lengths.svg")
    }
  }

  private func freshTask(_ task: String, _ tasks: TaskFolder) throws {
    if Files.kind(tasks.folder.configuration) != nil {
      throw Failure(
        "'\(tasks.folder.path)' holds a run already; --resume goes on with it, or name another --out"
      )
    }
    let made = try TaskCatalog.task(task)
    let vocabulary = made.vocabulary.count
    let name = model ?? Self.taskModel
    let configuration =
      try name.hasSuffix(".json")
      ? ModelConfiguration(json: try Files.read(name))
      : Study.model(name, vocabulary: vocabulary) ?? presetOrStudyModel(name, vocabulary)
    guard configuration.vocabulary >= vocabulary else {
      throw Failure("\(name): vocabulary must be at least \(vocabulary), the task's words")
    }
    var training = TaskDefaults.training
    training.length = max(training.length, made.shortest)
    try change(&training)
    let run = TaskRun(
      task: try TaskCatalog.canonical(task),
      shortest: shortest ?? (curriculum == nil ? training.length : made.shortest),
      curriculum: curriculum ?? 0)
    try tasks.create(run, model: configuration, training: training)
  }

  private func presetOrStudyModel(
    _ name: String, _ vocabulary: Int
  ) throws -> ModelConfiguration {
    guard Presets.names.contains(name) else {
      let known = Study.all.flatMap { study in study.models.map { "\(study.name)/\($0.name)" } }
      throw Failure(
        "no model is called '\(name)'; there are \((known + Presets.names).joined(separator: ", "))"
      )
    }
    return try Presets.configuration(name, vocabulary: vocabulary)
  }

  private func changeStored(_ tasks: TaskFolder) throws {
    var training = try tasks.folder.trainingConfiguration()
    try change(&training)
    try AtomicFile.write(try training.json(), to: tasks.folder.training)
  }
}

/// Accuracy over length, measured, written into the run folder and shown.
enum TaskCurve {
  /// - Parameter lengths: nil: the trained length and 2, 4, 8 and 16 times that, as far as 2¹⁶.
  static func measure(
    _ model: LanguageModel, _ folder: RunFolder, task: String, lengths: [Int]?, rows: Int,
    seed: UInt64
  ) throws -> LengthCurve {
    let training = try folder.trainingConfiguration()
    let curve = try LengthCurve(
      model, name: model.configuration.pattern.joined(separator: " "), task: task,
      trained: training.length,
      lengths: lengths
        ?? LengthCurve.multiples.map { $0 * training.length }
        .filter { $0 <= max(training.length, 1 << 16) },
      rows: rows, seed: seed, precision: training.precision)
    try AtomicFile.write(try ConfigurationFile.text(curve), to: folder.path + "/lengths.json")
    try AtomicFile.write(curve.svg(), to: folder.path + "/lengths.svg")
    return curve
  }

  static func table(_ curve: LengthCurve) -> Table {
    var table = Table([
      ("tokens", .right), ("answers right", .right), ("last answers", .right),
      ("whole rows", .right), ("bits/answer", .right),
    ])
    for s in curve.scores {
      table.add(
        ["\(s.length)"]
          + [s.accuracy, s.lastAnswers, s.wholeRows].map { Format.fixed(100 * $0, 1) + " %" }
          + [Format.fixed(s.bits ?? .nan, 3)])
    }
    return table
  }

  static func lines(_ curve: LengthCurve) -> [String] {
    ["trained at \(curve.trained) tokens\n" + table(curve).lines().joined(separator: "\n")]
  }
}
