/// Unigram language model (Kudo, “Subword regularization”, 2018, https://arxiv.org/abs/1804.10959):
/// the segmentation of highest total score, by dynamic programming over end positions.
struct UnigramModel: TokenModel {
  private let trie: FlatTrie
  private let scores: [Double]
  private let texts: TokenTexts
  private let numbers: ByteTable
  private let unknownScore: Double
  private let fallback: [TokenID]?

  let unknown: TokenID?
  var kind: TokenizerKind { .unigram }
  var entryCount: Int { scores.count }
  var tokenBound: Int { scores.count }

  /// A text outside of the vocabulary costs this much more than the worst token.
  private static let unknownPenalty = 10.0

  init(_ json: JSONValue) throws(TokenizerError) {
    let list = try json.required("vocab")
    guard list.kind == .array else { throw list.wrong("an array") }
    let document = json.document
    var scores: [Double] = []
    var texts = TokenTexts()
    var numbers = ByteTable(minimumCapacity: list.count)
    var keys: [(key: ArraySlice<UInt8>, value: Int32)] = []
    try list.forEachChild { (index, _, value) throws(TokenizerError) in
      let node = document.nodes[value]
      guard node.kind == .array, node.count == 2, document.nodes[value + 1].kind == .string,
        document.nodes[value + 2].kind == .number
      else { throw list.child(at: value, named: "[\(index)]").invalid("expected [text, score]") }
      let text = document.bytes(at: value + 1)
      scores.append(Double(bitPattern: document.nodes[value + 2].payload))
      texts.set(TokenID(index), text)
      numbers.insert(text, TokenID(index))
      keys.append((text, Int32(index)))
    }
    if let id = json["unk_id"] {
      let value = try id.integer()
      guard value < scores.count else { throw id.invalid("there are only \(scores.count) tokens") }
      unknown = TokenID(value)
    } else {
      unknown = nil
    }
    unknownScore = (scores.min() ?? 0) - Self.unknownPenalty
    trie = FlatTrie(keys)
    if try json.bool("byte_fallback", default: false) {
      let digits = Array("0123456789ABCDEF".utf8)
      fallback = (0..<256).map { byte in
        numbers.value(
          of: Array("<0x".utf8) + [digits[byte >> 4], digits[byte & 15], UInt8(ascii: ">")]) ?? -1
      }
    } else {
      fallback = nil
    }
    self.scores = scores
    self.texts = texts
    self.numbers = numbers
  }

  func token(of text: [UInt8]) -> TokenID? { numbers.value(of: text) }
  func text(of token: TokenID) -> ArraySlice<UInt8>? { texts[token] }

  func encode(
    _ piece: UnsafePointer<UInt8>, _ count: Int, isMapped: Bool, _ memory: inout ModelMemory,
    into tokens: inout [TokenID]
  ) {
    // Best score, start and token of the path that ends at every byte; a start of -1 is no path.
    memory.scores = [Double](repeating: 0, count: count + 1)
    memory.starts = [Int32](repeating: -1, count: count + 1)
    memory.ids = [TokenID](repeating: -1, count: count + 1)
    trie.nodes.withUnsafeBufferPointer { nodes in
      guard let nodes = nodes.baseAddress else { return }
      var start = 0
      while start < count {
        let soFar = memory.scores[start]
        let length = UTF8Text.length(lead: piece[start])
        var hasSingle = false
        func offer(_ end: Int, _ score: Double, _ token: TokenID) {
          if memory.starts[end] < 0 || score > memory.scores[end] {
            memory.scores[end] = score
            memory.starts[end] = Int32(start)
            memory.ids[end] = token
          }
        }
        FlatTrie.forEachMatch(nodes, piece + start, count - start) { token, size in
          offer(start + size, scores[Int(token)] + soFar, token)
          if size == length { hasSingle = true }
        }
        if !hasSingle { offer(start + length, unknownScore + soFar, unknown ?? -1) }
        start += length
      }
    }
    var pieces: [(start: Int, end: Int, token: TokenID)] = []
    var end = count
    while end > 0 {
      let start = Int(memory.starts[end])
      let token = memory.ids[end]
      let isUnknown = token == (unknown ?? -1)
      if isUnknown, let last = pieces.last, last.token == token, last.start == end {
        pieces[pieces.count - 1].start = start
      } else {
        pieces.append((start, end, token))
      }
      end = start
    }
    for found in pieces.reversed() {
      guard found.token == (unknown ?? -1) else {
        tokens.append(found.token)
        continue
      }
      let size = found.end - found.start
      if let known = numbers.value(piece + found.start, size) {
        tokens.append(known)
      } else if let fallback,
        (found.start..<found.end).allSatisfy({ fallback[Int(piece[$0])] >= 0 })
      {
        for index in found.start..<found.end { tokens.append(fallback[Int(piece[index])]) }
      } else if let unknown {
        tokens.append(unknown)
      }
    }
  }
}
