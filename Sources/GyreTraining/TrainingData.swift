import GyreModels
import GyreTensors

/// How well a model does on what is held out.
public struct HeldOutScore: Sendable, Hashable {
  public var bitsPerByte: Double
  /// The part of a task's answers that are right; nil for texts.
  public var accuracy: Double?

  public init(bitsPerByte: Double, accuracy: Double? = nil) {
    self.bitsPerByte = bitsPerByte
    self.accuracy = accuracy
  }
}

/// What a trainer learns and is scored on: a text, or rows that are generated.
public protocol TrainingData: Sendable {
  var batches: any BatchSource { get }
  /// Tokens there are.
  var vocabulary: Int { get }
  /// Bytes that a token spells on average; 1 where there are none.
  var bytesPerToken: Double { get }
  func score(_ model: LanguageModel, precision: ComputePrecision) throws -> HeldOutScore
}

/// A text, in parts to learn and to be scored on.
public struct TextData: TrainingData {
  public let train, validation: TokenShard
  public let batches: any BatchSource
  private let length: Int
  public var vocabulary: Int { train.vocabulary }
  public var bytesPerToken: Double { train.bytesPerToken }

  /// - Throws: when the text is too short for a batch.
  public init(
    _ shards: (train: TokenShard, validation: TokenShard), _ c: TrainingConfiguration
  ) throws(TrainingError) {
    (train, validation) = shards
    length = c.length
    batches =
      switch c.data {
      case .stream:
        try StreamBatches(train, batch: c.batch, length: c.length, seed: c.seed)
      case .packed:
        try PackedBatches(train, batch: c.batch, length: c.length, seed: c.seed)
      }
  }

  public func score(_ model: LanguageModel, precision: ComputePrecision) throws -> HeldOutScore {
    HeldOutScore(
      bitsPerByte: try Evaluation(model, validation, precision: precision, context: length)
        .bitsPerByte)
  }
}
