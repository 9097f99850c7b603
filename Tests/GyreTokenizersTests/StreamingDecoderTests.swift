import Testing

@testable import GyreTokenizers

@Suite struct StreamingDecoderTests {
  private func stream(_ tokens: [TokenID], _ tokenizer: any Tokenizer, skipping: Bool = false) -> (
    String, [String]
  ) {
    var decoder = StreamingDecoder(tokenizer, skippingSpecialTokens: skipping)
    var pieces = tokens.map { decoder.append($0) }
    pieces.append(decoder.finish())
    return (pieces.joined(), pieces)
  }

  @Test func piecesJoinToTheDecodedText() throws {
    for pipeline in try Fixtures.pipelines() {
      let tokenizer = try PipelineTokenizer(json: pipeline.json, file: pipeline.name)
      for example in pipeline.cases {
        let (text, _) = stream(example.ids, tokenizer)
        #expect(
          Array(text.utf8) == Array(tokenizer.decode(example.ids).utf8),
          "\(pipeline.name): \(example.text.debugDescription)")
        let (plain, _) = stream(example.ids, tokenizer, skipping: true)
        #expect(
          Array(plain.utf8)
            == Array(tokenizer.decode(example.ids, skippingSpecialTokens: true).utf8),
          "\(pipeline.name)")
      }
    }
  }

  @Test func charactersAreNeverCut() {
    let text = "aé€😀b"
    let (joined, pieces) = stream(ByteTokenizer().encode(text), ByteTokenizer())
    #expect(joined == text)
    #expect(pieces == ["a", "", "é", "", "", "€", "", "", "", "😀", "b", ""])
  }

  @Test func randomBytesEqualTheWholeDecode() {
    var random = SplitMix(state: 3)
    for _ in 0..<2000 {
      let tokens = (0..<Int.random(in: 0..<12, using: &random)).map { _ in
        TokenID(
          [0x41, 0x80, 0xBF, 0xC3, 0xE2, 0x82, 0xAC, 0xED, 0xA0, 0xF0, 0x9F, 0x98, 0xF5, 0xFF]
            .randomElement(using: &random) ?? 0)
      }
      let (text, _) = stream(tokens, ByteTokenizer())
      #expect(Array(text.utf8) == Array(ByteTokenizer().decode(tokens).utf8), "\(tokens)")
    }
  }
}
