import GyreModels
import GyreRecurrence
import GyreTensors
import GyreTokenizers

/// What to generate.
public struct GenerationOptions: Sendable, Hashable {
  public var sampling = SamplingOptions()
  /// Tokens after the prompt; nil: until something else ends it.
  public var maximumTokens: Int? = 256
  /// Texts that end the generation; they are not part of it.
  public var stop: [String] = []
  /// Whether the tokenizer's end token ends the generation.
  public var stopsAtEndToken = true
  /// Tokens of the prompt that go through the model at once: bounds the memory of prefill.
  public var prefillLength = 512

  public init() {}

  /// - Throws: `invalidOption`.
  public func validate() throws(InferenceError) {
    try sampling.validate()
    if let maximumTokens, maximumTokens < 0 {
      throw .invalidOption(name: "max-tokens", rule: "must not be negative")
    }
    if prefillLength < 1 { throw .invalidOption(name: "prefill length", rule: "must be positive") }
  }
}

/// How a generation went.
public struct GenerationSummary: Sendable {
  /// Why it ended.
  public enum Ending: String, Sendable, Codable {
    case length, stop
    case endOfText = "end_of_text"
    case cancelled
  }
  public var promptTokens: Int
  public var generatedTokens: Int
  public var ending: Ending
  public var prefill: Duration
  public var decoding: Duration
}

/// Text from a language model: the prompt chunkwise in bounded pieces, then one recurrent step a
/// token. Holds the model's state and the text not yet certain, whatever the length.
public struct Generator: Sendable {
  public let model: LanguageModel
  public let tokenizer: any Tokenizer

  /// - Throws: `vocabulary` when the tokenizer makes tokens that the model does not have.
  public init(model: LanguageModel, tokenizer: any Tokenizer) throws(InferenceError) {
    guard tokenizer.vocabularySize <= model.configuration.vocabulary else {
      throw .vocabulary(
        tokenizer: tokenizer.vocabularySize, model: model.configuration.vocabulary)
    }
    self.model = model
    self.tokenizer = tokenizer
  }

  /// The tokens of a prompt; see `Tokenizer.promptTokens`.
  public func tokens(prompt: String) -> [TokenID] { tokenizer.promptTokens(prompt) }

  /// Generates after `prompt` (at least one token) and hands out text as soon as it is certain.
  ///
  /// - Parameter emit: takes a piece; false ends the generation.
  /// - Throws: invalid options, device failures, `noFiniteLogit`.
  @discardableResult
  public func generate(
    after prompt: [TokenID], _ options: GenerationOptions, emit: (String) -> Bool
  ) throws(InferenceError) -> GenerationSummary {
    var reader = ModelReader(
      generator: self, state: model.makeState(batch: 1), prefillLength: options.prefillLength)
    return try reader.generate(after: prompt, tokenizer, options, emit: emit)
  }

  /// Reads in the task's current precision.
  private struct ModelReader: TokenReader {
    let generator: Generator
    var state: ModelState
    let prefillLength: Int
    /// Tokens read one at a time.
    var singles = 0
    var recorded: RecordedStep?
    /// Goes on from the state, which stays behind.
    var runner: (any TokenRunner)?

    mutating func makeRunner(_ draw: TokenDraw) -> (any DrawingTokenRunner)? {
      runner = generator.model.makeRunner(from: state, draw)
      return runner as? any DrawingTokenRunner
    }

    mutating func read(_ tokens: [TokenID]) throws(InferenceError) -> [Float] {
      if let runner {
        var logits: [Float] = []
        for token in tokens {
          do throws(DeviceError) { logits = try runner.logits(after: [Int32(token)]) } catch {
            throw .device(error)
          }
        }
        return logits
      }
      if let recorded {
        var logits: [Float] = []
        for token in tokens {
          do throws(DeviceError) { logits = try recorded.next([Int32(token)]) } catch {
            throw .device(error)
          }
        }
        return logits
      }
      guard tokens.count == 1 else { return try generator.prefill(tokens, prefillLength, &state) }
      let logits = try generator.logits(of: tokens[...], form: .recurrent, &state)
      singles += 1
      // A recording pays after a few tokens.
      if singles == 3 { recorded = RecordedStep(generator.model, from: state) }
      return logits
    }
  }

  /// Feeds the prompt in pieces; the logits after its last token.
  private func prefill(
    _ prompt: [TokenID], _ length: Int, _ state: inout ModelState
  ) throws(InferenceError) -> [Float] {
    precondition(!prompt.isEmpty, "generate: a prompt has at least one token")
    var start = 0
    while prompt.count - start > length {
      let piece = tensor(prompt[start..<start + length])
      _ = model.hidden(piece, state: &state, form: .chunkwise)
      start += length
    }
    return try logits(of: prompt[start...], form: .chunkwise, &state)
  }

  /// The logits after the last of some tokens.
  private func logits(
    of tokens: ArraySlice<TokenID>, form: SequenceForm, _ state: inout ModelState
  ) throws(InferenceError) -> [Float] {
    let hidden = model.hidden(tensor(tokens), state: &state, form: form)
    let last = hidden.sliced(tokens.count - 1..<tokens.count, axis: 1)
    do throws(DeviceError) { return try model.logits(last).floats() } catch { throw .device(error) }
  }

  private func tensor(_ tokens: ArraySlice<TokenID>) -> Tensor {
    Tensor(Array(tokens), shape: [1, tokens.count], on: model.device)
  }
}
