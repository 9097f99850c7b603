import GyreModels
import GyreTensors

/// How far answers stay right beyond the lengths that a model was trained at.
public struct LengthCurve: Codable, Hashable, Sendable {
  /// The task with its options.
  public var task: String
  /// What the model is called.
  public var model: String
  /// Tokens of the longest rows that it was trained on.
  public var trained: Int
  /// What guessing gets right.
  public var chance: Double
  public var scores: [TaskScore]

  /// The usual lengths over the trained one.
  public static let multiples = [1, 2, 4, 8, 16]

  public init(task: String, model: String, trained: Int, chance: Double, scores: [TaskScore]) {
    (self.task, self.model, self.trained) = (task, model, trained)
    (self.chance, self.scores) = (chance, scores)
  }

  /// Scores a model at some lengths.
  ///
  /// - Throws: a length at which the task asks nothing; what a device threw.
  public init(
    _ model: LanguageModel, name: String, task description: String, trained: Int, lengths: [Int],
    rows: Int, seed: UInt64, precision: ComputePrecision = .float32
  ) throws {
    let task = try TaskCatalog.task(description)
    for length in lengths {
      guard length >= task.shortest else {
        throw TaskError.length(task: description, length: length, shortest: task.shortest)
      }
      guard length <= 1 << 24, rows <= 1 << 20 else {
        throw TaskError.option(
          task: description, reason: "at most 2^24 tokens in a row and 2^20 rows")
      }
    }
    self.init(
      task: try TaskCatalog.canonical(description), model: name, trained: trained,
      chance: task.chance,
      scores: try lengths.map {
        try TaskScore(model, task, length: $0, rows: rows, seed: seed, precision: precision)
      })
  }

  /// The longest rows, as a multiple of the trained length, up to which at least 99 % are right.
  public var solvedMultiple: Int? {
    scores.prefix { $0.accuracy >= 0.99 }.last.map { $0.length / max(trained, 1) }
  }

  /// Accuracies over length.
  public func svg() -> String {
    func points(_ value: (TaskScore) -> Double) -> [(Double, Double)] {
      scores.map { (Double($0.length), value($0)) }
    }
    return LineChart(
      title: "\(task), \(model), trained at \(trained)", horizontal: "tokens", vertical: "right",
      lines: [
        .init("answers", points(\.accuracy)), .init("last answers", points(\.lastAnswers)),
        .init("whole rows", points(\.wholeRows)),
      ], reference: ("chance", chance)
    ).svg()
  }
}
