/// The part of a tokenizer that turns one piece of text into tokens.
protocol TokenModel: Sendable {
  var kind: TokenizerKind { get }
  /// Entries of the vocabulary, as the public library counts them.
  var entryCount: Int { get }
  /// One more than the largest token number.
  var tokenBound: Int { get }
  var unknown: TokenID? { get }
  func token(of text: [UInt8]) -> TokenID?
  func text(of token: TokenID) -> ArraySlice<UInt8>?
  /// Appends the tokens of one piece that is not empty.
  /// - Parameter isMapped: the bytes stand for the scalars of `ByteAlphabet`.
  func encode(
    _ piece: UnsafePointer<UInt8>, _ count: Int, isMapped: Bool, _ memory: inout ModelMemory,
    into tokens: inout [TokenID])
  /// Appends the tokens of all pieces. A requirement, so that each model has its own specialised loop.
  func encode(_ list: PieceList, _ memory: inout ModelMemory, into tokens: inout [TokenID])
  /// True when the model takes bytes that stand for scalars.
  var acceptsMappedBytes: Bool { get }
}

extension TokenModel {
  var acceptsMappedBytes: Bool { false }

  func encode(_ list: PieceList, _ memory: inout ModelMemory, into tokens: inout [TokenID]) {
    let isMapped = list.isMapped
    list.bytes.withUnsafeBufferPointer { buffer in
      guard let base = buffer.baseAddress else { return }
      for piece in list.pieces {
        let count = piece.end - piece.start
        let text = base + piece.start
        guard count <= WordCache.longestWord else {
          encode(text, count, isMapped: isMapped, &memory, into: &tokens)
          continue
        }
        let hash = ByteTable.hash(text, count)
        if memory.cache.find(text, count, hash, into: &tokens) { continue }
        let start = tokens.count
        encode(text, count, isMapped: isMapped, &memory, into: &tokens)
        memory.cache.insert(text, count, hash, tokens[start...])
      }
    }
  }
}

/// Texts by token number: one arena.
struct TokenTexts: Sendable {
  private var arena: [UInt8] = []
  private var starts: [UInt32] = []
  private var counts: [Int32] = []

  /// Tokens may be numbered up to this; more is taken for damage.
  static let tokenLimit = 1 << 26

  mutating func set(_ token: TokenID, _ text: some Collection<UInt8>) {
    while starts.count <= Int(token) {
      starts.append(0)
      counts.append(-1)
    }
    starts[Int(token)] = UInt32(arena.count)
    counts[Int(token)] = Int32(text.count)
    arena.append(contentsOf: text)
  }

  var bound: Int { starts.count }
  func contains(_ token: TokenID) -> Bool {
    token >= 0 && Int(token) < starts.count && counts[Int(token)] >= 0
  }

  @inline(__always)
  func append(_ token: TokenID, to bytes: inout [UInt8]) {
    guard contains(token) else { return }
    let start = Int(starts[Int(token)])
    let count = Int(counts[Int(token)])
    arena.withUnsafeBufferPointer {
      bytes.append(contentsOf: UnsafeBufferPointer(rebasing: $0[start..<start + count]))
    }
  }

  subscript(token: TokenID) -> ArraySlice<UInt8>? {
    guard contains(token) else { return nil }
    let start = Int(starts[Int(token)])
    return arena[start..<start + Int(counts[Int(token)])]
  }
}

/// A vocabulary that is written as a JSON object from text to number.
struct TokenVocabulary: Sendable {
  private(set) var numbers: ByteTable
  private(set) var texts = TokenTexts()

  init(_ json: JSONValue) throws(TokenizerError) {
    guard json.kind == .object else { throw json.wrong("an object") }
    var numbers = ByteTable(minimumCapacity: json.count)
    var texts = TokenTexts()
    let document = json.document
    let limit = min(TokenTexts.tokenLimit, max(1 << 20, json.count * 16))
    try json.forEachChild { (_, key, value) throws(TokenizerError) in
      let text = document.bytes(at: key)
      let node = document.nodes[value]
      let number = Double(bitPattern: node.payload)
      guard node.kind == .number, number >= 0, number < Double(limit), number == number.rounded()
      else {
        throw json.child(at: value, named: ".\(String(decoding: text, as: UTF8.self))")
          .invalid("expected a token number below \(limit)")
      }
      let id = TokenID(number)
      guard !texts.contains(id) else {
        throw json.child(at: value, named: ".\(String(decoding: text, as: UTF8.self))")
          .invalid("token number \(id) occurs twice")
      }
      guard numbers.insert(text, id) == nil else {
        throw json.child(at: value, named: ".\(String(decoding: text, as: UTF8.self))")
          .invalid("the token occurs twice")
      }
      texts.set(id, text)
    }
    self.numbers = numbers
    self.texts = texts
  }
}

/// Memory that one encoder reuses from piece to piece.
struct ModelMemory {
  var cache = WordCache()
  var ids: [TokenID] = []
  var ranks: [UInt32] = []
  var previous: [Int32] = []
  var next: [Int32] = []
  var heap: [UInt64] = []
  var bytes: [UInt8] = []
  var scores: [Double] = []
  var starts: [Int32] = []
}

/// Remembers the tokens of short pieces. Bounded: it is emptied when it is full.
struct WordCache {
  static let longestWord = 48
  private static let capacity = 1 << 16
  private static let arenaLimit = 1 << 20

  private struct Slot {
    var hash: UInt64 = 0, key: UInt32 = 0, tokens: UInt32 = 0, count: UInt16 = 0,
      tokenCount: UInt16 = 0, isUsed = false
  }

  private var slots: [Slot] = []
  private var keys: [UInt8] = []
  private var tokens: [TokenID] = []
  private var used = 0

  /// Appends the tokens of a known piece.
  @inline(__always)
  mutating func find(
    _ piece: UnsafePointer<UInt8>, _ count: Int, _ hash: UInt64, into output: inout [TokenID]
  ) -> Bool {
    if slots.isEmpty { return false }
    var index = Int(truncatingIfNeeded: hash) & (Self.capacity - 1)
    return slots.withUnsafeBufferPointer { slots in
      keys.withUnsafeBufferPointer { keys in
        guard let base = keys.baseAddress else { return false }
        while slots[index].isUsed {
          let slot = slots[index]
          if slot.hash == hash, Int(slot.count) == count,
            ByteTable.equal(base + Int(slot.key), piece, count)
          {
            if slot.tokenCount == 1 {
              output.append(tokens[Int(slot.tokens)])
            } else {
              let start = Int(slot.tokens)
              for place in start..<start + Int(slot.tokenCount) { output.append(tokens[place]) }
            }
            return true
          }
          index = (index + 1) & (Self.capacity - 1)
        }
        return false
      }
    }
  }

  mutating func insert(
    _ piece: UnsafePointer<UInt8>, _ count: Int, _ hash: UInt64, _ found: ArraySlice<TokenID>
  ) {
    if slots.isEmpty || used * 2 >= Self.capacity || keys.count > Self.arenaLimit {
      slots = [Slot](repeating: Slot(), count: Self.capacity)
      keys.removeAll(keepingCapacity: true)
      tokens.removeAll(keepingCapacity: true)
      used = 0
    }
    guard found.count < 1 << 16 else { return }
    var index = Int(truncatingIfNeeded: hash) & (Self.capacity - 1)
    while slots[index].isUsed { index = (index + 1) & (Self.capacity - 1) }
    slots[index] = Slot(
      hash: hash, key: UInt32(keys.count), tokens: UInt32(tokens.count), count: UInt16(count),
      tokenCount: UInt16(found.count), isUsed: true)
    keys.append(contentsOf: UnsafeBufferPointer(start: piece, count: count))
    tokens.append(contentsOf: found)
    used += 1
  }
}
