/// Decoding and checking of UTF-8 bytes.
enum UTF8Text {
  /// Appends one scalar. Surrogates never get here: values come from decoded text or checked tables.
  @inline(__always)
  static func append(_ scalar: UInt32, to bytes: inout [UInt8]) {
    if scalar < 0x80 {
      bytes.append(UInt8(truncatingIfNeeded: scalar))
    } else if scalar < 0x800 {
      bytes.append(UInt8(truncatingIfNeeded: 0xC0 | scalar >> 6))
      bytes.append(UInt8(truncatingIfNeeded: 0x80 | scalar & 0x3F))
    } else if scalar < 0x10000 {
      bytes.append(UInt8(truncatingIfNeeded: 0xE0 | scalar >> 12))
      bytes.append(UInt8(truncatingIfNeeded: 0x80 | scalar >> 6 & 0x3F))
      bytes.append(UInt8(truncatingIfNeeded: 0x80 | scalar & 0x3F))
    } else {
      bytes.append(UInt8(truncatingIfNeeded: 0xF0 | scalar >> 18))
      bytes.append(UInt8(truncatingIfNeeded: 0x80 | scalar >> 12 & 0x3F))
      bytes.append(UInt8(truncatingIfNeeded: 0x80 | scalar >> 6 & 0x3F))
      bytes.append(UInt8(truncatingIfNeeded: 0x80 | scalar & 0x3F))
    }
  }

  /// Bytes in the sequence that a lead byte begins (of valid UTF-8).
  @inline(__always)
  static func length(lead: UInt8) -> Int {
    lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4
  }

  /// The scalar at `position` of valid UTF-8.
  @inline(__always)
  static func scalar(_ text: UnsafePointer<UInt8>, _ position: Int) -> (value: UInt32, length: Int)
  {
    let lead = text[position]
    if lead < 0x80 { return (UInt32(lead), 1) }
    let second = UInt32(text[position + 1] & 0x3F)
    if lead < 0xE0 { return (UInt32(lead & 0x1F) << 6 | second, 2) }
    let third = UInt32(text[position + 2] & 0x3F)
    if lead < 0xF0 { return (UInt32(lead & 0x0F) << 12 | second << 6 | third, 3) }
    return (
      UInt32(lead & 0x07) << 18 | second << 12 | third << 6 | UInt32(text[position + 3] & 0x3F), 4
    )
  }

  /// Where the scalar that ends before `position` begins.
  @inline(__always)
  static func start(before position: Int, in text: UnsafePointer<UInt8>) -> Int {
    var start = position - 1
    while start > 0, text[start] & 0xC0 == 0x80 { start -= 1 }
    return start
  }

  /// The scalars of valid UTF-8.
  static func scalars(of bytes: some Collection<UInt8>) -> [UInt32] {
    String(decoding: bytes, as: UTF8.self).unicodeScalars.map(\.value)
  }

  static func bytes(of scalars: some Sequence<UInt32>) -> [UInt8] {
    var bytes: [UInt8] = []
    for scalar in scalars { append(scalar, to: &bytes) }
    return bytes
  }

  static func isValid(_ bytes: ArraySlice<UInt8>) -> Bool {
    bytes.withUnsafeBufferPointer { isValid($0) }
  }

  /// True for well-formed UTF-8 (Unicode, table 3-7).
  static func isValid(_ text: UnsafeBufferPointer<UInt8>) -> Bool {
    guard let base = text.baseAddress else { return true }
    var position = 0
    let count = text.count
    while position < count {
      if position + 8 <= count,
        UnsafeRawPointer(base + position).loadUnaligned(as: UInt64.self) & 0x8080_8080_8080_8080
          == 0
      {
        position += 8
        continue
      }
      let lead = base[position]
      if lead < 0x80 {
        position += 1
        continue
      }
      let length = sequenceLength(base + position, available: count - position)
      guard length > 0 else { return false }
      position += length
    }
    return true
  }

  /// The length of a well-formed sequence, 0 for a broken one, -1 for the beginning of one that ends with the text.
  static func sequenceLength(_ text: UnsafePointer<UInt8>, available: Int) -> Int {
    let lead = text[0]
    let length: Int
    var low: UInt8 = 0x80
    var high: UInt8 = 0xBF
    switch lead {
    case 0..<0x80: return 1
    case 0xC2...0xDF: length = 2
    case 0xE0...0xEF:
      length = 3
      if lead == 0xE0 { low = 0xA0 }
      if lead == 0xED { high = 0x9F }
    case 0xF0...0xF4:
      length = 4
      if lead == 0xF0 { low = 0x90 }
      if lead == 0xF4 { high = 0x8F }
    default: return 0
    }
    for offset in 1..<length {
      guard offset < available else { return -1 }
      let byte = text[offset]
      guard byte >= low, byte <= high else { return 0 }
      low = 0x80
      high = 0xBF
    }
    return length
  }
}
