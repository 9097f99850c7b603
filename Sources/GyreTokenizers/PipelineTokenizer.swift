import Synchronization

/// A tokenizer as `tokenizer.json` of the public `tokenizers` library describes it: added tokens are taken out of
/// the text, the rest is normalised, cut into pieces and given to the model. Token for token the same as that library.
public final class PipelineTokenizer: Tokenizer {
  private let model: any TokenModel
  private let normalizer: Normalizer?
  private let preTokenizer: PreTokenizer?
  private let postProcessor: PostProcessor
  private let decoder: TokenDecoder?
  private let added: AddedVocabulary
  private let cuts: TextCuts
  private let source: [UInt8]
  /// Where decoding is concatenation, the bytes of every token; else its text after the steps of the decoder
  /// that look at one token only.
  private let decoded: TokenTexts
  /// The steps that are left.
  private let laterDecoder: TokenDecoder?
  /// Tokens whose text is that of a special token.
  private let hidden: Set<TokenID>
  /// Encoders at rest; one is taken per call, so that calls do not wait for each other.
  private let idle = Mutex<[Encoder]>([])

  public let kind: TokenizerKind
  public let vocabularySize: Int
  public let specialTokens: SpecialTokens
  public var decodesByConcatenation: Bool { decoder?.isConcatenation ?? false }

  /// Reads a `tokenizer.json`.
  /// - Parameters:
  ///   - source: the text of the file.
  ///   - file: its name in errors.
  ///   - roles: names of tokens with a role, where another file says so.
  /// - Throws: `TokenizerError` naming the place of the first mistake.
  public convenience init(
    json source: [UInt8], file: String, roles: SpecialTokenNames = SpecialTokenNames()
  ) throws(TokenizerError) {
    try self.init(source: source, root: try JSONReader.parse(source, file: file).root, roles: roles)
  }

  private init(source: [UInt8], root: JSONValue, roles: SpecialTokenNames) throws(TokenizerError) {
    guard root.kind == .object else { throw root.wrong("an object") }
    if let version = root["version"], try version.string() != "1.0" {
      throw version.invalid("only version 1.0 is known")
    }
    let normalizer: Normalizer? =
      if let json = root["normalizer"] { try Normalizer(json) } else { nil }
    let preTokenizer: PreTokenizer? =
      if let json = root["pre_tokenizer"] { try PreTokenizer(json) } else { nil }
    postProcessor =
      if let json = root["post_processor"] { try PostProcessor(json) } else { PostProcessor() }
    decoder = if let json = root["decoder"] { try TokenDecoder(json) } else { nil }
    let model = try Self.model(
      root.required("model"), isByteLevel: preTokenizer?.isByteLevel ?? false)
    var tokens: [AddedToken] = []
    if let list = root["added_tokens"] {
      for token in try list.elements() { tokens.append(try AddedToken(token)) }
    }
    let added = AddedVocabulary(
      tokens, modelSize: model.entryCount, normalizer: normalizer, modelToken: model.token(of:))
    self.normalizer = normalizer
    self.preTokenizer = preTokenizer
    self.model = model
    self.added = added
    cuts = TextCuts(normalizer, preTokenizer, added)
    self.source = source
    kind = model.kind
    let bound = max(model.tokenBound, Int(added.indexOfID.keys.max() ?? -1) + 1)
    vocabularySize = bound
    // The text decides, not the token, as in the public library.
    var hidden: Set<TokenID> = []
    for token in added.tokens where added.isSpecial(added.shown[token.id] ?? token.content) {
      hidden.insert(token.id)
    }
    for token in added.tokens where token.isSpecial {
      if let id = model.token(of: token.content), added.indexOfID[id] == nil { hidden.insert(id) }
    }
    self.hidden = hidden
    // Steps that see one token at a time are carried out once per token of the vocabulary.
    let parts = decoder?.split
    laterDecoder = parts?.rest
    var decoded = TokenTexts()
    let isConcatenation = decoder?.isConcatenation ?? false
    for token in 0..<TokenID(bound) {
      guard let text = Self.text(of: token, model, added) else { continue }
      if isConcatenation, let decoder {
        decoded.set(token, decoder.bytes(of: text))
      } else {
        decoded.set(token, parts?.alone?.apply([text]).first ?? text)
      }
    }
    self.decoded = decoded
    specialTokens = Self.specialTokens(model, added, postProcessor, roles)
  }

  private static func model(_ json: JSONValue, isByteLevel: Bool) throws(TokenizerError)
    -> any TokenModel
  {
    guard json.kind == .object else { throw json.wrong("an object") }
    let name: String
    if let type = json["type"] {
      name = try type.string()
    } else {
      // Old files do not name the model.
      name =
        json["merges"] != nil
        ? "BPE"
        : json["unk_id"] != nil
          ? "Unigram"
          : json["max_input_chars_per_word"] != nil ? "WordPiece" : "WordLevel"
    }
    switch name {
    case "BPE": return try BytePairModel(json, isByteLevel: isByteLevel)
    case "Unigram": return try UnigramModel(json)
    case "WordPiece": return try WordPieceModel(json)
    case "WordLevel": return try WordLevelModel(json)
    default:
      throw .unsupported(file: json.document.file, place: json.place, feature: "model \(name)")
    }
  }

  private static func specialTokens(
    _ model: any TokenModel, _ added: AddedVocabulary, _ post: PostProcessor,
    _ roles: SpecialTokenNames
  ) -> SpecialTokens {
    func find(_ name: String?, _ usual: [String]) -> TokenID? {
      for candidate in name.map({ [$0] }) ?? usual {
        let text = Array(candidate.utf8)
        if let index = added.indexOfContent[text] { return added.tokens[index].id }
        if let token = model.token(of: text) { return token }
      }
      return nil
    }
    // A mark counts only when it is a special token: templates may name anything.
    func mark(_ token: TokenID?) -> TokenID? {
      token.flatMap { id in added.indexOfID[id].flatMap { added.tokens[$0].isSpecial ? id : nil } }
    }
    return SpecialTokens(
      beginning: find(roles.beginning, [])
        ?? mark(post.before.first)
        ?? find(
          nil, ["<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>", "[CLS]"]),
      end: find(roles.end, [])
        ?? mark(post.after.last)
        ?? find(nil, ["</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[SEP]"]),
      padding: find(roles.padding, ["<pad>", "[PAD]", "<|padding|>", "<|pad|>"]),
      unknown: model.unknown ?? find(roles.unknown, ["<unk>", "[UNK]"]))
  }

  // MARK: Encoding

  /// Memory and word cache of one call.
  private struct Encoder {
    var list = PieceList()
    var memory = ModelMemory()
    var text: [UInt8] = []
  }

  public func encode(utf8 text: UnsafeBufferPointer<UInt8>, into tokens: inout [TokenID]) {
    guard !text.isEmpty else { return }
    guard UTF8Text.isValid(text) else {
      var repaired = String(decoding: text, as: UTF8.self)
      repaired.withUTF8 { encodeValid($0, into: &tokens) }
      return
    }
    encodeValid(text, into: &tokens)
  }

  public func encode(_ text: String, into tokens: inout [TokenID]) {
    var text = text
    text.withUTF8 { if !$0.isEmpty { encodeValid($0, into: &tokens) } }
  }

  public func encodeSettled(
    utf8 text: UnsafeBufferPointer<UInt8>, into tokens: inout [TokenID]
  ) -> Int {
    guard let end = cuts.last(in: text) else { return 0 }
    encode(utf8: UnsafeBufferPointer(rebasing: text[..<end]), into: &tokens)
    return end
  }

  private func encodeValid(_ text: UnsafeBufferPointer<UInt8>, into tokens: inout [TokenID]) {
    guard postProcessor.repeats > 0 else { return }
    var encoder = idle.withLock { $0.popLast() } ?? Encoder()
    if added.hasRawTokens {
      var position = 0
      added.rawMatches(text) { match in
        if match.start > position {
          encodeSegment(
            UnsafeBufferPointer(rebasing: text[position..<match.start]), isFirst: position == 0,
            &encoder, &tokens)
        }
        tokens.append(match.id)
        position = match.end
      }
      if position < text.count {
        encodeSegment(
          UnsafeBufferPointer(rebasing: text[position...]), isFirst: position == 0, &encoder,
          &tokens)
      }
    } else {
      encodeSegment(text, isFirst: true, &encoder, &tokens)
    }
    // A few encoders are kept; very large buffers are not.
    if encoder.list.bytes.capacity > 1 << 22 || encoder.list.pieces.capacity > 1 << 20 {
      encoder.list = PieceList()
      encoder.text = []
    }
    idle.withLock { if $0.count < 64 { $0.append(encoder) } }
  }

  /// Text between two added tokens: normalises it and looks for tokens in the normalised text.
  private func encodeSegment(
    _ segment: UnsafeBufferPointer<UInt8>, isFirst: Bool, _ encoder: inout Encoder,
    _ tokens: inout [TokenID]
  ) {
    guard normalizer != nil || added.hasNormalizedTokens else {
      encoder.list.bytes.removeAll(keepingCapacity: true)
      encoder.list.bytes.append(contentsOf: segment)
      encodePieces(isFirst: isFirst, &encoder, &tokens)
      return
    }
    var text = encoder.text
    encoder.text = []
    text.removeAll(keepingCapacity: true)
    text.append(contentsOf: segment)
    normalizer?.apply(&text)
    // Where the front of the text was removed, the rest no longer begins the original.
    let keepsFront = isFirst && !(normalizer?.removesFront(of: segment) ?? false)
    text.withUnsafeBufferPointer { buffer in
      var position = 0
      func piece(_ end: Int) {
        guard end > position else { return }
        encoder.list.bytes.removeAll(keepingCapacity: true)
        encoder.list.bytes.append(contentsOf: buffer[position..<end])
        encodePieces(isFirst: keepsFront && position == 0, &encoder, &tokens)
      }
      if added.hasNormalizedTokens {
        added.normalizedMatches(buffer) { match in
          piece(match.start)
          tokens.append(match.id)
          position = match.end
        }
      }
      piece(buffer.count)
    }
    encoder.text = text
  }

  private func encodePieces(isFirst: Bool, _ encoder: inout Encoder, _ tokens: inout [TokenID]) {
    encoder.list.begin(isFirst: isFirst)
    preTokenizer?.apply(&encoder.list)
    if encoder.list.isMapped, !model.acceptsMappedBytes { encoder.list.materialize() }
    model.encode(encoder.list, &encoder.memory, into: &tokens)
  }

  public func encodeWithSpecialTokens(_ text: String, into tokens: inout [TokenID]) {
    tokens += postProcessor.before
    encode(text, into: &tokens)
    tokens += postProcessor.after
  }

  // MARK: Decoding

  private static func text(
    of token: TokenID, _ model: any TokenModel, _ added: AddedVocabulary
  ) -> [UInt8]? {
    if let index = added.indexOfID[token] {
      return added.shown[token] ?? added.tokens[index].content
    }
    return model.text(of: token).map { Array($0) }
  }

  public func bytes(of token: TokenID) throws(TokenizerError) -> [UInt8] {
    guard let text = decoded[token] else { throw .unknownToken(token) }
    if decodesByConcatenation { return Array(text) }
    return laterDecoder?.bytes(of: Array(text)) ?? Array(text)
  }

  public func decode(_ tokens: some Sequence<TokenID>, skippingSpecialTokens: Bool) -> String {
    let kept = tokens.lazy.filter { !skippingSpecialTokens || !self.hidden.contains($0) }
    var bytes: [UInt8] = []
    if decodesByConcatenation {
      for token in kept { decoded.append(token, to: &bytes) }
    } else if let laterDecoder {
      let texts: [[UInt8]] = kept.compactMap { self.decoded[$0].map { Array($0) } }
      bytes = Array(laterDecoder.apply(texts).joined())
    } else {
      // Without a decoder the library puts spaces between tokens.
      var isFirst = true
      for token in kept where decoded.contains(token) {
        if !isFirst { bytes.append(0x20) }
        isFirst = false
        decoded.append(token, to: &bytes)
      }
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  public func token(named name: String) -> TokenID? {
    let text = Array(name.utf8)
    if let index = added.indexOfContent[text] { return added.tokens[index].id }
    return model.token(of: text)
  }

  public func serialized() -> (fileName: String, bytes: [UInt8]) {
    (TokenizerFile.jsonName, source)
  }
}

/// Names of tokens with a role, as `tokenizer_config.json` gives them.
public struct SpecialTokenNames: Sendable, Hashable {
  public var beginning: String?
  public var end: String?
  public var padding: String?
  public var unknown: String?

  public init(
    beginning: String? = nil, end: String? = nil, padding: String? = nil, unknown: String? = nil
  ) {
    self.beginning = beginning
    self.end = end
    self.padding = padding
    self.unknown = unknown
  }
}

extension Normalizer {
  /// True when the beginning of the text does not survive, by stripping or filtering.
  func removesFront(of text: UnsafeBufferPointer<UInt8>) -> Bool {
    guard let base = text.baseAddress, !text.isEmpty else { return false }
    switch self {
    case .strip(let left, _):
      return left && LibraryScalars.isWhitespace(UTF8Text.scalar(base, 0).value)
    case .stripAccents, .nmt, .bert:
      var front = Array(text.prefix(UTF8Text.length(lead: text[0])))
      apply(&front)
      return front.isEmpty
    case .sequence(let steps): return steps.contains { $0.removesFront(of: text) }
    default: return false
    }
  }
}
