import GyreTokenizers

/// A model that has read some text and scores what may follow.
public protocol TokenReader {
  /// Reads tokens, at least one; the logits of the next.
  mutating func read(_ tokens: [TokenID]) throws(InferenceError) -> [Float]
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
    while options.maximumTokens.map({ count < $0 }) ?? true {
      let token = try sampler.next(logits)
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
      logits = try read([token])
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
