/// Turns tokens into text while they arrive: never emits half a character, and all pieces together are what
/// `decode` of the whole run gives.
public struct StreamingDecoder: Sendable {
  private let tokenizer: any Tokenizer
  private let skipsSpecialTokens: Bool
  /// Bytes of a sequence that may still become valid.
  private var pending: [UInt8] = []
  /// Tokens whose text is not emitted yet, behind those that the next text may depend on.
  private var window: [TokenID] = []
  private var contextCount = 0
  private var context = ""

  /// - Parameter skippingSpecialTokens: leave tokens like `<|endoftext|>` out of the text.
  public init(_ tokenizer: any Tokenizer, skippingSpecialTokens: Bool = false) {
    self.tokenizer = tokenizer
    skipsSpecialTokens = skippingSpecialTokens
  }

  /// Takes one token; returns the text that is certain now, perhaps none.
  public mutating func append(_ token: TokenID) -> String {
    tokenizer.decodesByConcatenation ? appendBytes(token) : appendWindow(token)
  }

  /// Ends the run: returns what was held back, incomplete sequences as U+FFFD. The decoder can be used again.
  public mutating func finish() -> String {
    defer {
      pending = []
      window = []
      contextCount = 0
      context = ""
    }
    if tokenizer.decodesByConcatenation { return String(decoding: pending, as: UTF8.self) }
    return behindContext(decode(window)) ?? ""
  }

  private mutating func appendBytes(_ token: TokenID) -> String {
    if skipsSpecialTokens, isHidden(token) { return "" }
    guard let bytes = try? tokenizer.bytes(of: token) else { return "" }
    pending += bytes
    let complete = Self.completeCount(pending)
    guard complete > 0 else { return "" }
    let text = String(decoding: pending[..<complete], as: UTF8.self)
    pending.removeFirst(complete)
    return text
  }

  /// True when `decode` leaves the token out.
  private func isHidden(_ token: TokenID) -> Bool {
    tokenizer.decode(CollectionOfOne(token), skippingSpecialTokens: true).isEmpty
  }

  /// The bytes up to a sequence that is cut off by the end; broken sequences count as complete.
  private static func completeCount(_ bytes: [UInt8]) -> Int {
    bytes.withUnsafeBufferPointer { buffer in
      guard let base = buffer.baseAddress else { return 0 }
      for length in 1...3 where length <= buffer.count {
        let start = buffer.count - length
        let byte = base[start]
        if byte & 0xC0 == 0x80 { continue }
        return UTF8Text.sequenceLength(base + start, available: length) < 0 ? start : buffer.count
      }
      return buffer.count
    }
  }

  private func decode(_ tokens: [TokenID]) -> String {
    tokenizer.decode(tokens, skippingSpecialTokens: skipsSpecialTokens)
  }

  private func behindContext(_ text: String) -> String? {
    let bytes = Array(text.utf8)
    let known = Array(context.utf8)
    guard bytes.count > known.count, bytes.starts(with: known) else { return nil }
    return String(decoding: bytes[known.count...], as: UTF8.self)
  }

  private mutating func appendWindow(_ token: TokenID) -> String {
    window.append(token)
    let text = decode(window)
    // A text that ends in U+FFFD may change when the next byte token arrives.
    guard !text.utf8.suffix(3).elementsEqual("\u{FFFD}".utf8), let new = behindContext(text) else {
      return ""
    }
    // Keep the tokens of this step as context: decoders look at most one token back.
    window.removeFirst(contextCount)
    contextCount = window.count
    context = decode(window)
    return new
  }
}
