/// A token that is found in the text before the model sees it.
struct AddedToken: Sendable, Hashable {
  var content: [UInt8]
  var isSpecial: Bool
  var isSingleWord = false
  var stripsLeft = false
  var stripsRight = false
  var isNormalized: Bool
  var id: TokenID = -1

  init(content: [UInt8], isSpecial: Bool) {
    self.content = content
    self.isSpecial = isSpecial
    isNormalized = !isSpecial
  }

  init(_ json: JSONValue) throws(TokenizerError) {
    content = try json.required("content").text()
    isSpecial = try json.bool("special", default: false)
    isSingleWord = try json.bool("single_word", default: false)
    stripsLeft = try json.bool("lstrip", default: false)
    stripsRight = try json.bool("rstrip", default: false)
    isNormalized = try json.bool("normalized", default: true)
    id = TokenID(try json.required("id").integer())
  }
}

/// The added tokens of a tokenizer and the two searches for them: in the raw and in the normalised text.
struct AddedVocabulary: Sendable {
  struct Match { var id: TokenID, start: Int, end: Int }

  private(set) var tokens: [AddedToken] = []
  private(set) var indexOfID: [TokenID: Int] = [:]
  private(set) var indexOfContent: [[UInt8]: Int] = [:]
  /// What decoding shows for tokens that the normaliser changes.
  private(set) var shown: [TokenID: [UInt8]] = [:]
  private var raw = Search()
  private var normalized = Search()

  var hasRawTokens: Bool { !raw.isEmpty }
  var hasNormalizedTokens: Bool { !normalized.isEmpty }

  /// - Parameter modelToken: the number that the model gives a text.
  ///
  /// Numbers in the file are not used: a token that the model knows has the model's number, others are
  /// counted on from the size of the vocabulary, as in the public library.
  init(
    _ list: [AddedToken], modelSize: Int, normalizer: Normalizer?, modelToken: ([UInt8]) -> TokenID?
  ) {
    var nextID = TokenID(modelSize)
    var special: Set<[UInt8]> = []
    for var token in list where !token.content.isEmpty {
      if let index = indexOfContent[token.content] {
        token.id = tokens[index].id
        tokens[index] = token
      } else {
        if let id = modelToken(token.content) {
          token.id = id
        } else {
          token.id = nextID
          nextID += 1
        }
        indexOfContent[token.content] = tokens.count
        indexOfID[token.id] = tokens.count
        tokens.append(token)
      }
      if token.isSpecial { special.insert(token.content) }
    }
    var rawKeys: [(key: ArraySlice<UInt8>, value: Int32)] = []
    var normalizedKeys = rawKeys
    for (index, token) in tokens.enumerated() {
      guard token.isNormalized else {
        rawKeys.append((token.content[...], Int32(index)))
        continue
      }
      var text = token.content
      normalizer?.apply(&text)
      if text != token.content { shown[token.id] = text }
      if !text.isEmpty { normalizedKeys.append((text[...], Int32(index))) }
    }
    raw = Search(rawKeys)
    normalized = Search(normalizedKeys)
    specialContents = special
  }

  init() { specialContents = [] }

  private let specialContents: Set<[UInt8]>

  /// True when decoding hides the token with this text.
  func isSpecial(_ text: [UInt8]) -> Bool { specialContents.contains(text) }

  func rawMatches(_ text: UnsafeBufferPointer<UInt8>, _ body: (Match) -> Void) {
    find(raw, text, body)
  }
  func normalizedMatches(_ text: UnsafeBufferPointer<UInt8>, _ body: (Match) -> Void) {
    find(normalized, text, body)
  }

  /// Leftmost, then longest; a rejected match is skipped as a whole.
  private func find(
    _ search: Search, _ text: UnsafeBufferPointer<UInt8>, _ body: (Match) -> Void
  ) {
    guard let base = text.baseAddress, !search.isEmpty else { return }
    var last = 0
    search.forEachMatch(base, text.count) { index, found in
      let token = tokens[index]
      var start = found.lowerBound
      var end = found.upperBound
      if token.isSingleWord {
        let before =
          start > 0
          && LibraryScalars.isWord(
            UTF8Text.scalar(base, UTF8Text.start(before: start, in: base)).value)
        let after = end < text.count && LibraryScalars.isWord(UTF8Text.scalar(base, end).value)
        if before || after { return }
      }
      if token.stripsLeft {
        while start > last {
          let previous = UTF8Text.start(before: start, in: base)
          guard previous >= last, LibraryScalars.isWhitespace(UTF8Text.scalar(base, previous).value)
          else { break }
          start = previous
        }
      }
      if token.stripsRight {
        while end < text.count {
          let (scalar, length) = UTF8Text.scalar(base, end)
          guard LibraryScalars.isWhitespace(scalar) else { break }
          end += length
        }
      }
      // The spaces that a token before took may hold the beginning of this one.
      start = max(start, last)
      body(Match(id: token.id, start: start, end: max(end, start)))
      last = max(end, last)
    }
  }

  /// Multi-pattern search: a trie behind a filter on the first byte.
  private struct Search: Sendable {
    private var trie = FlatTrie()
    private var first = [Bool](repeating: false, count: 256)
    private(set) var isEmpty = true

    init() {}

    init(_ keys: [(key: ArraySlice<UInt8>, value: Int32)]) {
      guard !keys.isEmpty else { return }
      trie = FlatTrie(keys)
      for entry in keys { if let byte = entry.key.first { first[Int(byte)] = true } }
      isEmpty = false
    }

    func forEachMatch(
      _ text: UnsafePointer<UInt8>, _ count: Int, _ body: (_ index: Int, Range<Int>) -> Void
    ) {
      trie.nodes.withUnsafeBufferPointer { nodes in
        first.withUnsafeBufferPointer { first in
          guard let nodes = nodes.baseAddress, let first = first.baseAddress else { return }
          var position = 0
          while position < count {
            guard first[Int(text[position])] else {
              position += 1
              continue
            }
            let match = FlatTrie.longestMatch(nodes, text + position, count - position)
            if match.length > 0 {
              body(Int(match.value), position..<position + match.length)
              position += match.length
            } else {
              position += 1
            }
          }
        }
      }
    }
  }
}
