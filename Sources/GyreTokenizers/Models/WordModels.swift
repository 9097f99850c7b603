/// WordPiece (Schuster, Nakajima, “Japanese and Korean voice search”, 2012): greedy longest match inside a word.
struct WordPieceModel: TokenModel {
  private let vocabulary: TokenVocabulary
  private let prefix: [UInt8]
  private let longestWord: Int
  /// No token is longer, so that matching a long word is not quadratic.
  private let longestToken: Int

  let unknown: TokenID?
  var kind: TokenizerKind { .wordPiece }
  var entryCount: Int { vocabulary.numbers.count }
  var tokenBound: Int { vocabulary.texts.bound }

  init(_ json: JSONValue) throws(TokenizerError) {
    vocabulary = try TokenVocabulary(json.required("vocab"))
    prefix = try json["continuing_subword_prefix"]?.text() ?? Array("##".utf8)
    longestWord = try json["max_input_chars_per_word"]?.integer() ?? 100
    unknown = vocabulary.numbers.value(of: try json["unk_token"]?.text() ?? Array("[UNK]".utf8))
    var longest = 0
    for token in 0..<TokenID(vocabulary.texts.bound) {
      longest = max(longest, vocabulary.texts[token]?.count ?? 0)
    }
    longestToken = longest
  }

  func token(of text: [UInt8]) -> TokenID? { vocabulary.numbers.value(of: text) }
  func text(of token: TokenID) -> ArraySlice<UInt8>? { vocabulary.texts[token] }

  func encode(
    _ piece: UnsafePointer<UInt8>, _ count: Int, isMapped: Bool, _ memory: inout ModelMemory,
    into tokens: inout [TokenID]
  ) {
    var scalarCount = 0
    for index in 0..<count where piece[index] & 0xC0 != 0x80 { scalarCount += 1 }
    let restart = tokens.count
    var start = 0
    var isKnown = scalarCount <= longestWord
    while isKnown, start < count {
      var end = min(count, start + longestToken)
      while end < count, end > start, piece[end] & 0xC0 == 0x80 { end -= 1 }
      var found: TokenID?
      while end > start {
        if start == 0 {
          found = vocabulary.numbers.value(piece, end)
        } else {
          memory.bytes.removeAll(keepingCapacity: true)
          memory.bytes += prefix
          memory.bytes.append(
            contentsOf: UnsafeBufferPointer(start: piece + start, count: end - start))
          found = vocabulary.numbers.value(of: memory.bytes)
        }
        if found != nil { break }
        end = UTF8Text.start(before: end, in: piece)
      }
      if let found {
        tokens.append(found)
        start = end
      } else {
        isKnown = false
      }
    }
    if !isKnown {
      tokens.removeLast(tokens.count - restart)
      if let unknown { tokens.append(unknown) }
    }
  }
}

/// A token a word.
struct WordLevelModel: TokenModel {
  private let vocabulary: TokenVocabulary

  let unknown: TokenID?
  var kind: TokenizerKind { .wordLevel }
  var entryCount: Int { vocabulary.numbers.count }
  var tokenBound: Int { vocabulary.texts.bound }

  init(_ json: JSONValue) throws(TokenizerError) {
    vocabulary = try TokenVocabulary(json.required("vocab"))
    unknown = vocabulary.numbers.value(of: try json["unk_token"]?.text() ?? Array("<unk>".utf8))
  }

  func token(of text: [UInt8]) -> TokenID? { vocabulary.numbers.value(of: text) }
  func text(of token: TokenID) -> ArraySlice<UInt8>? { vocabulary.texts[token] }

  func encode(
    _ piece: UnsafePointer<UInt8>, _ count: Int, isMapped: Bool, _ memory: inout ModelMemory,
    into tokens: inout [TokenID]
  ) {
    if let token = vocabulary.numbers.value(piece, count) ?? unknown { tokens.append(token) }
  }
}
