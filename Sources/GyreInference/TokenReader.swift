import GyreRecurrence
import GyreTensors
import GyreTokenizers

/// A model that has read some text and scores what may follow.
public protocol TokenReader {
  /// Reads tokens, at least one; the logits of the next.
  mutating func read(_ tokens: [TokenID]) throws(InferenceError) -> [Float]
  /// Prepares for reading token after token from here. What goes on from here on the device, draws
  /// included; nil where nothing does, and the reader reads on.
  mutating func makeRunner(_ draw: TokenDraw) -> (any DrawingTokenRunner)?
}

extension TokenReader {
  public mutating func makeRunner(_ draw: TokenDraw) -> (any DrawingTokenRunner)? { nil }
}

extension TokenReader {
  /// Generates after `prompt` (at least one token) and hands out text as soon as it is certain.
  ///
  /// - Parameter emit: takes a piece; false ends the generation.
  /// - Throws: invalid options, device failures, `noFiniteLogit`.
  @discardableResult
  public mutating func generate(
    after prompt: [TokenID], _ tokenizer: any Tokenizer, _ options: GenerationOptions,
    emit: (String) -> Bool
  ) throws(InferenceError) -> GenerationSummary {
    try options.validate()
    let clock = ContinuousClock()
    let start = clock.now
    var sampler = Sampler(options.sampling)
    var logits = try read(prompt)
    for token in prompt.suffix(options.sampling.repetitionWindow) { sampler.observe(token) }
    let decodingStart = clock.now

    var decoder = StreamingDecoder(tokenizer)
    var stops = StopStrings(options.stop)
    var count = 0
    var ending = GenerationSummary.Ending.length
    // Setting up a runner pays after a few tokens. The first token is drawn here.
    let runner =
      options.maximumTokens.map { $0 >= 4 } ?? true
      ? try sampler.start(&logits) { makeRunner($0) } : nil
    while options.maximumTokens.map({ count < $0 }) ?? true {
      let token =
        if let runner { try runner.next(after: count, of: options.maximumTokens) } else {
          try sampler.next(logits)
        }
      if options.stopsAtEndToken, token == tokenizer.specialTokens.end {
        ending = .endOfText
        break
      }
      count += 1
      let text = stops.append(decoder.append(token))
      if !text.isEmpty, !emit(text) {
        ending = .cancelled
        break
      }
      if stops.isStopped {
        ending = .stop
        break
      }
      if count == options.maximumTokens { break }
      if runner == nil { logits = try read([token]) }
    }
    if ending == .length || ending == .endOfText {
      let rest = stops.append(decoder.finish()) + stops.finish()
      if stops.isStopped { ending = .stop }
      if !rest.isEmpty { _ = emit(rest) }
    }
    return GenerationSummary(
      promptTokens: prompt.count, generatedTokens: count, ending: ending,
      prefill: decodingStart - start, decoding: clock.now - decodingStart)
  }
}

extension Tokenizer {
  /// The tokens of a prompt. An empty one becomes the token that begins or separates texts, or a
  /// line break where there is none.
  public func promptTokens(_ prompt: String) -> [TokenID] {
    var tokens: [TokenID] = []
    encode(prompt, into: &tokens)
    if !tokens.isEmpty { return tokens }
    let special = specialTokens
    if let first = special.beginning ?? special.end { return [first] }
    let lineBreak = encode("\n")
    return lineBreak.isEmpty ? [0] : lineBreak
  }
}

extension Sampler {
  /// Draws the first token from logits and starts a runner with it.
  fileprivate mutating func start(
    _ logits: inout [Float], _ make: (TokenDraw) -> (any DrawingTokenRunner)?
  ) throws(InferenceError) -> RunningDraws? {
    var ahead = self
    let first = try ahead.next(logits)
    guard let runner = make(ahead.deviceDraw) else { return nil }
    runner.observe(ahead.remembered)
    return RunningDraws(runner: runner, first: first)
  }
}

/// Tokens drawn by a device, one step ahead of the host.
private struct RunningDraws {
  let runner: any DrawingTokenRunner
  let first: TokenID

  /// Token number `count` of at most `most`. The step after it is queued before anyone waits for it.
  func next(after count: Int, of most: Int?) throws(InferenceError) -> TokenID {
    func wants(_ number: Int) -> Bool { most.map { number < $0 } ?? true }
    if count == 0 {
      if wants(1) { runner.queueStep(reading: [first]) }
      return first
    }
    if wants(count + 1) { runner.queueStep(reading: nil) }
    let drawn: [Int32]
    do throws(DeviceError) { drawn = try runner.drawnTokens() } catch { throw .device(error) }
    guard let token = drawn.first, token >= 0 else { throw .noFiniteLogit }
    return TokenID(token)
  }
}
