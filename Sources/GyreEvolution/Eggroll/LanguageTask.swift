import GyreModels
import GyreTensors
import GyreTraining

/// A language model scored by its loss or by how often its likeliest token is right.
public final class LanguageTask: EvolutionTask {
  public enum Reward: String, Sendable, CaseIterable { case loss, accuracy }
  private let model: LanguageModel
  private let reward: Reward
  private let train, validation: TokenShard
  private let configuration: EvolutionConfiguration

  /// - Throws: `data` when the text is shorter than a row.
  public init(
    model: LanguageModel, reward: Reward, folder: RunFolder, configuration: EvolutionConfiguration
  ) throws {
    self.model = model
    self.reward = reward
    self.configuration = configuration
    (train, validation) = try folder.shards()
    guard train.count > configuration.length + 1 else {
      throw TrainingError.data(
        path: train.path,
        reason: "\(train.count) tokens are too few for rows of \(configuration.length)")
    }
    guard train.vocabulary <= model.configuration.vocabulary else {
      throw EvolutionError.configuration(
        field: "tokenizer",
        rule: "has \(train.vocabulary) tokens, the model \(model.configuration.vocabulary)")
    }
  }

  public var parameters: [Parameter] { model.parameters }
  public var rowsPerMember: Int { configuration.rows }
  public var isBitsPerByte: Bool { true }

  public func scores(
    members: Range<Int>, generation: Int
  ) throws -> (scores: [[Double]], tokens: Int) {
    let (rows, length) = (configuration.rows, configuration.length)
    var tokens: [Int32] = []
    var targets: [Int32] = []
    for member in members {
      for text in texts(group: member / groupSize, generation: generation) {
        tokens += text.dropLast()
        targets += text.dropFirst()
      }
    }
    let shape: Shape = [members.count * rows, length]
    let input = Tensor(tokens, shape: shape, on: model.device)
    var state = model.makeState(batch: shape[0])
    var values: [Float]
    switch reward {
    case .loss:
      let wanted = Tensor(targets, shape: shape, on: model.device)
      values = try model.loss(input, targets: wanted, state: &state).rows.floats()
      let scale = -1 / (Float(0.693_147_18) * Float(train.bytesPerToken))
      for i in values.indices { values[i] *= scale }
    case .accuracy:
      let logits = model.logits(model.hidden(input, state: &state))
      let chosen = try apply(ArgMax(), [logits])[0].elements(Int32.self)
      values = zip(chosen, targets).map { $0 == $1 ? 1 : 0 }
    }
    let scores = members.indices.map { member in
      (0..<rows).map { row in
        let first = ((member - members.lowerBound) * rows + row) * length
        return values[first..<first + length].reduce(0) { $0 + Double($1) } / Double(length)
      }
    }
    return (scores, tokens.count)
  }

  var bytesPerToken: Double { Double(train.bytesPerToken) }

  /// Members that read the same rows.
  private var groupSize: Int {
    configuration.group > 0 ? configuration.group : configuration.population
  }
  /// Groups of a generation.
  var groups: Int { (configuration.population + groupSize - 1) / groupSize }

  /// The rows that a group reads in a generation, each with the token that follows it.
  func texts(group: Int, generation: Int) -> [[Int32]] {
    let places = CounterGenerator(seed: configuration.seed, name: "evolution windows")
    return (0..<configuration.rows).map { row in
      let number = (generation * groups + group) * configuration.rows + row
      let start = places.integer(UInt64(number), below: train.count - configuration.length)
      return Array(train.tokens(start..<start + configuration.length + 1))
    }
  }

  public func evaluate() throws -> Double? { try Evaluation(model, validation).bitsPerByte }
}
