import GyreInference
import GyreLayers
import GyreModels
import GyrePlatform
import GyreTokenizers
import Testing

@Suite struct GeneratorTests {
  private func generator(pattern: [String] = ["min_gru"]) throws -> Generator {
    var c = ModelConfiguration()
    (c.width, c.layers, c.pattern) = (32, 2, pattern)
    c.initialDeviation = 0.5
    let device = try Devices.open("cpu")
    let model = try LanguageModel(
      c, source: RandomParameters(seed: 1, device: device), device: device)
    return try Generator(model: model, tokenizer: ByteTokenizer())
  }

  private func text(_ generator: Generator, _ prompt: [TokenID], _ options: GenerationOptions)
    throws
    -> (String, GenerationSummary)
  {
    var text = ""
    let summary = try generator.generate(after: prompt, options) { piece in
      text += piece
      return true
    }
    return (text, summary)
  }

  @Test func prefillInPiecesEqualsOnePiece() throws {
    let generator = try generator()
    let prompt = generator.tokens(prompt: String(repeating: "abc, def. ", count: 10))
    var options = GenerationOptions()
    options.maximumTokens = 40
    options.sampling.temperature = 0
    let whole = try text(generator, prompt, options)
    options.prefillLength = 7
    let pieces = try text(generator, prompt, options)
    #expect(whole.0 == pieces.0)
    #expect(whole.1.generatedTokens == 40 && whole.1.promptTokens == prompt.count)
    #expect(whole.1.ending == .length)
  }

  @Test func randomBytesComeOutAsValidText() throws {
    let generator = try generator()
    var options = GenerationOptions()
    options.maximumTokens = 300
    options.sampling.temperature = 5
    var pieces: [String] = []
    _ = try generator.generate(after: generator.tokens(prompt: ""), options) { piece in
      pieces.append(piece)
      return true
    }
    // All pieces together are the text: nothing is cut inside a character.
    #expect(pieces.joined().utf8.count == pieces.reduce(0) { $0 + $1.utf8.count })
    #expect(pieces.allSatisfy { !$0.isEmpty })
  }

  @Test func endsWhenTold() throws {
    let generator = try generator()
    var calls = 0
    var options = GenerationOptions()
    options.maximumTokens = nil
    options.sampling.temperature = 3
    let summary = try generator.generate(after: [65], options) { _ in
      calls += 1
      return calls < 5
    }
    #expect(summary.ending == .cancelled && calls == 5)
  }

  @Test func partialCharactersAreHeldBack() {
    var decoder = StreamingDecoder(ByteTokenizer())
    let pieces = Array("a–é".utf8).map { decoder.append(TokenID($0)) }
    #expect(pieces == ["a", "", "", "–", "", "é"])
    #expect(decoder.append(0xE2) == "" && decoder.finish() == "\u{FFFD}")
  }
}
