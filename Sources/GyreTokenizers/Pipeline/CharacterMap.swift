/// The `precompiled_charsmap` of SentencePiece: a Darts double array from byte strings to replacement texts.
struct CharacterMap: Sendable {
  private let units: [UInt32]
  private let replacements: [UInt8]

  init(_ json: JSONValue) throws(TokenizerError) {
    guard let blob = Self.base64(try json.text()) else { throw json.invalid("not base64") }
    guard blob.count >= 4 else { throw json.invalid("shorter than its header") }
    let size = Int(blob[0]) | Int(blob[1]) << 8 | Int(blob[2]) << 16 | Int(blob[3]) << 24
    guard size % 4 == 0, size > 0, 4 + size <= blob.count else {
      throw json.invalid("the trie has \(size) bytes but \(blob.count - 4) follow")
    }
    var units: [UInt32] = []
    units.reserveCapacity(size / 4)
    for start in stride(from: 4, to: 4 + size, by: 4) {
      units.append(
        UInt32(blob[start]) | UInt32(blob[start + 1]) << 8 | UInt32(blob[start + 2]) << 16
          | UInt32(blob[start + 3]) << 24)
    }
    self.units = units
    replacements = Array(blob[(4 + size)...])
    guard UTF8Text.isValid(replacements[...]) else {
      throw json.invalid("the replacements are not UTF-8")
    }
  }

  /// The replacement of the shortest entry that begins the text.
  private func replacement(_ text: UnsafePointer<UInt8>, _ count: Int) -> ArraySlice<UInt8>? {
    func offset(_ unit: UInt32) -> Int { Int(unit >> 10) << Int((unit & 1 << 9) >> 6) }
    var place = offset(units[0])
    for position in 0..<count {
      let byte = text[position]
      if byte == 0 { return nil }
      place ^= Int(byte)
      guard place < units.count else { return nil }
      let unit = units[place]
      guard unit & (1 << 31 | 0xFF) == UInt32(byte) else { return nil }
      place ^= offset(unit)
      guard place < units.count else { return nil }
      if unit >> 8 & 1 == 1 {
        let start = Int(units[place] & 0x7FFF_FFFF)
        guard start <= replacements.count,
          start == replacements.count || replacements[start] & 0xC0 != 0x80
        else { return nil }
        return replacements[start...].prefix { $0 != 0 }
      }
    }
    return nil
  }

  func apply(_ text: inout [UInt8]) {
    var output: [UInt8] = []
    output.reserveCapacity(text.count)
    text.withUnsafeBufferPointer { buffer in
      guard let base = buffer.baseAddress else { return }
      var position = 0
      for character in String(decoding: buffer, as: UTF8.self) {
        let length = character.utf8.count
        if length < 6, let replacement = replacement(base + position, length) {
          output.append(contentsOf: replacement)
        } else {
          var inner = position
          while inner < position + length {
            let size = UTF8Text.length(lead: base[inner])
            if let replacement = replacement(base + inner, size) {
              output.append(contentsOf: replacement)
            } else {
              output.append(contentsOf: buffer[inner..<inner + size])
            }
            inner += size
          }
        }
        position += length
      }
    }
    text = output
  }

  static func base64(_ text: [UInt8]) -> [UInt8]? {
    var output: [UInt8] = []
    output.reserveCapacity(text.count / 4 * 3)
    var bits: UInt32 = 0
    var count = 0
    var body = text[...]
    while body.last == UInt8(ascii: "=") { body = body.dropLast() }
    for byte in body {
      let value: UInt8
      switch byte {
      case UInt8(ascii: "A")...UInt8(ascii: "Z"): value = byte - UInt8(ascii: "A")
      case UInt8(ascii: "a")...UInt8(ascii: "z"): value = byte - UInt8(ascii: "a") + 26
      case UInt8(ascii: "0")...UInt8(ascii: "9"): value = byte - UInt8(ascii: "0") + 52
      case UInt8(ascii: "+"): value = 62
      case UInt8(ascii: "/"): value = 63
      default: return nil
      }
      bits = bits << 6 | UInt32(value)
      count += 6
      if count >= 8 {
        count -= 8
        output.append(UInt8(truncatingIfNeeded: bits >> UInt32(count)))
      }
    }
    return output
  }
}
