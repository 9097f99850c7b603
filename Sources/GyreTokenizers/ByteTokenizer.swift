/// One token a byte: token number = byte value, 256 tokens, no special ones. Any data is valid input.
public struct ByteTokenizer: Tokenizer, Hashable {
  /// The marker file that stands for this tokenizer in a folder.
  public static let fileName = "tokenizer.byte"
  static let marker = "gyre byte tokenizer 1\n"

  public init() {}

  public var kind: TokenizerKind { .byte }
  public var vocabularySize: Int { 256 }
  public var specialTokens: SpecialTokens { SpecialTokens() }
  public var decodesByConcatenation: Bool { true }

  public func encode(utf8 text: UnsafeBufferPointer<UInt8>, into tokens: inout [TokenID]) {
    tokens.reserveCapacity(tokens.count + text.count)
    for byte in text { tokens.append(TokenID(byte)) }
  }

  public func encodeSettled(
    utf8 text: UnsafeBufferPointer<UInt8>, into tokens: inout [TokenID]
  ) -> Int {
    encode(utf8: text, into: &tokens)
    return text.count
  }

  public func bytes(of token: TokenID) throws(TokenizerError) -> [UInt8] {
    guard let byte = UInt8(exactly: token) else { throw .unknownToken(token) }
    return [byte]
  }

  public func decode(_ tokens: some Sequence<TokenID>, skippingSpecialTokens: Bool) -> String {
    String(decoding: tokens.compactMap { UInt8(exactly: $0) }, as: UTF8.self)
  }

  public func token(named name: String) -> TokenID? {
    name.utf8.count == 1 ? name.utf8.first.map(TokenID.init) : nil
  }

  public func serialized() -> (fileName: String, bytes: [UInt8]) {
    (Self.fileName, Array(Self.marker.utf8))
  }
}
