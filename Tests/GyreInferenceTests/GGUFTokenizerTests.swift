import Foundation
import GyreCheckpoints
import GyreInference
import GyreTokenizers
import Testing

/// A vocabulary that SentencePiece trained on Shakespeare, as a GGUF file without tensors, and what
/// SentencePiece 0.2.3 makes of some texts.
@Suite struct GGUFTokenizerTests {
  private static let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    .deletingLastPathComponent().appendingPathComponent("Fixtures/gguf").path

  private struct Case: Decodable {
    var text: String
    var tokens: [TokenID]
    var decoded: String
    init(from decoder: any Swift.Decoder) throws {
      var c = try decoder.unkeyedContainer()
      text = try c.decode(String.self)
      tokens = try c.decode([TokenID].self)
      decoded = try c.decode(String.self)
    }
  }

  private func cases() throws -> [Case] {
    let url = URL(fileURLWithPath: Self.folder + "/sentencepiece.json")
    return try JSONDecoder().decode([Case].self, from: Data(contentsOf: url))
  }

  private func check(_ tokenizer: any Tokenizer) throws {
    for c in try cases() {
      #expect(tokenizer.encode(c.text) == c.tokens, "\(c.text)")
      #expect(tokenizer.decode(c.tokens, skippingSpecialTokens: false) == c.decoded)
      var marked: [TokenID] = []
      tokenizer.encodeWithSpecialTokens(c.text, into: &marked)
      #expect(marked == [1] + c.tokens)
    }
    #expect(tokenizer.encode("<|im|>") == [3])
    #expect(tokenizer.specialTokens.beginning == 1 && tokenizer.specialTokens.end == 2)
  }

  @Test func sentencePiecesAreReadAndWritten() throws {
    let path = Self.folder + "/sentencepiece.gguf"
    let file = try GGUFFile(path: path)
    let tokenizer = try GGUFTokenizer.load(file)
    try check(tokenizer)

    // As tokenizer.json in a folder, and from there into metadata again.
    let folder = FileManager.default.temporaryDirectory.path + "/gyre-pieces-\(UUID().uuidString)"
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    try TokenizerFile.save(tokenizer, folder: folder)
    let roles = #"{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}"#
    try Data(roles.utf8).write(to: URL(fileURLWithPath: folder + "/tokenizer_config.json"))
    try check(try TokenizerFile.load(path: folder))
    var writer = GGUFWriter(architecture: "llama")
    for (key, value) in try GGUFTokenizer.metadata(path: folder) { writer.set(key, value) }
    try writer.write(to: folder + "/again.gguf")
    let again = try GGUFFile(path: folder + "/again.gguf")
    for key in ["tokens", "token_type", "bos_token_id", "eos_token_id", "unknown_token_id"] {
      let name = "tokenizer.ggml." + key
      #expect(again.values[name] == file.values[name], "\(key)")
    }
    try check(try GGUFTokenizer.load(again))
  }

  @Test func damagedPiecesAreErrors() throws {
    for (key, value) in [
      ("scores", GGUFValue.array([.float(1)])), ("token_type", .array([])),
      ("token_type", .array([GGUFValue](repeating: .integer(9), count: 3))),
      ("bos_token_id", .integer(70)),
    ] {
      var writer = GGUFWriter(architecture: "llama")
      let tokens: [GGUFValue] = [.string("<unk>"), .string("<s>"), .string("a")]
      writer.set("tokenizer.ggml.model", .string("llama"))
      writer.set("tokenizer.ggml.tokens", .array(tokens))
      writer.set("tokenizer.ggml.scores", .array([.float(0), .float(0), .float(-1)]))
      writer.set("tokenizer.ggml.token_type", .array([.integer(2), .integer(3), .integer(1)]))
      writer.set("tokenizer.ggml." + key, value)
      let path = FileManager.default.temporaryDirectory.path + "/gyre-\(UUID().uuidString).gguf"
      defer { try? FileManager.default.removeItem(atPath: path) }
      try writer.write(to: path)
      let file = try GGUFFile(path: path)
      #expect(throws: TokenizerError.self, "\(key)") { try GGUFTokenizer.load(file) }
    }
  }
}
