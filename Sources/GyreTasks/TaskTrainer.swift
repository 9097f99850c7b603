import FoundationEssentials
import GyreCheckpoints
import GyreLayers
import GyreModels
import GyreTensors
import GyreTraining

/// A run folder whose data is generated: `task.json` says from what.
public struct TaskFolder: Sendable {
  public let folder: RunFolder
  public init(_ folder: RunFolder) { self.folder = folder }

  public var description: String { folder.path + "/task.json" }
  /// Whether the folder holds a task's run.
  public var exists: Bool { FileManager.default.fileExists(atPath: description) }

  /// Writes configurations, the task and its tokenizer into a new folder.
  public func create(
    _ run: TaskRun, model: ModelConfiguration, training: TrainingConfiguration
  ) throws {
    try run.validate(length: training.length)
    let tokenizer = try TaskTokenizer.make(try TaskCatalog.task(run.task))
    try folder.create(tokenizer: tokenizer, model: model, training: training)
    try AtomicFile.write(try ConfigurationFile.text(run), to: description)
  }

  /// The task of the folder, checked.
  ///
  /// - Throws: what is missing or cannot be, with the file's name.
  public func run() throws -> TaskRun {
    let bytes = try MappedFile(path: description).withUnsafeBytes { Array($0) }
    let run: TaskRun
    do { run = try JSONDecoder().decode(TaskRun.self, from: Data(bytes)) } catch {
      throw TaskError.file(path: description, reason: "cannot be read: \(error)")
    }
    let length = try folder.trainingConfiguration().length
    do throws(TaskError) { try run.validate(length: length) } catch {
      throw TaskError.file(path: description, reason: "\(error)")
    }
    return run
  }

  /// A trainer on the folder's task, at its beginning.
  public func trainer(on device: any Device) throws -> Trainer {
    let (run, training) = (try run(), try folder.trainingConfiguration())
    var model = try LanguageModel(
      try folder.modelConfiguration(),
      source: RandomParameters(seed: training.seed, device: device), device: device)
    model.rematerializes = training.rematerializes
    return try Trainer(
      model: model, configuration: training, folder: folder,
      data: try TaskData(run, training))
  }
}
