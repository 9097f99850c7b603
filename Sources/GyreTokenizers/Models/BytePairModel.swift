/// Byte pair encoding (Sennrich, Haddow, Birch, “Neural machine translation of rare words with subword units”,
/// 2016, https://arxiv.org/abs/1508.07909): merges the pair of lowest rank, leftmost first, until none is left.
struct BytePairModel: TokenModel {
  private let vocabulary: TokenVocabulary
  private let pairs: PairTable
  private let prefix: [UInt8]
  private let suffix: [UInt8]
  private let fusesUnknown: Bool
  private let ignoresMerges: Bool
  private let fallback: [TokenID]?
  /// Token of every byte in mapped pieces; empty when mapped pieces need the general way.
  private let byteTokens: [TokenID]
  /// Whole pieces, keyed by the bytes behind the stand-ins.
  private let mappedTokens: ByteTable?

  let unknown: TokenID?
  var kind: TokenizerKind { .bytePair }
  var entryCount: Int { vocabulary.numbers.count }
  var tokenBound: Int { vocabulary.texts.bound }
  var acceptsMappedBytes: Bool { !byteTokens.isEmpty }

  /// Words up to this many symbols are merged by scanning all ranks, longer ones with a heap.
  private static let scanLimit = 64

  init(_ json: JSONValue, isByteLevel: Bool) throws(TokenizerError) {
    vocabulary = try TokenVocabulary(json.required("vocab"))
    prefix = try json["continuing_subword_prefix"]?.text() ?? []
    suffix = try json["end_of_word_suffix"]?.text() ?? []
    fusesUnknown = try json.bool("fuse_unk", default: false)
    ignoresMerges = try json.bool("ignore_merges", default: false)
    if let name = json["unk_token"] {
      // The library fails when it meets the first unknown text; here such text is dropped.
      unknown = vocabulary.numbers.value(of: try name.text())
    } else {
      unknown = nil
    }
    let numbers = vocabulary.numbers
    let bytes = (0..<256).map { numbers.value(of: Array("<0x\(Self.hexadecimal($0))>".utf8)) ?? -1 }
    fallback = try json.bool("byte_fallback", default: false) ? bytes : nil
    pairs = try Self.pairs(json.required("merges"), vocabulary, prefix.count)

    let singles = (0..<256).map { numbers.value(of: ByteAlphabet.map([UInt8($0)])) ?? -1 }
    let isPlain = prefix.isEmpty && suffix.isEmpty
    // Bytes without a token are dropped where nothing stands in for them.
    let isComplete = !singles.contains(-1) || unknown == nil && fallback == nil
    byteTokens = isByteLevel && isPlain && isComplete ? singles : []
    if isByteLevel, isPlain, ignoresMerges {
      var mapped = ByteTable(minimumCapacity: numbers.count)
      for token in 0..<TokenID(vocabulary.texts.bound) {
        if let text = vocabulary.texts[token], let raw = ByteAlphabet.unmap(Array(text)),
          !raw.isEmpty
        {
          mapped.insert(raw, token)
        }
      }
      mappedTokens = mapped
    } else {
      mappedTokens = nil
    }
  }

  private static func hexadecimal(_ byte: Int) -> String {
    let text = String(byte, radix: 16, uppercase: true)
    return byte < 16 ? "0" + text : text
  }

  private static func pairs(
    _ json: JSONValue, _ vocabulary: TokenVocabulary, _ prefixCount: Int
  ) throws(TokenizerError) -> PairTable {
    guard json.kind == .array else { throw json.wrong("an array") }
    let document = json.document
    var table = PairTable(count: json.count)
    var whole: [UInt8] = []
    try json.forEachChild { (rank, _, value) throws(TokenizerError) in
      let left: ArraySlice<UInt8>
      let right: ArraySlice<UInt8>
      func failure(_ reason: String) -> TokenizerError {
        json.child(at: value, named: "[\(rank)]").invalid(reason)
      }
      switch document.nodes[value].kind {
      case .string:
        let text = document.bytes(at: value)
        let parts = text.split(separator: 0x20, omittingEmptySubsequences: false)
        guard parts.count == 2 else { throw failure("expected two tokens with a space between") }
        (left, right) = (parts[0], parts[1])
      case .array
      where document.nodes[value].count == 2 && document.nodes[value + 1].kind == .string
        && document.nodes[value + 2].kind == .string:
        (left, right) = (document.bytes(at: value + 1), document.bytes(at: value + 2))
      default: throw failure("expected \"a b\" or [\"a\", \"b\"]")
      }
      func number(_ text: ArraySlice<UInt8>) throws(TokenizerError) -> TokenID {
        let found = text.withUnsafeBufferPointer { buffer in
          buffer.baseAddress.flatMap { vocabulary.numbers.value($0, buffer.count) }
        }
        guard let found else {
          throw failure(
            "the token \"\(String(decoding: text, as: UTF8.self))\" is not in the vocabulary")
        }
        return found
      }
      let (leftID, rightID) = (try number(left), try number(right))
      guard right.count >= prefixCount else {
        throw failure("the second token is shorter than the prefix")
      }
      whole.removeAll(keepingCapacity: true)
      whole += left
      whole += right.dropFirst(prefixCount)
      table.insert(leftID, rightID, rank: UInt32(rank), merged: try number(whole[...]))
    }
    return table
  }

  func token(of text: [UInt8]) -> TokenID? { vocabulary.numbers.value(of: text) }
  func text(of token: TokenID) -> ArraySlice<UInt8>? { vocabulary.texts[token] }

  func encode(
    _ piece: UnsafePointer<UInt8>, _ count: Int, isMapped: Bool, _ memory: inout ModelMemory,
    into tokens: inout [TokenID]
  ) {
    if ignoresMerges {
      let known =
        isMapped ? mappedTokens?.value(piece, count) : vocabulary.numbers.value(piece, count)
      if let known {
        tokens.append(known)
        return
      }
    }
    memory.ids.removeAll(keepingCapacity: true)
    if isMapped {
      byteTokens.withUnsafeBufferPointer { byteTokens in
        for index in 0..<count {
          let token = byteTokens[Int(piece[index])]
          if token >= 0 { memory.ids.append(token) }
        }
      }
    } else {
      symbols(piece, count, &memory)
    }
    if memory.ids.count <= Self.scanLimit {
      mergeByScan(&memory)
    } else {
      mergeByHeap(&memory)
    }
    tokens.append(contentsOf: memory.ids)
  }

  /// The symbols of a piece before any merge.
  private func symbols(_ piece: UnsafePointer<UInt8>, _ count: Int, _ memory: inout ModelMemory) {
    var position = 0
    var hasUnknown = false
    while position < count {
      let length = UTF8Text.length(lead: piece[position])
      let isLast = position + length >= count
      var token: TokenID?
      let decorates = position > 0 && !prefix.isEmpty || isLast && !suffix.isEmpty
      if decorates {
        memory.bytes.removeAll(keepingCapacity: true)
        if position > 0 { memory.bytes += prefix }
        memory.bytes.append(contentsOf: UnsafeBufferPointer(start: piece + position, count: length))
        if isLast { memory.bytes += suffix }
        token = vocabulary.numbers.value(of: memory.bytes)
      } else {
        token = vocabulary.numbers.value(piece + position, length)
      }
      if let token {
        if hasUnknown, let unknown { memory.ids.append(unknown) }
        hasUnknown = false
        memory.ids.append(token)
      } else {
        let text =
          decorates
          ? memory.bytes[...]
          : ArraySlice(UnsafeBufferPointer(start: piece + position, count: length))
        if let fallback, text.allSatisfy({ fallback[Int($0)] >= 0 }) {
          // An unknown run that is still open is written behind these, as in the library.
          for byte in text { memory.ids.append(fallback[Int(byte)]) }
        } else if let unknown {
          if hasUnknown, !fusesUnknown { memory.ids.append(unknown) }
          hasUnknown = true
        }
      }
      position += length
    }
    if hasUnknown, let unknown { memory.ids.append(unknown) }
  }

  private func mergeByScan(_ memory: inout ModelMemory) {
    var count = memory.ids.count
    guard count > 1 else { return }
    if memory.ranks.count < Self.scanLimit * 2 {
      memory.ranks = [UInt32](repeating: .max, count: Self.scanLimit * 2)
    }
    memory.ids.withUnsafeMutableBufferPointer { ids in
      memory.ranks.withUnsafeMutableBufferPointer { ranks in
        pairs.withView { pairs in
          for index in 0..<count - 1 { ranks[index] = pairs.rule(ids[index], ids[index + 1]).rank }
          while count > 1 {
            var best = UInt32.max
            var place = 0
            for index in 0..<count - 1 where ranks[index] < best {
              best = ranks[index]
              place = index
            }
            if best == .max { break }
            ids[place] = pairs.rule(ids[place], ids[place + 1]).merged
            count -= 1
            var index = place + 1
            while index < count {
              ids[index] = ids[index + 1]
              ranks[index - 1] = ranks[index]
              index += 1
            }
            if place + 1 < count { ranks[place] = pairs.rule(ids[place], ids[place + 1]).rank }
            if place > 0 { ranks[place - 1] = pairs.rule(ids[place - 1], ids[place]).rank }
          }
        }
      }
    }
    memory.ids.removeLast(memory.ids.count - count)
  }

  /// O(n log n): a heap of (rank, place) over a linked list of symbols. Entries that a merge made stale are
  /// recognised by their rank, because every pair has its own.
  private func mergeByHeap(_ memory: inout ModelMemory) {
    let count = memory.ids.count
    guard count < Int32.max else { return }
    memory.previous = (0..<Int32(count)).map { $0 - 1 }
    memory.next = (1...Int32(count)).map { $0 < Int32(count) ? $0 : -1 }
    memory.heap.removeAll(keepingCapacity: true)
    pairs.withView { pairs in
      for index in 0..<count - 1 {
        let rank = pairs.rule(memory.ids[index], memory.ids[index + 1]).rank
        if rank != .max { memory.heap.append(UInt64(rank) << 32 | UInt64(index)) }
      }
      MinimumHeap.build(&memory.heap)
      while let top = MinimumHeap.pop(&memory.heap) {
        let place = Int(top & 0xFFFF_FFFF)
        let right = Int(memory.next[place])
        guard memory.ids[place] >= 0, right >= 0 else { continue }
        let rule = pairs.rule(memory.ids[place], memory.ids[right])
        guard UInt64(rule.rank) == top >> 32 else { continue }
        memory.ids[place] = rule.merged
        memory.ids[right] = -1
        let after = Int(memory.next[right])
        memory.next[place] = Int32(after)
        if after >= 0 {
          memory.previous[after] = Int32(place)
          let rank = pairs.rule(rule.merged, memory.ids[after]).rank
          if rank != .max { MinimumHeap.push(UInt64(rank) << 32 | UInt64(place), &memory.heap) }
        }
        let before = Int(memory.previous[place])
        if before >= 0 {
          let rank = pairs.rule(memory.ids[before], rule.merged).rank
          if rank != .max { MinimumHeap.push(UInt64(rank) << 32 | UInt64(before), &memory.heap) }
        }
      }
    }
    memory.ids.removeAll { $0 < 0 }
  }
}

/// A binary heap of integers, smallest first.
enum MinimumHeap {
  static func build(_ heap: inout [UInt64]) {
    guard heap.count > 1 else { return }
    for index in stride(from: heap.count / 2 - 1, through: 0, by: -1) { sink(index, &heap) }
  }

  static func push(_ value: UInt64, _ heap: inout [UInt64]) {
    heap.append(value)
    var index = heap.count - 1
    while index > 0 {
      let parent = (index - 1) / 2
      guard heap[index] < heap[parent] else { return }
      heap.swapAt(index, parent)
      index = parent
    }
  }

  static func pop(_ heap: inout [UInt64]) -> UInt64? {
    guard let top = heap.first else { return nil }
    let last = heap.removeLast()
    if !heap.isEmpty {
      heap[0] = last
      sink(0, &heap)
    }
    return top
  }

  private static func sink(_ start: Int, _ heap: inout [UInt64]) {
    var index = start
    let count = heap.count
    while true {
      var child = 2 * index + 1
      guard child < count else { return }
      if child + 1 < count, heap[child + 1] < heap[child] { child += 1 }
      guard heap[child] < heap[index] else { return }
      heap.swapAt(index, child)
      index = child
    }
  }
}
