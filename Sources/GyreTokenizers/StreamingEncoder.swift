/// Tokens of a text that comes in pieces, the same as those of the whole text.
///
/// Holds the end of the text that later pieces may still change: a few hundred bytes of common text. Where the
/// tokenizer knows no place to cut (`Tokenizer.encodeSettled`) it holds the whole text.
public struct StreamingEncoder {
  private let tokenizer: any Tokenizer
  private var rest: [UInt8] = []
  /// Bytes from which on looking for a place to cut is worth it again.
  private var wanted = 0

  public init(_ tokenizer: any Tokenizer) { self.tokenizer = tokenizer }

  /// Takes a piece of the text and appends the tokens that are certain.
  public mutating func append(
    _ piece: UnsafeBufferPointer<UInt8>, into tokens: inout [TokenID]
  ) {
    rest.append(contentsOf: piece)
    guard rest.count >= wanted else { return }
    let done = rest.withUnsafeBufferPointer { tokenizer.encodeSettled(utf8: $0, into: &tokens) }
    rest.removeFirst(done)
    // Twice the length each time: looking again and again would cost its square.
    wanted = done > 0 ? 0 : 2 * rest.count
  }

  /// Ends the text: appends the tokens that are left. Another text may follow.
  public mutating func finish(into tokens: inout [TokenID]) {
    rest.withUnsafeBufferPointer { if !$0.isEmpty { tokenizer.encode(utf8: $0, into: &tokens) } }
    rest.removeAll(keepingCapacity: rest.capacity < 1 << 22)
    wanted = 0
  }
}
