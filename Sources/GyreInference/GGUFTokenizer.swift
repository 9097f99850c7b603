import FoundationEssentials
import GyreCheckpoints
import GyreTokenizers

/// The tokenizer inside a GGUF file, as the `tokenizer.json` or vocabulary that it was made from.
public enum GGUFTokenizer {
  /// The tokenizer of a file's metadata.
  ///
  /// - Throws: `TokenizerError` with the key that is missing or not supported.
  public static func load(_ file: GGUFFile) throws(TokenizerError) -> any Tokenizer {
    func fail(_ key: String, _ reason: String) -> TokenizerError {
      .malformed(file: file.name, offset: 0, reason: "tokenizer.ggml.\(key) \(reason)")
    }
    func value(_ key: String) -> GGUFValue? { file.values["tokenizer.ggml.\(key)"] }
    if value("model")?.string == "none" { throw .notFound(path: file.name) }
    guard let tokens = value("tokens")?.array?.compactMap(\.string), !tokens.isEmpty else {
      throw fail("tokens", "must be a list of texts")
    }
    switch value("model")?.string {
    case "gpt2"?:
      guard let merges = value("merges")?.array?.compactMap(\.string) else {
        throw fail("merges", "must be a list of texts")
      }
      let kinds = value("token_type")?.array?.compactMap(\.int) ?? []
      let pattern = value("pre")?.string ?? "default"
      guard let steps = preTokenizer(pattern) else {
        throw fail("pre", "\"\(pattern)\" is not among \(known)")
      }
      func name(_ key: String) -> String? {
        guard let id = value(key)?.int, tokens.indices.contains(id) else { return nil }
        return tokens[id]
      }
      let roles = SpecialTokenNames(
        beginning: name("bos_token_id"), end: name("eos_token_id"),
        padding: name("padding_token_id"), unknown: name("unknown_token_id"))
      let text: Data
      do {
        text = try JSONEncoder().encode(document(tokens, merges, kinds, steps))
      } catch { throw fail("tokens", "cannot be written: \(error)") }
      return try TokenizerFile.parse(Array(text), file: file.name, roles: roles)
    case "rwkv"?:
      let kinds = value("token_type")?.array?.compactMap(\.int) ?? []
      return try WorldTokenizer(vocabulary: vocabulary(tokens, kinds), file: file.name)
    case "llama"?:
      let pieces = try SentencePieces(value, fail)
      func name(_ key: String, _ usual: Int?) -> String? {
        guard let id = value(key)?.int ?? usual, tokens.indices.contains(id) else { return nil }
        return tokens[id]
      }
      let roles = SpecialTokenNames(
        beginning: name("bos_token_id", 1), end: name("eos_token_id", 2),
        padding: name("padding_token_id", nil), unknown: name("unknown_token_id", 0))
      return try TokenizerFile.parse(pieces.document, file: file.name, roles: roles)
    case let other:
      throw fail("model", "must be gpt2, llama or rwkv, is \(other ?? "missing")")
    }
  }

  private static let known = ["default", "gpt-2", "smollm", "llama-bpe", "qwen2", "mpt", "olmo"]

  private static let llamaPattern =
    #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
  private static let qwenPattern =
    #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#

  /// The cutting of text before byte-level BPE, by llama.cpp's names.
  private static func preTokenizer(_ name: String) -> [Step]? {
    switch name {
    case "default", "gpt-2", "mpt", "olmo": [.byteLevel(regex: true)]
    case "smollm": [.digits, .byteLevel(regex: true)]
    case "llama-bpe", "llama3": [.split(llamaPattern), .byteLevel(regex: false)]
    case "qwen2": [.split(qwenPattern), .byteLevel(regex: false)]
    default: nil
    }
  }

  /// The name of a cutting; nil where it has none.
  static func preTokenizerName(_ pattern: String?, digits: Bool) -> String? {
    switch pattern {
    case nil: digits ? "smollm" : "gpt-2"
    case llamaPattern?: "llama-bpe"
    case qwenPattern?: "qwen2"
    default: nil
    }
  }

  private enum Step: Encodable {
    case digits
    case split(String)
    case byteLevel(regex: Bool)

    private enum Key: String, CodingKey {
      case type, pattern, behavior, invert
      case regex = "Regex"
      case digits = "individual_digits"
      case prefix = "add_prefix_space"
      case offsets = "trim_offsets"
      case useRegex = "use_regex"
    }

    func encode(to encoder: any Encoder) throws {
      var c = encoder.container(keyedBy: Key.self)
      switch self {
      case .digits:
        try c.encode("Digits", forKey: .type)
        try c.encode(true, forKey: .digits)
      case .split(let pattern):
        try c.encode("Split", forKey: .type)
        try c.encode(["Regex": pattern], forKey: .pattern)
        try c.encode("Isolated", forKey: .behavior)
        try c.encode(false, forKey: .invert)
      case .byteLevel(let regex):
        try c.encode("ByteLevel", forKey: .type)
        try c.encode(false, forKey: .prefix)
        try c.encode(true, forKey: .offsets)
        try c.encode(regex, forKey: .useRegex)
      }
    }
  }

  private struct Document: Encodable {
    struct Added: Encodable {
      var id: Int
      var content: String
      var special: Bool
      var single_word = false
      var lstrip = false
      var rstrip = false
      var normalized = false
    }
    struct Sequence: Encodable {
      var type = "Sequence"
      var pretokenizers: [Step]
    }
    struct Model: Encodable {
      var type = "BPE"
      var vocab: [String: Int]
      var merges: [String]
    }
    var version = "1.0"
    var added_tokens: [Added]
    var pre_tokenizer: Sequence
    var decoder: Step
    var model: Model
  }

  private static func document(
    _ tokens: [String], _ merges: [String], _ kinds: [Int], _ steps: [Step]
  ) -> Document {
    // Kinds 3 and 4 are control and user-defined tokens: found in the text as they are.
    let added = kinds.enumerated().filter { $1 == 3 || $1 == 4 }.compactMap { id, kind in
      tokens.indices.contains(id)
        ? Document.Added(id: id, content: tokens[id], special: kind == 3) : nil
    }
    return Document(
      added_tokens: added, pre_tokenizer: .init(pretokenizers: steps),
      decoder: .byteLevel(regex: true),
      model: .init(
        vocab: Dictionary(tokens.enumerated().map { ($1, $0) }, uniquingKeysWith: { a, _ in a }),
        merges: merges))
  }

  /// The lines of RWKV's vocabulary file. Token 0 ends texts; kind 5 is padding.
  private static func vocabulary(_ tokens: [String], _ kinds: [Int]) -> [UInt8] {
    var text = ""
    for (id, token) in tokens.enumerated().dropFirst() {
      if kinds.indices.contains(id), kinds[id] == 5 { continue }
      let bytes = worldBytes(token)
      let literal = bytes.map { byte in
        let digits = String(byte, radix: 16)
        return "\\x" + (digits.count < 2 ? "0" : "") + digits
      }
      text += "\(id) b'\(literal.joined())' \(bytes.count)\n"
    }
    return Array(text.utf8)
  }

  /// RWKV's tokens are bytes, escaped as in the vocabulary's file.
  private static func worldBytes(_ token: String) -> [UInt8] {
    var bytes: [UInt8] = []
    var rest = Substring(token)
    while let c = rest.popFirst() {
      guard c == "\\", let kind = rest.popFirst() else {
        bytes += Array(String(c).utf8)
        continue
      }
      switch kind {
      case "n": bytes.append(10)
      case "r": bytes.append(13)
      case "t": bytes.append(9)
      case "x":
        bytes.append(UInt8(rest.prefix(2), radix: 16) ?? 63)
        rest = rest.dropFirst(2)
      default: bytes += Array(String(kind).utf8)
      }
    }
    return bytes
  }
}
