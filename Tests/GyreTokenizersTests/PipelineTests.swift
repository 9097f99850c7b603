import Testing

@testable import GyreTokenizers

@Suite struct PipelineTests {
  @Test func tokensAndTextsEqualThePublicLibrary() throws {
    for pipeline in try Fixtures.pipelines() {
      let tokenizer = try PipelineTokenizer(json: pipeline.json, file: pipeline.name)
      for example in pipeline.cases {
        let tokens = tokenizer.encode(example.text)
        #expect(tokens == example.ids, "\(pipeline.name): \(example.text.debugDescription)")
        var marked: [TokenID] = []
        tokenizer.encodeWithSpecialTokens(example.text, into: &marked)
        #expect(marked == example.before + example.ids + example.after, "\(pipeline.name)")
        let decoded = tokenizer.decode(example.ids)
        #expect(
          Array(decoded.utf8) == Array(example.decoded.utf8),
          "\(pipeline.name): \(example.text.debugDescription)")
        let plain = tokenizer.decode(marked, skippingSpecialTokens: true)
        #expect(
          Array(plain.utf8) == Array(example.plain.utf8),
          "\(pipeline.name): \(example.text.debugDescription)")
      }
    }
  }

  @Test func theWordCacheChangesNothing() throws {
    for pipeline in try Fixtures.pipelines() {
      let tokenizer = try PipelineTokenizer(json: pipeline.json, file: pipeline.name)
      for _ in 0..<2 {
        for example in pipeline.cases where tokenizer.encode(example.text) != example.ids {
          Issue.record("\(pipeline.name)")
        }
      }
    }
  }

  @Test func invalidTextIsRepaired() throws {
    let pipeline = try #require(try Fixtures.pipelines().first { $0.name == "gpt2" })
    let tokenizer = try PipelineTokenizer(json: pipeline.json, file: pipeline.name)
    let broken: [UInt8] = [0x61, 0xFF, 0x62, 0xE2, 0x82]
    #expect(tokenizer.encode(utf8: broken) == tokenizer.encode("a\u{FFFD}b\u{FFFD}"))
  }

  @Test func manyTasksShareATokenizer() async throws {
    let pipeline = try #require(try Fixtures.pipelines().first { $0.name == "llama3" })
    let tokenizer = try PipelineTokenizer(json: pipeline.json, file: pipeline.name)
    await withTaskGroup(of: Bool.self) { group in
      for _ in 0..<8 {
        group.addTask { pipeline.cases.allSatisfy { tokenizer.encode($0.text) == $0.ids } }
      }
      for await isEqual in group { #expect(isEqual) }
    }
  }

  @Test func rolesOfSpecialTokens() throws {
    let pipelines = try Fixtures.pipelines()
    func tokenizer(_ name: String, _ roles: SpecialTokenNames = .init()) throws -> PipelineTokenizer
    {
      let pipeline = try #require(pipelines.first { $0.name == name })
      return try PipelineTokenizer(json: pipeline.json, file: name, roles: roles)
    }
    let plain = try tokenizer("metaspace")
    #expect(plain.specialTokens == SpecialTokens(beginning: 0, end: 1, padding: 3, unknown: 2))
    #expect(plain.kind == .bytePair)
    #expect(try tokenizer("gpt2").specialTokens.end == 0)
    #expect(try tokenizer("metaspace", SpecialTokenNames(end: "<pad>")).specialTokens.end == 3)
    #expect(try tokenizer("unigram").kind == .unigram)
    #expect(throws: TokenizerError.unknownToken(99999)) { try plain.bytes(of: 99999) }
    #expect(plain.token(named: "<s>") == 0)
  }

  @Test func bytesOfTokensMakeTheText() throws {
    for pipeline in try Fixtures.pipelines() {
      let tokenizer = try PipelineTokenizer(json: pipeline.json, file: pipeline.name)
      guard tokenizer.decodesByConcatenation else { continue }
      for example in pipeline.cases {
        let bytes = try example.ids.flatMap { try tokenizer.bytes(of: $0) }
        #expect(Array(String(decoding: bytes, as: UTF8.self).utf8) == Array(example.decoded.utf8))
      }
    }
  }
}
