import GyreModels
import GyreTensors
import GyreTraining

/// A column of a study's table: a task, the lengths it is learnt and asked at.
public struct StudyTask: Sendable {
  public var name: String
  /// The task with options, as commands take it.
  public var task: String
  /// Tokens of the longest rows to train on.
  public var length: Int
  /// Tokens of the shortest; nil: as long as the longest.
  public var shortest: Int?
  /// Whether rows grow from the shortest to the longest over the first half of the steps; otherwise every
  /// batch has some length between.
  public var grows: Bool
  public var steps: Int

  init(
    _ name: String, _ task: String, length: Int, shortest: Int? = nil, grows: Bool = false,
    steps: Int
  ) {
    (self.name, self.task, self.length) = (name, task, length)
    (self.shortest, self.grows, self.steps) = (shortest, grows, steps)
  }
}

/// Tasks by models: every model learns every task and is asked at lengths beyond.
public struct Study: Sendable {
  public var name, title: String
  public var tasks: [StudyTask]
  public var models: [StudyModel]
  public var width, layers, batch: Int
  public var learningRate: Double
  /// Lengths over the trained one.
  public var multiples: [Int]
  /// Rows asked at each length.
  public var rows: Int

  public static let all: [Study] = [.stateTracking, .recall]

  /// - Throws: when no study has the name.
  public static func named(_ name: String) throws(TaskError) -> Study {
    guard let study = all.first(where: { $0.name == name }) else {
      throw .study(
        "no table is called '\(name)'; there are \(all.map(\.name).joined(separator: ", "))")
    }
    return study
  }

  /// A model that a study lists, with that study's width and layers: "lstm" of the first study that
  /// has one, or "recall/lstm".
  public static func model(
    _ name: String, vocabulary: Int
  ) throws -> ModelConfiguration? {
    for study in all {
      guard
        let model = study.models.first(where: {
          $0.name == name || "\(study.name)/\($0.name)" == name
        })
      else { continue }
      return try model.configuration(
        vocabulary: vocabulary, width: study.width, layers: study.layers)
    }
    return nil
  }

  public func trainingConfiguration(_ task: StudyTask, seed: UInt64) -> TrainingConfiguration {
    var c = TaskDefaults.training
    (c.steps, c.batch, c.length) = (task.steps, batch, task.length)
    (c.learningRate, c.seed) = (learningRate, seed)
    (c.evaluateEvery, c.checkpointEvery) = (0, 0)
    return c
  }

  /// Columns and rows whose names hold a text; the whole study for an empty one.
  public func cells(only: String) -> [(task: StudyTask, model: StudyModel)] {
    tasks.flatMap { task in
      models.compactMap { model in
        only.isEmpty || "\(task.name) \(model.name)".contains(only) ? (task, model) : nil
      }
    }
  }
}

/// How tasks are trained unless something else is said.
public enum TaskDefaults {
  public static var training: TrainingConfiguration {
    var c = TrainingConfiguration()
    (c.steps, c.batch, c.length) = (1000, 64, 40)
    c.data = .packed
    (c.learningRate, c.warmupSteps, c.beta2) = (3e-3, 50, 0.99)
    (c.schedule, c.finalFraction, c.weightDecay) = (.cosine, 0.02, 0.01)
    // A task that is understood at last makes no spike, one that is unlearnt for a moment does.
    c.spikeFactor = nil
    return c
  }
}
