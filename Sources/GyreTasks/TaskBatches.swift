import GyreTensors
import GyreTraining

/// How a run draws its rows: what `task.json` of a run folder holds beside the task.
public struct TaskRun: Codable, Hashable, Sendable {
  /// The task with its options written out.
  public var task: String
  /// Tokens of the shortest rows to train on; the longest are `length` of `training.json`.
  public var shortest: Int
  /// Batches over which rows grow from the shortest to their full length, and keep it; 0: every batch
  /// has some length between the two.
  public var curriculum: Int
  /// Rows that are scored while it trains.
  public var heldOut: Int

  enum CodingKeys: String, CodingKey {
    case task, shortest, curriculum
    case heldOut = "held_out"
  }

  public init(task: String, shortest: Int, curriculum: Int = 0, heldOut: Int = 128) {
    self.task = task
    self.shortest = shortest
    self.curriculum = curriculum
    self.heldOut = heldOut
  }

  /// - Throws: a length at which the task asks nothing, or numbers that cannot be.
  public func validate(length: Int) throws(TaskError) {
    let made = try TaskCatalog.task(task)
    guard length >= made.shortest else {
      throw .length(task: task, length: length, shortest: made.shortest)
    }
    guard (made.shortest...length).contains(shortest) else {
      throw .option(
        task: task, reason: "the shortest rows must have \(made.shortest)...\(length) tokens")
    }
    guard (0...(1 << 32)).contains(curriculum), (1...(1 << 20)).contains(heldOut) else {
      throw .option(task: task, reason: "curriculum must be in 0...2^32 and held_out in 1...2^20")
    }
  }
}

/// Batches of a task's rows; all rows of a batch have one length. A batch is a pure function of the
/// seed and its number.
public struct TaskBatches: BatchSource {
  public let batch, length: Int
  public let carriesState = false
  private let task: any SequenceTask
  private let run: TaskRun
  private let seed: UInt64

  /// - Throws: as `TaskRun.validate`.
  public init(_ run: TaskRun, batch: Int, length: Int, seed: UInt64) throws(TaskError) {
    try run.validate(length: length)
    guard batch <= 1 << 20 else {
      throw .option(task: run.task, reason: "a batch has at most 2^20 rows")
    }
    task = try TaskCatalog.task(run.task)
    (self.run, self.batch, self.length, self.seed) = (run, batch, length, seed)
  }

  /// Tokens of the rows of a batch: what the curriculum has come to, or any length.
  func length(of number: Int) -> Int {
    guard run.curriculum == 0 else {
      guard number < run.curriculum else { return length }
      return run.shortest + (length - run.shortest) * (number + 1) / run.curriculum
    }
    let draws = CounterGenerator(seed: seed, name: "task length")
    return run.shortest + draws.integer(UInt64(number), below: length - run.shortest + 1)
  }

  public func batch(_ number: Int) -> Batch {
    let rows = TaskRows(
      task, purpose: "train", batch: number, rows: batch, length: length(of: number), seed: seed)
    return Batch(tokens: rows.tokens, targets: rows.answers, startsAfresh: true)
  }
}

/// Rows of one length as the model takes them, `[rows, width]` each.
public struct TaskRows: Sendable {
  public private(set) var tokens: [Int32] = []
  public private(set) var answers: [Int32] = []
  /// Tokens of a row: the longest row's.
  public private(set) var width = 0
  /// Answers that count as right, by position in `answers`, where there are several.
  public private(set) var accepted: [Int: [Int32]] = [:]

  public init(
    _ task: any SequenceTask, purpose: String, batch: Int, rows: Int, length: Int, seed: UInt64
  ) {
    var examples = (0..<rows).map { row in
      var random = TaskRandom(seed: seed, purpose: purpose, batch: batch, row: row)
      return task.example(length: length, &random)
    }
    width = examples.map(\.tokens.count).max() ?? 0
    for i in examples.indices {
      examples[i].pad(to: width, with: 0)
      for (place, choices) in examples[i].accepted { accepted[tokens.count + place] = choices }
      tokens += examples[i].tokens
      answers += examples[i].answers
    }
  }
}
