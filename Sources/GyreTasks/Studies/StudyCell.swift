import FoundationEssentials
import GyreCheckpoints
import GyreModels
import GyreTensors
import GyreTraining

/// One model on one task: what the cell's file holds.
public struct StudyCell: Codable, Hashable, Sendable {
  public var study, task, model: String
  public var seed: UInt64
  public var steps: Int
  public var parameters: Int
  /// Bytes of state of a sequence of the trained length.
  public var stateBytes: Int
  public var seconds: Double
  /// Mean loss of the last tenth of the steps, bits an answer; nil where it is no number.
  public var trainedBits: Double?
  public var curve: LengthCurve

  enum CodingKeys: String, CodingKey {
    case study, task, model, seed, steps, parameters, seconds, curve
    case stateBytes = "state_bytes"
    case trainedBits = "trained_bits"
  }
}

/// The files of a study: one a cell, so that a run that was stopped goes on where it was.
public struct StudyFolder: Sendable {
  public let study: Study
  public let path: String
  public init(_ study: Study, path: String) { (self.study, self.path) = (study, path) }

  /// Where a cell is.
  public func file(_ task: StudyTask, _ model: StudyModel, seed: UInt64) -> String {
    let name = task.name.map { $0.isLetter || $0.isNumber ? String($0).lowercased() : "-" }
    return "\(path)/\(study.name)/\(name.joined())--\(model.name)--\(seed).json"
  }

  /// The cell if it was measured.
  public func stored(_ task: StudyTask, _ model: StudyModel, seed: UInt64) -> StudyCell? {
    let file = file(task, model, seed: seed)
    guard let bytes = try? MappedFile(path: file).withUnsafeBytes({ Array($0) }) else { return nil }
    return try? JSONDecoder().decode(StudyCell.self, from: Data(bytes))
  }

  /// Trains and scores one cell and writes its file; nil when it was stopped.
  ///
  /// - Parameter shouldStop: asked after each step.
  public func measure(
    _ task: StudyTask, _ model: StudyModel, seed: UInt64, on device: any Device,
    shouldStop: () -> Bool
  ) throws -> StudyCell? {
    let made = try TaskCatalog.task(task.task)
    let training = study.trainingConfiguration(task, seed: seed)
    let configuration = try model.configuration(
      vocabulary: made.vocabulary.count, width: study.width, layers: study.layers)
    let target = file(task, model, seed: seed)
    let folder = RunFolder(target + ".run")
    let manager = FileManager.default
    try? manager.removeItem(atPath: folder.path)
    defer { try? manager.removeItem(atPath: folder.path) }
    let run = TaskRun(
      task: try TaskCatalog.canonical(task.task), shortest: task.shortest ?? task.length,
      curriculum: task.grows ? task.steps / 2 : 0,
      heldOut: study.rows)
    let tasks = TaskFolder(folder)
    try tasks.create(run, model: configuration, training: training)
    let trainer = try tasks.trainer(on: device)
    let clock = ContinuousClock()
    let start = clock.now
    try trainer.run(shouldStop: shouldStop)
    guard trainer.step == training.steps else { return nil }
    let last: [Double] = trainer.history.suffix(max(training.steps / 10, 1)).map(\.trainBitsPerByte)
    let mean = last.reduce(0, +) / Double(max(last.count, 1))
    let curve = try LengthCurve(
      trainer.model, name: model.name, task: run.task, trained: task.length,
      lengths: study.multiples.map { $0 * task.length }, rows: study.rows, seed: seed)
    let cell = StudyCell(
      study: study.name, task: task.name, model: model.name, seed: seed, steps: training.steps,
      parameters: trainer.model.parameterCount,
      stateBytes: trainer.model.stateByteCount(tokenCount: task.length),
      seconds: (clock.now - start) / .seconds(1),
      trainedBits: mean.isFinite ? mean : nil, curve: curve)
    try AtomicFile.write(try ConfigurationFile.text(cell), to: target)
    return cell
  }
}
