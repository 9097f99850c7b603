import FoundationEssentials
import GyreCheckpoints
import GyreTokenizers

extension GGUFTokenizer {
  /// The `tokenizer.*` metadata from which ``load(_:)`` and other readers of GGUF files make a model's
  /// tokenizer again: byte-level BPE, SentencePiece's BPE, RWKV's vocabulary, and bytes (as BPE without
  /// merges); "none" where a folder has none.
  ///
  /// - Parameter path: a folder or a GGUF file, whose metadata are taken as they are.
  /// - Throws: `TokenizerError` for tokenizers that the format has no form of.
  public static func metadata(
    path: String
  ) throws(TokenizerError) -> [(String, GGUFValue)] {
    if GGUFFile.isGGUF(path: path) {
      let file: GGUFFile
      do throws(CheckpointError) { file = try GGUFFile(path: path) } catch {
        throw .malformed(file: path, offset: 0, reason: error.description)
      }
      return file.values.filter { $0.key.hasPrefix("tokenizer.") }.sorted { $0.key < $1.key }.map {
        ($0.key, $0.value)
      }
    }
    let tokenizer: any Tokenizer
    do throws(TokenizerError) { tokenizer = try TokenizerFile.load(path: path) } catch {
      guard case .notFound = error else { throw error }
      return [("tokenizer.ggml.model", .string("none"))]
    }
    var keys: [(String, GGUFValue)]
    switch tokenizer.kind {
    case .byte: keys = bytes()
    case .rwkvWorld: keys = try world(tokenizer)
    case .bytePair: keys = try bytePairs(tokenizer, path)
    default:
      throw .malformed(
        file: path, offset: 0,
        reason: "\(tokenizer.kind.rawValue) tokenizers cannot be written into GGUF files")
    }
    let special = tokenizer.specialTokens
    for (key, token) in [
      ("bos_token_id", special.beginning), ("eos_token_id", special.end),
      ("padding_token_id", special.padding), ("unknown_token_id", special.unknown),
    ] {
      if let token { keys.append(("tokenizer.ggml." + key, .integer(Int64(token)))) }
    }
    return keys
  }

  private static func keys(
    _ model: String, tokens: [String], kinds: [Int], more: [(String, GGUFValue)] = []
  ) -> [(String, GGUFValue)] {
    [
      ("tokenizer.ggml.model", .string(model)),
      ("tokenizer.ggml.tokens", .array(tokens.map(GGUFValue.string))),
      ("tokenizer.ggml.token_type", .array(kinds.map { .integer(Int64($0)) })),
      ("tokenizer.ggml.add_bos_token", .bool(false)),
    ] + more
  }

  /// The letters by which byte-level vocabularies spell bytes.
  private static let letters: [String] = {
    var next: UInt32 = 256
    return (UInt32(0)..<256).map { byte in
      let isPlain = (33...126).contains(byte) || (161...172).contains(byte) || byte >= 174
      defer { if !isPlain { next += 1 } }
      return Unicode.Scalar(isPlain ? byte : next).map { String(Character($0)) } ?? ""
    }
  }()

  private static func bytes() -> [(String, GGUFValue)] {
    keys(
      "gpt2", tokens: letters, kinds: Array(repeating: 1, count: 256),
      more: [("tokenizer.ggml.pre", .string("default")), ("tokenizer.ggml.merges", .array([]))])
  }

  /// RWKV's tokens with bytes outside of ASCII's letters escaped; 0 ends texts.
  private static func world(
    _ tokenizer: any Tokenizer
  ) throws(TokenizerError) -> [(String, GGUFValue)] {
    var tokens = ["<s>"]
    var kinds = [3]
    for id in 1..<max(tokenizer.vocabularySize, 1) {
      guard let bytes = try? tokenizer.bytes(of: TokenID(id)), !bytes.isEmpty else {
        tokens.append("[PAD\(id)]")
        kinds.append(5)
        continue
      }
      tokens.append(
        bytes.map { byte in
          if (32...126).contains(byte), byte != 92 { return String(Unicode.Scalar(byte)) }
          let digits = String(byte, radix: 16)
          return "\\x" + (digits.count < 2 ? "0" : "") + digits
        }.joined())
      kinds.append(1)
    }
    return keys("rwkv", tokens: tokens, kinds: kinds)
  }

  /// What of a `tokenizer.json` goes into a file.
  struct Stored: Decodable {
    struct Added: Decodable {
      var id: Int
      var content: String
      var special: Bool?
    }
    struct Model: Decodable {
      var vocab: [String: Int]
      var merges: [Merge]
      var unk_token: String?
      var byte_fallback: Bool?
    }
    /// "a b", or the two parts in a list.
    struct Merge: Decodable {
      var parts: [String]
      var text: String { parts.joined(separator: " ") }
      init(from decoder: any Swift.Decoder) throws {
        let container = try decoder.singleValueContainer()
        if let text = try? container.decode(String.self) {
          parts = text.split(separator: " ", omittingEmptySubsequences: false).map(String.init)
        } else {
          parts = try container.decode([String].self)
        }
      }
    }
    struct Step: Decodable {
      struct Pattern: Decodable {
        var Regex: String?
      }
      var type: String
      var pretokenizers, normalizers: [Step]?
      var pattern: Pattern?
      var split: Bool?
      var prepend_scheme: String?
      /// All steps in order.
      var flat: [Step] { (pretokenizers ?? normalizers).map { $0.flatMap(\.flat) } ?? [self] }
    }
    var model: Model
    var added_tokens: [Added]?
    var normalizer: Step?
    var pre_tokenizer: Step?
  }

  private static func bytePairs(
    _ tokenizer: any Tokenizer, _ path: String
  ) throws(TokenizerError) -> [(String, GGUFValue)] {
    let (name, text) = tokenizer.serialized()
    func fail(_ reason: String) -> TokenizerError {
      .malformed(file: path + "/" + name, offset: 0, reason: reason)
    }
    let stored: Stored
    do { stored = try JSONDecoder().decode(Stored.self, from: Data(text)) } catch {
      throw fail("cannot be written into a GGUF file: \(error)")
    }
    let steps = stored.pre_tokenizer?.flat ?? []
    guard steps.contains(where: { $0.type == "ByteLevel" }) else {
      return try SentencePieces(tokenizer, stored, fail).metadata
    }
    let pattern = steps.first { $0.type == "Split" }?.pattern?.Regex
    guard let pre = preTokenizerName(pattern, digits: steps.contains { $0.type == "Digits" }) else {
      throw fail("its pre-tokenizer has no name among those of GGUF files")
    }
    let largest = max(
      stored.model.vocab.values.max() ?? 0, stored.added_tokens?.map(\.id).max() ?? 0)
    guard (0..<1 << 24).contains(largest) else { throw fail("token \(largest) is too large") }
    var tokens = (0...largest).map { "[PAD\($0)]" }
    var kinds = [Int](repeating: 5, count: largest + 1)
    for (token, id) in stored.model.vocab where tokens.indices.contains(id) {
      (tokens[id], kinds[id]) = (token, 1)
    }
    for added in stored.added_tokens ?? [] where tokens.indices.contains(added.id) {
      (tokens[added.id], kinds[added.id]) = (added.content, added.special ?? false ? 3 : 4)
    }
    return keys(
      "gpt2", tokens: tokens, kinds: kinds,
      more: [
        ("tokenizer.ggml.pre", .string(pre)),
        ("tokenizer.ggml.merges", .array(stored.model.merges.map { .string($0.text) })),
      ])
  }
}
