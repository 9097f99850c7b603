import GyreModels
import GyreRecurrence
import GyreTensors
import GyreTraining

/// How well a model answers rows of one length.
public struct TaskScore: Codable, Hashable, Sendable {
  /// Tokens of the rows asked for.
  public var length: Int
  public var rows: Int
  public var answers: Int
  /// Answers that are right.
  public var accuracy: Double
  /// Rows whose answers are all right.
  public var wholeRows: Double
  /// Rows whose last answer is right.
  public var lastAnswers: Double
  /// Cross-entropy of an answer in bits; nil where the model gives no numbers any more.
  public var bits: Double?

  enum CodingKeys: String, CodingKey {
    case length, rows, answers, accuracy, bits
    case wholeRows = "whole_rows"
    case lastAnswers = "last_answers"
  }

  /// Answers held-out rows: draws apart from those of training.
  ///
  /// The answer to a position is the most probable token; rows that were written as answers are read as
  /// they should be.
  public init(
    _ model: LanguageModel, _ task: any SequenceTask, length: Int, rows: Int, seed: UInt64,
    precision: ComputePrecision = .float32
  ) throws {
    self.length = length
    self.rows = rows
    var (asked, right, whole, last, nats) = (0, 0, 0, 0, 0.0)
    // About 2¹⁴ tokens at once.
    let piece = max(1, min(rows, (1 << 14) / length))
    for start in stride(from: 0, to: rows, by: piece) {
      let count = min(piece, rows - start)
      let batch = TaskRows(
        task, purpose: "held out \(length)", batch: start / piece, rows: count, length: length,
        seed: seed)
      let places = batch.answers.indices.filter { batch.answers[$0] >= 0 }
      guard !places.isEmpty else { continue }
      let (written, loss) = try TaskScore.answers(model, batch, count, places, precision)
      nats += loss * Double(places.count)
      asked += places.count
      var isRight = [Bool](repeating: true, count: count)
      var isLastRight = [Bool](repeating: true, count: count)
      for (place, answer) in zip(places, written) {
        let agrees = batch.accepted[place]?.contains(answer) ?? (answer == batch.answers[place])
        right += agrees ? 1 : 0
        isLastRight[place / batch.width] = agrees
        if !agrees { isRight[place / batch.width] = false }
      }
      whole += isRight.count { $0 }
      last += isLastRight.count { $0 }
    }
    answers = asked
    accuracy = Double(right) / Double(max(asked, 1))
    wholeRows = Double(whole) / Double(max(rows, 1))
    lastAnswers = Double(last) / Double(max(rows, 1))
    let mean = nats / Double(max(asked, 1)) / Functions.log(2)
    bits = mean.isFinite ? mean : nil
  }

  /// The most probable tokens at some places, and their mean cross-entropy.
  private static func answers(
    _ model: LanguageModel, _ batch: TaskRows, _ rows: Int, _ places: [Int],
    _ precision: ComputePrecision
  ) throws -> ([Int32], Double) {
    var state = model.makeState(batch: rows)
    let device = model.device
    return try ComputePrecision.$current.withValue(precision) {
      let hidden = model.hidden(
        Tensor(batch.tokens, shape: [rows, batch.width], on: device), state: &state)
      let asked = hidden.reshaped([-1, hidden.shape.last]).rows(
        Tensor(places.map { Int32($0) }, shape: [places.count], on: device))
      let logits = model.logits(asked)
      let targets = Tensor(
        places.map { batch.answers[$0] }, shape: [places.count], on: device)
      let loss = try logits.crossEntropy(targets).mean.item()
      return (try logits.argmax().elements(Int32.self), loss)
    }
  }
}

/// A task as what a trainer learns and is scored on.
public struct TaskData: TrainingData {
  public let task: any SequenceTask
  public let batches: any BatchSource
  private let run: TaskRun
  private let seed: UInt64

  /// - Throws: as `TaskRun.validate`.
  public init(_ run: TaskRun, _ c: TrainingConfiguration) throws(TaskError) {
    task = try TaskCatalog.task(run.task)
    batches = try TaskBatches(run, batch: c.batch, length: c.length, seed: c.seed)
    self.run = run
    seed = c.seed
  }

  public var vocabulary: Int { task.vocabulary.count }
  public var bytesPerToken: Double { 1 }

  /// Bits an answer, at the longest rows.
  public func score(_ model: LanguageModel, precision: ComputePrecision) throws -> HeldOutScore {
    let score = try TaskScore(
      model, task, length: batches.length, rows: run.heldOut, seed: seed, precision: precision)
    return HeldOutScore(bitsPerByte: score.bits ?? .nan, accuracy: score.accuracy)
  }
}
