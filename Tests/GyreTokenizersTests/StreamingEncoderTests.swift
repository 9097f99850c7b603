import Testing

@testable import GyreTokenizers

/// Tokens of a text in pieces are those of the whole, wherever the pieces end.
@Suite struct StreamingEncoderTests {
  /// Runs of white space, contractions, numbers, marks, scripts without spaces, added tokens, broken UTF-8.
  private static let text: [UInt8] =
    Array(
      """
      It's  a   test, isn't it?!\n\n\n  Next line\r\n\ttabbed 12345 67 \u{3000}wide\u{A0}no-break \
      <|end|> \n<|end|>word e\u{301}te\u{301} \u{308}mark\n日本語の文。\n次の行、\n\n中文 abc\n(x)\n 'll\n'S ok \
      Ω≈ç√  !!\n!!  ...\n\n\n\n   \n1 2 3\n—dash \u{1F600}\u{1F600} a\u{200B}b \u{2028}sep\u{85}nel \u{B4} \
      trailing   
      """.utf8) + [0x20, 0xC3, 0x28, 0x20, 0xE2, 0x82, 0x0A, 0x61, 0xFF, 0x20, 0x62, 0x0A, 0x63]

  private func check(_ tokenizer: any Tokenizer, _ text: [UInt8], cutsAtAll: Bool = true) {
    let whole = tokenizer.encode(utf8: text)
    func tokens(_ pieces: [ArraySlice<UInt8>]) -> [TokenID] {
      var encoder = StreamingEncoder(tokenizer)
      var tokens: [TokenID] = []
      for piece in pieces {
        piece.withUnsafeBufferPointer { encoder.append($0, into: &tokens) }
      }
      encoder.finish(into: &tokens)
      return tokens
    }
    for cut in 0...text.count {
      #expect(tokens([text[..<cut], text[cut...]]) == whole, "cut at \(cut)")
    }
    for size in [1, 2, 3, 5, 17] {
      let pieces = stride(from: 0, to: text.count, by: size).map {
        text[$0..<min($0 + size, text.count)]
      }
      #expect(tokens(pieces) == whole, "pieces of \(size)")
    }
    #expect((settledPlaces(tokenizer, text) > 0) == cutsAtAll)
  }

  /// Checks every place where the tokenizer cuts; how many there are.
  private func settledPlaces(
    _ tokenizer: any Tokenizer, _ text: [UInt8], _ name: String = ""
  ) -> Int {
    let whole = tokenizer.encode(utf8: text)
    var places = 0
    var end = text.count
    while end > 0 {
      var front: [TokenID] = []
      let count = text[..<end].withUnsafeBufferPointer {
        tokenizer.encodeSettled(utf8: $0, into: &front)
      }
      guard count > 0 else { break }
      places += 1
      let rest = tokenizer.encode(utf8: Array(text[count...]))
      #expect(front + rest == whole, "\(name) settled at \(count)")
      end = count < end ? count : end - 1
    }
    return places
  }

  @Test func bytes() { check(ByteTokenizer(), Self.text) }

  @Test func world() throws {
    let words = ["a", "ab", "abc", "test", " test", "the", "\\n\\n", "  ", "    ", "isn't it"]
    var lines = (0..<256).map {
      "\($0 + 1) b'\\x\(($0 < 16 ? "0" : "") + String($0, radix: 16))' 1"
    }
    for (i, word) in words.enumerated() where word.utf8.count > 1 {
      let length = word.replacing("\\n", with: "n").utf8.count
      lines.append("\(257 + i) '\(word.replacing("'", with: "\\'"))' \(length)")
    }
    let file = Array(lines.joined(separator: "\n").utf8)
    check(try WorldTokenizer(vocabulary: file, file: "test"), Self.text)
  }

  @Test func learntBytePairs() throws {
    for addsPrefixSpace in [false, true] {
      var trainer = BytePairTrainer(
        vocabularySize: 330, specialTokens: ["<|end|>"], addsPrefixSpace: addsPrefixSpace)
      trainer.feed(String(decoding: Self.text, as: UTF8.self))
      check(try trainer.train(), Self.text)
    }
  }

  /// All pipelines of the fixtures: those with steps that look too far know no place to cut.
  @Test func pipelines() throws {
    for pipeline in try Fixtures.pipelines() {
      let tokenizer = try PipelineTokenizer(json: pipeline.json, file: pipeline.name)
      let text = Self.text + pipeline.cases.flatMap { Array($0.text.utf8) }
      let places = settledPlaces(tokenizer, text, pipeline.name)
      if ["gpt2", "llama3"].contains(pipeline.name) { #expect(places > 100, "\(pipeline.name)") }
    }
  }
}
