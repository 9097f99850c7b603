import Foundation
import Testing

@testable import GyreTokenizers

@Suite struct TokenizerFileTests {
  static let world: String = {
    var lines = (0..<256).map { byte -> String in
      let hexadecimal = String(byte, radix: 16)
      return "\(byte + 1) b'\\x\(byte < 16 ? "0" : "")\(hexadecimal)' 1"
    }
    for (index, word) in [
      "'the'", "' the'", "\"it's\"", "'é'", "'\\n\\n'", "b'\\xe4\\xb8'", "'世界'", "'\\u4e16'",
    ].enumerated() {
      let count = [3, 4, 4, 2, 2, 2, 6, 3][index]
      lines.append("\(300 + index) \(word) \(count)")
    }
    return lines.joined(separator: "\n") + "\n"
  }()

  private func folder() throws -> String {
    let url = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
    return url.path
  }

  @Test func everyKindIsSavedAndFoundAgain() throws {
    let pipeline = try #require(try Fixtures.pipelines().first { $0.name == "unigram" })
    let tokenizers: [any Tokenizer] = [
      ByteTokenizer(), try WorldTokenizer(vocabulary: Array(Self.world.utf8), file: "world"),
      try PipelineTokenizer(json: pipeline.json, file: "unigram"),
    ]
    for tokenizer in tokenizers {
      let place = try folder()
      let file = try TokenizerFile.save(tokenizer, folder: place)
      for path in [place, file] {
        let loaded = try TokenizerFile.load(path: path)
        #expect(loaded.kind == tokenizer.kind)
        #expect(loaded.encode("the world's 世界\n\n") == tokenizer.encode("the world's 世界\n\n"))
      }
      try FileManager.default.removeItem(atPath: place)
    }
    #expect(throws: TokenizerError.notFound(path: "/nowhere")) {
      try TokenizerFile.load(path: "/nowhere")
    }
  }

  @Test func rolesComeFromTheConfiguration() throws {
    let place = try folder()
    let pipeline = try #require(try Fixtures.pipelines().first { $0.name == "metaspace" })
    try Data(pipeline.json).write(to: URL(fileURLWithPath: place + "/tokenizer.json"))
    try Data(#"{"eos_token": {"content": "<pad>"}, "bos_token": "</s>"}"#.utf8)
      .write(to: URL(fileURLWithPath: place + "/tokenizer_config.json"))
    let tokenizer = try TokenizerFile.load(path: place)
    #expect(tokenizer.specialTokens.end == 3)
    #expect(tokenizer.specialTokens.beginning == 1)
    try FileManager.default.removeItem(atPath: place)
  }

  @Test func worldTokensAreTheLongestMatches() throws {
    let tokenizer = try WorldTokenizer(vocabulary: Array(Self.world.utf8), file: "world")
    #expect(
      tokenizer.encode("the the it's é\n\n世界世") == [300, 301, 33, 302, 33, 303, 304, 306, 307])
    #expect(tokenizer.encode(utf8: [0xE4, 0xB8, 0xFF]) == [305, 256])
    #expect(tokenizer.vocabularySize == 308)
    #expect(tokenizer.decode([300, 0, 305, 151]) == "the世")
    #expect(try tokenizer.bytes(of: 0) == [])
  }

  @Test func mistakesNameTheirPlace() throws {
    func failure(_ text: String) -> TokenizerError? {
      do throws(TokenizerError) {
        _ = try TokenizerFile.parse(Array(text.utf8), file: "f")
        return nil
      } catch { return error }
    }
    let merges = #"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}}"#
    #expect(
      failure(merges)
        == .invalid(
          file: "f", place: "model.merges[0]", reason: "the token \"ab\" is not in the vocabulary"))
    #expect(
      failure(#"{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}"#)
        == .invalid(file: "f", place: "model.vocab.b", reason: "token number 0 occurs twice"))
    #expect(
      failure(#"{"model": {"type": "BPE", "vocab": {"a": 4000000000}, "merges": []}}"#)?.description
        .contains("model.vocab.a") == true)
    #expect(
      failure(#"{"model": {"type": "BPE"}}"#)
        == .invalid(file: "f", place: "model", reason: "\"vocab\" is missing"))
    #expect(failure(#"{"model": 3}"#) != nil)
    #expect(
      failure(#"{"model": {"type": "Other"}}"#)
        == .unsupported(file: "f", place: "model", feature: "model Other"))
    #expect(
      failure("{\"a\": 1")
        == .malformed(file: "f", offset: 7, reason: "the text ends inside object"))
    #expect(
      failure(String(repeating: "{\"a\":", count: 100_000))
        == .malformed(file: "f", offset: 640, reason: "nested deeper than 128"))
    #expect(
      failure("1 'a' 2\n")
        == .invalid(file: "f", place: "line 1", reason: "the literal has 1 bytes, not 2"))
    #expect(
      failure(Self.world + "300 'again' 5\n")
        == .invalid(file: "f", place: "token 300", reason: "the number occurs twice"))
    #expect(failure("hello") != nil)
    #expect(failure("") != nil)
  }

  @Test func damagedFilesNeverCrash() throws {
    var random = SplitMix(state: 5)
    let names = [
      "gpt2_space", "unigram_charsmap", "bert", "llama2", "split_regex_Contiguous_True",
      "unigram_fallback", "han",
    ]
    var sources = try Fixtures.pipelines().filter { names.contains($0.name) }.map(\.json)
    sources.append(Array(Self.world.utf8))
    var accepted = 0
    for round in 0..<4000 {
      var bytes = sources[round % sources.count]
      switch Int.random(in: 0..<5, using: &random) {
      case 0: bytes.removeLast(Int.random(in: 1...bytes.count, using: &random))
      case 1:
        let start = Int.random(in: 0..<bytes.count, using: &random)
        bytes.removeSubrange(
          start..<min(bytes.count, start + Int.random(in: 1..<40, using: &random)))
      case 2:
        let start = Int.random(in: 0..<bytes.count, using: &random)
        let part = bytes[start..<min(bytes.count, start + 60)]
        bytes.insert(contentsOf: part, at: Int.random(in: 0..<bytes.count, using: &random))
      default:
        for _ in 0..<Int.random(in: 1..<6, using: &random) {
          let pool: [UInt8] =
            Array("[]{}\",:0123456789-.eE\\untrfals ".utf8) + [0, 0xFF, 0xC3, 0xF0]
          bytes[Int.random(in: 0..<bytes.count, using: &random)] =
            pool.randomElement(using: &random) ?? 0
        }
      }
      guard let tokenizer = try? TokenizerFile.parse(bytes, file: "damaged") else { continue }
      accepted += 1
      let tokens = tokenizer.encode(" Hello, wörld 123 <mask>\n\n世界 aaa")
      _ = tokenizer.decode(tokens + [-1, 1 << 30, 7, 300])
      var decoder = StreamingDecoder(tokenizer)
      for token in tokens { _ = decoder.append(token) }
      _ = decoder.finish()
    }
    #expect(accepted > 0)
  }
}
