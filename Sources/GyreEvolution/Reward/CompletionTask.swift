import GyreInference
import GyreModels
import GyreRecurrence
import GyreTensors
import GyreTokenizers
import GyreTraining

/// A language model that writes after prompts and is scored by a program. Every member of a group writes
/// after the same prompts; the perturbation is what differs.
public final class CompletionTask: EvolutionTask {
  private let model: LanguageModel
  private let tokenizer: any Tokenizer
  private let program: RewardProgram
  private let prompts: [String]
  private let configuration: EvolutionConfiguration
  /// 0: the likeliest token always.
  private let temperature: Double
  private var scoring = 0.0

  /// - Throws: `configuration` where there is no prompt.
  public init(
    model: LanguageModel, tokenizer: any Tokenizer, program: RewardProgram, prompts: [String],
    temperature: Double = 0, configuration: EvolutionConfiguration
  ) throws(EvolutionError) {
    guard !prompts.isEmpty else {
      throw .configuration(field: "prompts", rule: "must hold at least one line")
    }
    self.model = model
    self.tokenizer = tokenizer
    self.program = program
    self.prompts = prompts
    self.temperature = temperature
    self.configuration = configuration
  }

  public var parameters: [Parameter] { model.parameters }
  public var rowsPerMember: Int { configuration.rows }
  public var isBitsPerByte: Bool { false }

  public func takeScoringSeconds() -> Double {
    defer { scoring = 0 }
    return scoring
  }

  public func scores(
    members: Range<Int>, generation: Int
  ) throws -> (scores: [[Double]], tokens: Int) {
    let rows = configuration.rows
    let size = configuration.group > 0 ? configuration.group : configuration.population
    let groups = (configuration.population + size - 1) / size
    let order = CounterGenerator(seed: configuration.seed, name: "evolution prompts")
    var requests: [RewardProgram.Request] = []
    for member in members {
      for row in 0..<rows {
        let number = (generation * groups + member / size) * rows + row
        requests.append(
          .init(
            id: member * rows + row, generation: generation, member: member,
            prompt: prompts[order.integer(UInt64(number), below: prompts.count)], completion: ""))
      }
    }
    let spent = try write(&requests)
    let values = try ask(requests)
    return (
      members.indices.map { i in
        let first = (i - members.lowerBound) * rows
        return Array(values[first..<first + rows])
      }, spent
    )
  }

  /// The mean score of the first 16 prompts.
  public func evaluate() throws -> Double? {
    var requests = prompts.prefix(16).enumerated().map {
      RewardProgram.Request(id: $0, generation: -1, member: -1, prompt: $1, completion: "")
    }
    _ = try write(&requests)
    do {
      let values = try ask(requests)
      return values.reduce(0, +) / Double(values.count)
    } catch { return nil }
  }

  private func ask(_ requests: [RewardProgram.Request]) throws(EvolutionError) -> [Double] {
    let start = ContinuousClock.now
    defer { scoring += seconds(ContinuousClock.now - start) }
    return try program.scores(requests)
  }

  /// Fills in the completions, all rows token by token; the tokens read and written.
  private func write(_ requests: inout [RewardProgram.Request]) throws -> Int {
    let encoded = requests.map { tokenizer.promptTokens($0.prompt) }
    let longest = encoded.map(\.count).max() ?? 0
    var state = model.makeState(batch: requests.count)
    var written = [[TokenID]](repeating: [], count: requests.count)
    var ended = [Bool](repeating: false, count: requests.count)
    var sampling = SamplingOptions()
    sampling.temperature = temperature
    var samplers = requests.map { request in
      var options = sampling
      options.seed =
        configuration.seed &+ UInt64(bitPattern: Int64(request.generation &* 1_000_003))
        &+ UInt64(request.id)
      return Sampler(options)
    }
    var current = encoded.map { $0[0] }
    var spent = 0
    for step in 0..<longest + configuration.length - 1 {
      let tokens = Tensor(current, shape: [requests.count, 1], on: model.device)
      let hidden = model.hidden(tokens, state: &state, form: .recurrent)
      spent += requests.count
      let isReading = encoded.allSatisfy { step + 1 < $0.count }
      let logits = isReading ? [] : try model.logits(hidden).floats()
      let vocabulary = model.configuration.vocabulary
      for i in requests.indices {
        if step + 1 < encoded[i].count {
          current[i] = encoded[i][step + 1]
          continue
        }
        if ended[i] { continue }
        let row = Array(logits[i * vocabulary..<(i + 1) * vocabulary])
        let token = try samplers[i].next(row)
        current[i] = token
        if token == tokenizer.specialTokens.end || written[i].count >= configuration.length {
          ended[i] = true
        } else {
          written[i].append(token)
          ended[i] = written[i].count == configuration.length
        }
      }
      if ended.allSatisfy({ $0 }) { break }
    }
    for i in requests.indices { requests[i].completion = tokenizer.decode(written[i]) }
    return spent
  }
}
