/// A map from byte strings to token numbers: open addressing over one arena of key bytes.
struct ByteTable: Sendable {
  private struct Slot {
    var hash: UInt64 = 0, start: UInt32 = 0, count: UInt32 = 0, value: Int32 = -1
  }

  private var slots: [Slot]
  private var arena: [UInt8] = []
  private(set) var count = 0

  init(minimumCapacity: Int = 8) {
    var size = 16
    while size < minimumCapacity * 2 { size *= 2 }
    slots = [Slot](repeating: Slot(), count: size)
  }

  /// A 64-bit hash of bytes by multiply and fold, eight bytes a step.
  @inline(__always)
  static func hash(_ bytes: UnsafePointer<UInt8>, _ count: Int) -> UInt64 {
    var hash = 0x9E37_79B9_7F4A_7C15 ^ UInt64(truncatingIfNeeded: count) &* 0xA24B_AED4_963E_E407
    var position = 0
    let raw = UnsafeRawPointer(bytes)
    @inline(__always) func mix(_ word: UInt64) {
      let product = (hash ^ word).multipliedFullWidth(by: 0xD6E8_FEB8_6659_FD93)
      hash = product.high ^ product.low
    }
    while position + 8 <= count {
      mix(raw.loadUnaligned(fromByteOffset: position, as: UInt64.self))
      position += 8
    }
    if position < count {
      var word: UInt64 = 0
      if count >= 8 {
        word = raw.loadUnaligned(fromByteOffset: count - 8, as: UInt64.self)
      } else {
        var shift: UInt64 = 0
        while position < count {
          word |= UInt64(bytes[position]) << shift
          shift += 8
          position += 1
        }
      }
      mix(word)
    }
    return hash ^ hash >> 29
  }

  @inline(__always)
  static func equal(_ left: UnsafePointer<UInt8>, _ right: UnsafePointer<UInt8>, _ count: Int)
    -> Bool
  {
    var position = 0
    let first = UnsafeRawPointer(left)
    let second = UnsafeRawPointer(right)
    while position + 8 <= count {
      if first.loadUnaligned(fromByteOffset: position, as: UInt64.self)
        != second.loadUnaligned(fromByteOffset: position, as: UInt64.self)
      {
        return false
      }
      position += 8
    }
    while position < count {
      if left[position] != right[position] { return false }
      position += 1
    }
    return true
  }

  /// Stores a value; the old one is replaced and returned.
  @discardableResult
  mutating func insert(_ key: some Collection<UInt8>, _ value: Int32) -> Int32? {
    if (count + 1) * 2 > slots.count { grow() }
    let start = arena.count
    arena.append(contentsOf: key)
    let length = arena.count - start
    let (index, hash) = arena.withUnsafeBufferPointer { buffer in
      guard let base = buffer.baseAddress else { return withEmptyKey { find($0, 0) } }
      return find(base + start, length)
    }
    if slots[index].value >= 0 {
      arena.removeLast(length)
      let old = slots[index].value
      slots[index].value = value
      return old
    }
    slots[index] = Slot(hash: hash, start: UInt32(start), count: UInt32(length), value: value)
    count += 1
    return nil
  }

  private func withEmptyKey<Result>(_ body: (UnsafePointer<UInt8>) -> Result) -> Result {
    var byte: UInt8 = 0
    return body(&byte)
  }

  @inline(__always)
  private func find(_ key: UnsafePointer<UInt8>, _ length: Int) -> (index: Int, hash: UInt64) {
    let hash = Self.hash(key, length)
    let mask = slots.count - 1
    var index = Int(truncatingIfNeeded: hash) & mask
    return slots.withUnsafeBufferPointer { slots in
      arena.withUnsafeBufferPointer { arena in
        while slots[index].value >= 0 {
          let slot = slots[index]
          if slot.hash == hash, slot.count == UInt32(length) {
            guard length > 0, let base = arena.baseAddress else { break }
            if Self.equal(base + Int(slot.start), key, length) { break }
          }
          index = (index + 1) & mask
        }
        return (index, hash)
      }
    }
  }

  @inline(__always)
  func value(_ key: UnsafePointer<UInt8>, _ length: Int) -> Int32? {
    let value = slots[find(key, length).index].value
    return value >= 0 ? value : nil
  }

  func value(of key: [UInt8]) -> Int32? {
    key.withUnsafeBufferPointer { buffer in
      guard let base = buffer.baseAddress else { return withEmptyKey { value($0, 0) } }
      return value(base, buffer.count)
    }
  }

  private mutating func grow() {
    var larger = [Slot](repeating: Slot(), count: slots.count * 2)
    let mask = larger.count - 1
    for slot in slots where slot.value >= 0 {
      var index = Int(truncatingIfNeeded: slot.hash) & mask
      while larger[index].value >= 0 { index = (index + 1) & mask }
      larger[index] = slot
    }
    slots = larger
  }
}

/// Merge rules: pair of tokens → rank and merged token. Open addressing, one cache line a lookup.
struct PairTable: Sendable {
  struct Rule: Sendable { var key = UInt64.max, rank = UInt32.max, merged: TokenID = -1 }

  private(set) var slots: [Rule]
  private let shift: UInt64

  init(count: Int) {
    var bits: UInt64 = 4
    while 1 << bits < count * 2 { bits += 1 }
    slots = [Rule](repeating: Rule(), count: 1 << Int(bits))
    shift = 64 - bits
  }

  @inline(__always)
  static func key(_ left: TokenID, _ right: TokenID) -> UInt64 {
    UInt64(UInt32(bitPattern: left)) << 32 | UInt64(UInt32(bitPattern: right))
  }

  /// A later rule for the same pair replaces the earlier one.
  mutating func insert(_ left: TokenID, _ right: TokenID, rank: UInt32, merged: TokenID) {
    let key = Self.key(left, right)
    var index = Int(truncatingIfNeeded: (key &* 0x9E37_79B9_7F4A_7C15) >> shift)
    while slots[index].key != .max, slots[index].key != key {
      index = (index + 1) & (slots.count - 1)
    }
    slots[index] = Rule(key: key, rank: rank, merged: merged)
  }

  /// The lookup needs only these, so that hot loops hold them in registers.
  struct View {
    let slots: UnsafePointer<Rule>
    let mask: Int
    let shift: UInt64

    @inline(__always)
    func rule(_ left: TokenID, _ right: TokenID) -> (rank: UInt32, merged: TokenID) {
      let key = PairTable.key(left, right)
      var index = Int(truncatingIfNeeded: (key &* 0x9E37_79B9_7F4A_7C15) >> shift)
      while true {
        let slot = slots[index]
        if slot.key == key { return (slot.rank, slot.merged) }
        if slot.key == .max { return (.max, -1) }
        index = (index + 1) & mask
      }
    }
  }

  @inline(__always)
  func withView(_ body: (View) -> Void) {
    slots.withUnsafeBufferPointer { buffer in
      guard let base = buffer.baseAddress else { return }
      body(View(slots: base, mask: slots.count - 1, shift: shift))
    }
  }
}
