/// The RWKV World tokenizer: greedy longest match over a trie of byte strings; token 0 ends a text.
///
/// The vocabulary file has a line a token: number, Python literal (`'...'` or `b'...'`), length in bytes.
public final class WorldTokenizer: Tokenizer {
  /// The usual name of the vocabulary file.
  public static let fileName = "rwkv_vocab_v20230424.txt"
  /// Larger numbers than this are taken for damage.
  static let vocabularyLimit = 1 << 24

  public let vocabularySize: Int
  private let trie: FlatTrie
  private let source: [UInt8]
  /// Token t is `arena[offsets[t]..<offsets[t + 1]]`.
  private let arena: [UInt8]
  private let offsets: [UInt32]
  /// Bytes of the longest token.
  private let longest: Int

  public var kind: TokenizerKind { .rwkvWorld }
  public var specialTokens: SpecialTokens { SpecialTokens(beginning: 0, end: 0, padding: 0) }
  public var decodesByConcatenation: Bool { true }

  /// - Parameters:
  ///   - source: the vocabulary file.
  ///   - file: its name in errors.
  /// - Throws: `TokenizerError` naming the first wrong line.
  public init(vocabulary source: [UInt8], file: String) throws(TokenizerError) {
    var entries: [(token: Int, bytes: [UInt8])] = []
    var largest = 0
    var number = 0
    for line in source.split(separator: 0x0A, omittingEmptySubsequences: false) {
      number += 1
      let line = line.last == 0x0D ? line.dropLast() : line
      if line.isEmpty { continue }
      let entry: (token: Int, bytes: [UInt8])
      do {
        entry = try WorldVocabularyLine.parse(line)
      } catch {
        throw .invalid(file: file, place: "line \(number)", reason: error.reason)
      }
      guard entry.token > 0, entry.token <= Self.vocabularyLimit else {
        throw .invalid(
          file: file, place: "line \(number)",
          reason: "token number \(entry.token) is not in 1...\(Self.vocabularyLimit)")
      }
      guard !entry.bytes.isEmpty else {
        throw .invalid(file: file, place: "line \(number)", reason: "the token is empty")
      }
      largest = max(largest, entry.token)
      entries.append(entry)
    }
    guard largest < max(65536, entries.count * 16) else {
      throw .invalid(
        file: file, place: "whole file",
        reason: "token numbers reach \(largest) but there are \(entries.count) tokens")
    }
    var order = [Int32](repeating: -1, count: largest + 1)
    var singles = Set<UInt8>()
    for (index, entry) in entries.enumerated() {
      guard order[entry.token] < 0 else {
        throw .invalid(file: file, place: "token \(entry.token)", reason: "the number occurs twice")
      }
      order[entry.token] = Int32(index)
      if entry.bytes.count == 1 { singles.insert(entry.bytes[0]) }
    }
    guard singles.count == 256 else {
      throw .invalid(
        file: file, place: "whole file",
        reason: "only \(singles.count) of the 256 single bytes are tokens")
    }
    var arena: [UInt8] = []
    var offsets: [UInt32] = [0]
    for index in order {
      if index >= 0 { arena += entries[Int(index)].bytes }
      offsets.append(UInt32(arena.count))
    }
    self.arena = arena
    self.offsets = offsets
    self.source = source
    vocabularySize = largest + 1
    longest = entries.reduce(1) { max($0, $1.bytes.count) }
    trie = FlatTrie(entries.map { ($0.bytes[...], Int32($0.token)) })
  }

  public func encode(utf8 text: UnsafeBufferPointer<UInt8>, into tokens: inout [TokenID]) {
    _ = encode(text, &tokens, startingBefore: text.count)
  }

  /// A match that begins where the longest token still fits does not depend on what follows.
  public func encodeSettled(
    utf8 text: UnsafeBufferPointer<UInt8>, into tokens: inout [TokenID]
  ) -> Int {
    encode(text, &tokens, startingBefore: text.count - longest + 1)
  }

  /// Appends the tokens that begin before `end`; where the last of them ends.
  private func encode(
    _ text: UnsafeBufferPointer<UInt8>, _ tokens: inout [TokenID], startingBefore end: Int
  ) -> Int {
    guard let base = text.baseAddress, end > 0 else { return 0 }
    tokens.reserveCapacity(tokens.count + end / 4)
    return trie.nodes.withUnsafeBufferPointer { nodes in
      guard let nodes = nodes.baseAddress else { return 0 }
      var position = 0
      while position < end {
        let match = FlatTrie.longestMatch(nodes, base + position, text.count - position)
        tokens.append(match.value)
        position += match.length
      }
      return position
    }
  }

  public func bytes(of token: TokenID) throws(TokenizerError) -> [UInt8] {
    guard token >= 0, Int(token) < vocabularySize else { throw .unknownToken(token) }
    return Array(slice(token))
  }

  private func slice(_ token: TokenID) -> ArraySlice<UInt8> {
    arena[Int(offsets[Int(token)])..<Int(offsets[Int(token) + 1])]
  }

  public func decode(_ tokens: some Sequence<TokenID>, skippingSpecialTokens: Bool) -> String {
    var bytes: [UInt8] = []
    for token in tokens where token >= 0 && Int(token) < vocabularySize { bytes += slice(token) }
    return String(decoding: bytes, as: UTF8.self)
  }

  public func token(named name: String) -> TokenID? {
    let bytes = Array(name.utf8)
    guard !bytes.isEmpty else { return nil }
    return bytes.withUnsafeBufferPointer { text in
      trie.nodes.withUnsafeBufferPointer { nodes in
        guard let nodes = nodes.baseAddress, let text = text.baseAddress else { return nil }
        let match = FlatTrie.longestMatch(nodes, text, bytes.count)
        return match.length == bytes.count ? match.value : nil
      }
    }
  }

  public func serialized() -> (fileName: String, bytes: [UInt8]) { (Self.fileName, source) }
}

/// One line of an RWKV vocabulary.
enum WorldVocabularyLine {
  struct Failure: Error { let reason: String }

  static func parse(_ line: ArraySlice<UInt8>) throws(Failure) -> (token: Int, bytes: [UInt8]) {
    guard let first = line.firstIndex(of: 0x20), let last = line.lastIndex(of: 0x20), first < last
    else {
      throw Failure(reason: "expected: number, literal, length")
    }
    guard let token = Int(String(decoding: line[..<first], as: UTF8.self)) else {
      throw Failure(reason: "the token number is not a number")
    }
    guard let length = Int(String(decoding: line[(last + 1)...], as: UTF8.self)) else {
      throw Failure(reason: "the length is not a number")
    }
    let bytes = try literal(line[(first + 1)..<last])
    guard bytes.count == length else {
      throw Failure(reason: "the literal has \(bytes.count) bytes, not \(length)")
    }
    return (token, bytes)
  }

  /// A Python string literal (its UTF-8 bytes) or bytes literal.
  private static func literal(_ text: ArraySlice<UInt8>) throws(Failure) -> [UInt8] {
    var body = text
    let isBytes = body.first == UInt8(ascii: "b")
    if isBytes { body = body.dropFirst() }
    guard body.count >= 2, let quote = body.first, quote == body.last,
      quote == UInt8(ascii: "'") || quote == UInt8(ascii: "\"")
    else { throw Failure(reason: "the literal is not quoted") }
    body = body.dropFirst().dropLast()
    var bytes: [UInt8] = []
    var position = body.startIndex
    while position < body.endIndex {
      let byte = body[position]
      position += 1
      guard byte == UInt8(ascii: "\\") else {
        guard byte != quote else { throw Failure(reason: "a quote inside the literal") }
        bytes.append(byte)
        continue
      }
      guard position < body.endIndex else {
        throw Failure(reason: "the literal ends inside an escape")
      }
      let letter = body[position]
      position += 1
      switch letter {
      case UInt8(ascii: "n"): bytes.append(0x0A)
      case UInt8(ascii: "r"): bytes.append(0x0D)
      case UInt8(ascii: "t"): bytes.append(0x09)
      case UInt8(ascii: "\\"), UInt8(ascii: "'"), UInt8(ascii: "\""): bytes.append(letter)
      case UInt8(ascii: "x"):
        let value = try hexadecimal(body, &position, 2)
        if isBytes { bytes.append(UInt8(value)) } else { UTF8Text.append(value, to: &bytes) }
      case UInt8(ascii: "u") where !isBytes: try append(hexadecimal(body, &position, 4), &bytes)
      case UInt8(ascii: "U") where !isBytes: try append(hexadecimal(body, &position, 8), &bytes)
      default: throw Failure(reason: "an unknown escape in the literal")
      }
    }
    guard isBytes || UTF8Text.isValid(bytes[...]) else {
      throw Failure(reason: "the literal is not UTF-8")
    }
    return bytes
  }

  private static func append(_ value: UInt32, _ bytes: inout [UInt8]) throws(Failure) {
    guard let scalar = Unicode.Scalar(value) else {
      throw Failure(reason: "an escape is not a scalar")
    }
    UTF8Text.append(scalar.value, to: &bytes)
  }

  private static func hexadecimal(
    _ text: ArraySlice<UInt8>, _ position: inout Int, _ digits: Int
  ) throws(Failure) -> UInt32 {
    var value: UInt32 = 0
    for _ in 0..<digits {
      guard position < text.endIndex, let digit = HexDigit.value(of: text[position]) else {
        throw Failure(reason: "an escape is cut short")
      }
      value = value << 4 | UInt32(digit)
      position += 1
    }
    return value
  }
}
