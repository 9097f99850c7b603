/// The number of a token: its row in the embedding table.
public typealias TokenID = Int32

/// Turns text into tokens and tokens into bytes.
///
/// Encoding is a function of the text only, so a tokenizer may be shared by any number of tasks.
public protocol Tokenizer: Sendable {
  /// The family, as it is written into configurations: `byte`, `rwkv_world`, `bpe`, `unigram`, ...
  var kind: TokenizerKind { get }
  /// One more than the largest token number: the rows that an embedding table needs.
  var vocabularySize: Int { get }
  /// Tokens with a role, where the vocabulary has them.
  var specialTokens: SpecialTokens { get }
  /// True when decoding is the concatenation of `bytes(of:)`, repaired to valid UTF-8.
  var decodesByConcatenation: Bool { get }

  /// Appends the tokens of `text`, without the tokens that mark beginning or end.
  func encode(_ text: String, into tokens: inout [TokenID])
  /// Appends the tokens of UTF-8 text; bytes that are not UTF-8 count as U+FFFD unless the vocabulary is made of bytes.
  func encode(utf8 text: UnsafeBufferPointer<UInt8>, into tokens: inout [TokenID])
  /// Appends the tokens of a front part of UTF-8 text that nothing that may follow changes: they and the tokens of
  /// the rest with what follows are those of the whole.
  /// - Returns: bytes of that part; 0 where the tokenizer knows of none.
  func encodeSettled(utf8 text: UnsafeBufferPointer<UInt8>, into tokens: inout [TokenID]) -> Int
  /// Appends the tokens of `text` and the marks that the tokenizer puts around one sequence.
  func encodeWithSpecialTokens(_ text: String, into tokens: inout [TokenID])

  /// The bytes that a token contributes in the middle of a text. They may be a part of a UTF-8 sequence.
  /// - Throws: `TokenizerError.unknownToken` for a number that no token has.
  func bytes(of token: TokenID) throws(TokenizerError) -> [UInt8]
  /// The text of a run of tokens; invalid UTF-8 becomes U+FFFD, unknown numbers are skipped.
  func decode(_ tokens: some Sequence<TokenID>, skippingSpecialTokens: Bool) -> String
  /// The number of a token that is written exactly like this in the vocabulary.
  func token(named name: String) -> TokenID?

  /// Name and bytes of the file from which `TokenizerFile.load` makes this tokenizer again.
  func serialized() -> (fileName: String, bytes: [UInt8])
}

/// The family of a tokenizer.
public enum TokenizerKind: String, Sendable, Hashable, CaseIterable {
  case byte
  case rwkvWorld = "rwkv_world"
  case bytePair = "bpe"
  case unigram
  case wordPiece = "wordpiece"
  case wordLevel = "wordlevel"
}

/// Tokens with a role in training and generation.
public struct SpecialTokens: Sendable, Hashable {
  /// Begins a sequence.
  public var beginning: TokenID?
  /// Ends a sequence or separates documents.
  public var end: TokenID?
  /// Fills a batch.
  public var padding: TokenID?
  /// Stands for what the vocabulary cannot express.
  public var unknown: TokenID?

  public init(
    beginning: TokenID? = nil, end: TokenID? = nil, padding: TokenID? = nil,
    unknown: TokenID? = nil
  ) {
    self.beginning = beginning
    self.end = end
    self.padding = padding
    self.unknown = unknown
  }
}

extension Tokenizer {
  /// The tokens of `text`.
  public func encode(_ text: String) -> [TokenID] {
    var tokens: [TokenID] = []
    encode(text, into: &tokens)
    return tokens
  }

  /// The tokens of UTF-8 text.
  public func encode(utf8 text: [UInt8]) -> [TokenID] {
    var tokens: [TokenID] = []
    text.withUnsafeBufferPointer { encode(utf8: $0, into: &tokens) }
    return tokens
  }

  /// The text of a run of tokens, special tokens included.
  public func decode(_ tokens: some Sequence<TokenID>) -> String {
    decode(tokens, skippingSpecialTokens: false)
  }

  public func encode(_ text: String, into tokens: inout [TokenID]) {
    var text = text
    text.withUTF8 { encode(utf8: $0, into: &tokens) }
  }

  public func encodeSettled(
    utf8 text: UnsafeBufferPointer<UInt8>, into tokens: inout [TokenID]
  ) -> Int { 0 }

  public func encodeWithSpecialTokens(_ text: String, into tokens: inout [TokenID]) {
    encode(text, into: &tokens)
  }
}
