/// Learns a byte-level byte pair vocabulary (GPT-2 style pieces): again and again the most frequent pair of
/// neighbours becomes a token; of equally frequent pairs the one with the smaller numbers. Gives the same merges as
/// the trainer of the public `tokenizers` library, and does not depend on the order of the texts.
public struct BytePairTrainer: Sendable {
  /// Tokens to make, special ones and the 256 bytes included.
  public var vocabularySize: Int
  /// A pair that is seen less often is not merged.
  public var minimumFrequency: Int
  /// Tokens that are numbered first and found in texts as a whole.
  public var specialTokens: [String]
  /// Puts a space before a text that begins without one.
  public var addsPrefixSpace: Bool
  /// Include all 256 bytes, also those that the texts do not contain, so that nothing is unknown.
  public var includesAllBytes: Bool

  private var counts = ByteTable(minimumCapacity: 1 << 14)
  private var words: [[UInt8]] = []
  private var frequencies: [Int] = []

  public init(
    vocabularySize: Int, minimumFrequency: Int = 0, specialTokens: [String] = [],
    addsPrefixSpace: Bool = false, includesAllBytes: Bool = true
  ) {
    self.vocabularySize = vocabularySize
    self.minimumFrequency = minimumFrequency
    self.specialTokens = specialTokens
    self.addsPrefixSpace = addsPrefixSpace
    self.includesAllBytes = includesAllBytes
  }

  /// Counts the pieces of one text.
  public mutating func feed(_ text: String) {
    var text = text
    text.withUTF8 { feed($0) }
  }

  /// Counts the pieces of a long text, taken line by line (line ends belong to their lines).
  public mutating func feedLines(_ text: String) {
    var text = text
    text.withUTF8 { buffer in
      var start = 0
      while start < buffer.count {
        let end = buffer[start...].firstIndex(of: 0x0A).map { $0 + 1 } ?? buffer.count
        feed(UnsafeBufferPointer(rebasing: buffer[start..<end]))
        start = end
      }
    }
  }

  private mutating func feed(_ text: UnsafeBufferPointer<UInt8>) {
    guard let base = text.baseAddress, !text.isEmpty else { return }
    if addsPrefixSpace, text[0] != 0x20 {
      let spaced = [0x20] + Array(text)
      spaced.withUnsafeBufferPointer { if let base = $0.baseAddress { count(base, $0.count) } }
    } else {
      count(base, text.count)
    }
  }

  private mutating func count(_ text: UnsafePointer<UInt8>, _ length: Int) {
    KnownPattern.gpt2.forEachMatch(text, length) { range in
      let piece = text + range.lowerBound
      if let index = counts.value(piece, range.count) {
        frequencies[Int(index)] += 1
      } else {
        let word = UnsafeBufferPointer(start: piece, count: range.count)
        counts.insert(word, Int32(words.count))
        words.append(Array(word))
        frequencies.append(1)
      }
    }
  }

  /// Makes the tokenizer. The file it saves is read by the public library too.
  public func train() throws(TokenizerError) -> PipelineTokenizer {
    var learner = BytePairLearner(
      words: words, frequencies: frequencies, specialTokens: specialTokens.map { Array($0.utf8) },
      includesAllBytes: includesAllBytes)
    learner.run(vocabularySize: vocabularySize, minimumFrequency: max(1, minimumFrequency))
    let json = BytePairFile.write(
      learner, specialTokens: specialTokens, addsPrefixSpace: addsPrefixSpace)
    return try PipelineTokenizer(json: json, file: TokenizerFile.jsonName)
  }
}

/// The merging loop: counts of pairs are kept up to date by the words that change.
struct BytePairLearner {
  private(set) var texts: [[UInt8]] = []
  private(set) var merges: [(left: Int32, right: Int32)] = []
  private var numbers = ByteTable()
  private var symbols: [Int32] = []
  private var starts: [Int] = []
  private var lengths: [Int32] = []
  private let frequencies: [Int]
  private var pairIndex: [UInt64: Int32] = [:]
  private var pairCounts: [Int] = []

  private struct Entry { var count: Int, pair: UInt64, words: [Int32] }
  private var queue: [Entry] = []

  init(words: [[UInt8]], frequencies: [Int], specialTokens: [[UInt8]], includesAllBytes: Bool) {
    self.frequencies = frequencies
    for token in specialTokens where numbers.value(of: token) == nil { add(token) }
    var isUsed = [Bool](repeating: includesAllBytes, count: 256)
    for word in words { for byte in word { isUsed[Int(byte)] = true } }
    let alphabet = (0..<256).filter { isUsed[$0] }.sorted {
      ByteAlphabet.scalars[$0] < ByteAlphabet.scalars[$1]
    }
    for byte in alphabet {
      let text = UTF8Text.bytes(of: [ByteAlphabet.scalars[byte]])
      if numbers.value(of: text) == nil { add(text) }
    }
    let byteTokens = (0..<256).map {
      numbers.value(of: UTF8Text.bytes(of: [ByteAlphabet.scalars[$0]])) ?? 0
    }
    for word in words {
      starts.append(symbols.count)
      lengths.append(Int32(word.count))
      for byte in word { symbols.append(byteTokens[Int(byte)]) }
    }
  }

  private mutating func add(_ text: [UInt8]) {
    numbers.insert(text, Int32(texts.count))
    texts.append(text)
  }

  private mutating func index(of pair: UInt64) -> Int {
    if let index = pairIndex[pair] { return Int(index) }
    pairIndex[pair] = Int32(pairCounts.count)
    pairCounts.append(0)
    return pairCounts.count - 1
  }

  mutating func run(vocabularySize: Int, minimumFrequency: Int) {
    var places: [UInt64: [Int32]] = [:]
    for word in starts.indices {
      for index in starts[word]..<starts[word] + Int(lengths[word]) - 1 {
        change(PairTable.key(symbols[index], symbols[index + 1]), 1, word, &places)
      }
    }
    enqueue(&places)
    while texts.count < vocabularySize, var top = pop() {
      let current = pairCounts[index(of: top.pair)]
      if top.count != current {
        top.count = current
        push(top)
        continue
      }
      guard top.count >= minimumFrequency else { return }
      let left = Int32(truncatingIfNeeded: top.pair >> 32)
      let right = Int32(truncatingIfNeeded: top.pair & 0xFFFF_FFFF)
      let text = texts[Int(left)] + texts[Int(right)]
      let merged = numbers.value(of: text) ?? Int32(texts.count)
      if Int(merged) == texts.count { add(text) }
      merges.append((left, right))
      for word in top.words { merge(Int(word), left, right, merged, &places) }
      enqueue(&places)
    }
  }

  private mutating func change(
    _ pair: UInt64, _ sign: Int, _ word: Int, _ places: inout [UInt64: [Int32]]
  ) {
    pairCounts[index(of: pair)] += sign * frequencies[word]
    if sign > 0, places[pair]?.last != Int32(word) { places[pair, default: []].append(Int32(word)) }
  }

  /// Merges every occurrence in one word from left to right and reports how the pairs changed.
  private mutating func merge(
    _ word: Int, _ left: Int32, _ right: Int32, _ merged: Int32, _ places: inout [UInt64: [Int32]]
  ) {
    let start = starts[word]
    let count = Int(lengths[word])
    var read = 0
    var written = 0
    while read < count {
      let symbol = symbols[start + read]
      if symbol == left, read + 1 < count, symbols[start + read + 1] == right {
        if written > 0 {
          let before = symbols[start + written - 1]
          change(PairTable.key(before, left), -1, word, &places)
          change(PairTable.key(before, merged), 1, word, &places)
        }
        if read + 2 < count {
          let after = symbols[start + read + 2]
          change(PairTable.key(right, after), -1, word, &places)
          change(PairTable.key(merged, after), 1, word, &places)
        }
        symbols[start + written] = merged
        read += 2
      } else {
        symbols[start + written] = symbol
        read += 1
      }
      written += 1
    }
    lengths[word] = Int32(written)
  }

  private mutating func enqueue(_ places: inout [UInt64: [Int32]]) {
    for (pair, words) in places {
      let count = pairCounts[index(of: pair)]
      if count > 0 { push(Entry(count: count, pair: pair, words: words)) }
    }
    places.removeAll(keepingCapacity: true)
  }

  // MARK: Queue, most frequent first

  private static func precedes(_ left: Entry, _ right: Entry) -> Bool {
    left.count != right.count ? left.count > right.count : left.pair < right.pair
  }

  private mutating func push(_ entry: Entry) {
    queue.append(entry)
    var index = queue.count - 1
    while index > 0 {
      let parent = (index - 1) / 2
      guard Self.precedes(queue[index], queue[parent]) else { return }
      queue.swapAt(index, parent)
      index = parent
    }
  }

  private mutating func pop() -> Entry? {
    guard !queue.isEmpty else { return nil }
    queue.swapAt(0, queue.count - 1)
    let top = queue.removeLast()
    var index = 0
    while true {
      var child = 2 * index + 1
      guard child < queue.count else { break }
      if child + 1 < queue.count, Self.precedes(queue[child + 1], queue[child]) { child += 1 }
      guard Self.precedes(queue[child], queue[index]) else { break }
      queue.swapAt(index, child)
      index = child
    }
    return top
  }
}

/// Writes `tokenizer.json` of a byte-level tokenizer.
enum BytePairFile {
  static func write(
    _ learner: BytePairLearner, specialTokens: [String], addsPrefixSpace: Bool
  ) -> [UInt8] {
    var output: [UInt8] = []
    func raw(_ text: String) { output += text.utf8 }
    raw(
      "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": ["
    )
    var listed: Set<[UInt8]> = []
    for (index, token) in learner.texts.enumerated().prefix(specialTokens.count) {
      guard specialTokens.contains(where: { Array($0.utf8) == token }),
        listed.insert(token).inserted
      else { continue }
      raw(listed.count == 1 ? "\n    " : ",\n    ")
      raw("{\"id\": \(index), \"content\": ")
      string(token, &output)
      raw(
        ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": true}"
      )
    }
    raw(listed.isEmpty ? "],\n" : "\n  ],\n")
    let byteLevel =
      "{\"type\": \"ByteLevel\", \"add_prefix_space\": \(addsPrefixSpace), \"trim_offsets\": true, \"use_regex\": true}"
    raw(
      "  \"normalizer\": null,\n  \"pre_tokenizer\": \(byteLevel),\n  \"post_processor\": \(byteLevel),\n"
    )
    raw(
      "  \"decoder\": \(byteLevel),\n  \"model\": {\n    \"type\": \"BPE\", \"dropout\": null, \"unk_token\": null,\n"
    )
    raw(
      "    \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null, \"fuse_unk\": false,\n"
    )
    raw("    \"byte_fallback\": false, \"ignore_merges\": false,\n    \"vocab\": {")
    for (index, text) in learner.texts.enumerated() {
      raw(index == 0 ? "\n      " : ",\n      ")
      string(text, &output)
      raw(": \(index)")
    }
    raw("\n    },\n    \"merges\": [")
    // Of a pair that was merged twice the library keeps the later rank.
    var last: [UInt64: Int] = [:]
    for (rank, pair) in learner.merges.enumerated() {
      last[PairTable.key(pair.left, pair.right)] = rank
    }
    var isFirst = true
    for (rank, pair) in learner.merges.enumerated()
    where last[PairTable.key(pair.left, pair.right)] == rank {
      raw(isFirst ? "\n      [" : ",\n      [")
      isFirst = false
      string(learner.texts[Int(pair.left)], &output)
      raw(", ")
      string(learner.texts[Int(pair.right)], &output)
      raw("]")
    }
    raw("\n    ]\n  }\n}\n")
    return output
  }

  private static func string(_ text: [UInt8], _ output: inout [UInt8]) {
    let digits = Array("0123456789abcdef".utf8)
    output.append(UInt8(ascii: "\""))
    for byte in text {
      switch byte {
      case UInt8(ascii: "\""), UInt8(ascii: "\\"):
        output.append(UInt8(ascii: "\\"))
        output.append(byte)
      case 0..<0x20:
        output += "\\u00".utf8
        output.append(digits[Int(byte >> 4)])
        output.append(digits[Int(byte & 15)])
      default: output.append(byte)
      }
    }
    output.append(UInt8(ascii: "\""))
  }
}
