// A strict pull parser for the small JSON texts of checkpoints: no tree, no numbers that lose digits,
// duplicate keys and deep nesting are errors. Not a general JSON library.

/// Reads JSON from a byte buffer that must outlive it.
///
/// Every error is `CheckpointError.corrupt` with the offset in the file. Memory grows with the text only, never with a
/// number found in it.
struct JSONReader {
  static let maximumDepth = 32

  private let bytes: UnsafeRawBufferPointer
  private let file: String
  /// Offset of `bytes` inside the file.
  private let baseOffset: Int
  private(set) var position = 0
  private var depth = 0

  init(_ bytes: UnsafeRawBufferPointer, file: String, baseOffset: Int = 0) {
    self.bytes = bytes
    self.file = file
    self.baseOffset = baseOffset
  }

  func corrupt(_ reason: String, at offset: Int? = nil) -> CheckpointError {
    .corrupt(file: file, offset: baseOffset + (offset ?? position), reason: reason)
  }

  /// Calls `member` with each key and the offset of that key; `member` must read the value.
  mutating func object(
    _ member: (inout JSONReader, String, Int) throws(CheckpointError) -> Void
  ) throws(CheckpointError) {
    try open(UInt8(ascii: "{"), "an object")
    var seen: Set<String> = []
    if !skip(UInt8(ascii: "}")) {
      repeat {
        skipSpace()
        let start = position
        let key = try string()
        guard seen.insert(key).inserted else {
          throw corrupt("duplicate key \"\(key.prefix(80))\"", at: start)
        }
        guard skip(UInt8(ascii: ":")) else { throw corrupt("expected ':'") }
        try member(&self, key, start)
      } while skip(UInt8(ascii: ","))
      guard skip(UInt8(ascii: "}")) else { throw corrupt("expected ',' or '}'") }
    }
    depth -= 1
  }

  /// Calls `element` before each element; `element` must read it.
  mutating func array(
    _ element: (inout JSONReader) throws(CheckpointError) -> Void
  ) throws(CheckpointError) {
    try open(UInt8(ascii: "["), "an array")
    if !skip(UInt8(ascii: "]")) {
      repeat { try element(&self) } while skip(UInt8(ascii: ","))
      guard skip(UInt8(ascii: "]")) else { throw corrupt("expected ',' or ']'") }
    }
    depth -= 1
  }

  mutating func string() throws(CheckpointError) -> String {
    guard skip(UInt8(ascii: "\"")) else { throw corrupt("expected a string") }
    let start = position
    while position < bytes.count {
      switch bytes[position] {
      case UInt8(ascii: "\""):
        let text = bytes[start..<position]
        position += 1
        return try utf8String(text, at: start)
      case UInt8(ascii: "\\"): return try escapedString(from: start)
      case 0..<0x20: throw corrupt("control character in a string")
      default: position += 1
      }
    }
    throw corrupt("string without end", at: start - 1)
  }

  /// A whole number in 0 ... Int.max, without fraction or exponent.
  mutating func nonNegativeInteger() throws(CheckpointError) -> Int {
    skipSpace()
    let start = position
    if peek() == UInt8(ascii: "-") { throw corrupt("negative number where a count is expected") }
    var value = 0
    while let digit = digit() {
      let (tens, overflow1) = value.multipliedReportingOverflow(by: 10)
      let (sum, overflow2) = tens.addingReportingOverflow(digit)
      guard !overflow1 && !overflow2 else { throw corrupt("number exceeds 64 bits", at: start) }
      value = sum
      position += 1
    }
    guard position > start else { throw corrupt("expected a whole number") }
    if bytes[start] == UInt8(ascii: "0") && position > start + 1 {
      throw corrupt("number with leading zero", at: start)
    }
    if let next = peek(), next == UInt8(ascii: ".") || next | 0x20 == UInt8(ascii: "e") {
      throw corrupt("expected a whole number, found a fraction or exponent", at: start)
    }
    return value
  }

  /// Checks and ignores any value.
  mutating func skipValue() throws(CheckpointError) {
    skipSpace()
    switch peek() {
    case UInt8(ascii: "{"):
      try object { (reader, _, _) throws(CheckpointError) in try reader.skipValue() }
    case UInt8(ascii: "["):
      try array { (reader) throws(CheckpointError) in try reader.skipValue() }
    case UInt8(ascii: "\""): _ = try string()
    case UInt8(ascii: "t"): try word("true")
    case UInt8(ascii: "f"): try word("false")
    case UInt8(ascii: "n"): try word("null")
    default: try skipNumber()
    }
  }

  /// Nothing but white space may follow.
  mutating func end() throws(CheckpointError) {
    skipSpace()
    guard position == bytes.count else { throw corrupt("unexpected text after the JSON value") }
  }

  // MARK: Pieces

  private func peek() -> UInt8? { position < bytes.count ? bytes[position] : nil }

  private func digit() -> Int? {
    guard let byte = peek(), byte >= 0x30, byte <= 0x39 else { return nil }
    return Int(byte) - 0x30
  }

  private mutating func skipSpace() {
    while let byte = peek(), byte == 0x20 || byte == 0x0a || byte == 0x0d || byte == 0x09 {
      position += 1
    }
  }

  /// Skips white space and, if it is next, one byte of punctuation.
  private mutating func skip(_ byte: UInt8) -> Bool {
    skipSpace()
    guard peek() == byte else { return false }
    position += 1
    return true
  }

  private mutating func open(_ byte: UInt8, _ what: String) throws(CheckpointError) {
    guard skip(byte) else { throw corrupt("expected \(what)") }
    depth += 1
    guard depth <= Self.maximumDepth else {
      throw corrupt("nested deeper than \(Self.maximumDepth) levels")
    }
  }

  private mutating func word(_ expected: StaticString) throws(CheckpointError) {
    let start = position
    for index in 0..<expected.utf8CodeUnitCount {
      guard peek() == expected.utf8Start[index] else { throw corrupt("unknown word", at: start) }
      position += 1
    }
  }

  private mutating func skipNumber() throws(CheckpointError) {
    let start = position
    if peek() == UInt8(ascii: "-") { position += 1 }
    let (first, firstPosition) = (digit(), position)
    guard skipDigits() else { throw corrupt("expected a value", at: start) }
    if first == 0 && position > firstPosition + 1 {
      throw corrupt("number with leading zero", at: start)
    }
    if peek() == UInt8(ascii: ".") {
      position += 1
      guard skipDigits() else { throw corrupt("expected digits after '.'") }
    }
    if let byte = peek(), byte | 0x20 == UInt8(ascii: "e") {
      position += 1
      if let sign = peek(), sign == UInt8(ascii: "+") || sign == UInt8(ascii: "-") { position += 1 }
      guard skipDigits() else { throw corrupt("expected digits in the exponent") }
    }
  }

  private mutating func skipDigits() -> Bool {
    let start = position
    while digit() != nil { position += 1 }
    return position > start
  }

  private func utf8String(
    _ text: some Sequence<UInt8>, at start: Int
  ) throws(CheckpointError) -> String {
    guard let string = String(validating: text, as: UTF8.self) else {
      throw corrupt("string is not UTF-8", at: start)
    }
    return string
  }

  private mutating func escapedString(from start: Int) throws(CheckpointError) -> String {
    var text = Array(bytes[start..<position])
    while let byte = peek() {
      position += 1
      switch byte {
      case UInt8(ascii: "\""): return try utf8String(text, at: start)
      case UInt8(ascii: "\\"): try appendEscape(to: &text)
      case 0..<0x20: throw corrupt("control character in a string", at: position - 1)
      default: text.append(byte)
      }
    }
    throw corrupt("string without end", at: start - 1)
  }

  private mutating func appendEscape(to text: inout [UInt8]) throws(CheckpointError) {
    guard let byte = peek() else { throw corrupt("string without end") }
    position += 1
    switch byte {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): text.append(byte)
    case UInt8(ascii: "b"): text.append(0x08)
    case UInt8(ascii: "f"): text.append(0x0c)
    case UInt8(ascii: "n"): text.append(0x0a)
    case UInt8(ascii: "r"): text.append(0x0d)
    case UInt8(ascii: "t"): text.append(0x09)
    case UInt8(ascii: "u"): text.append(contentsOf: String(try escapedScalar()).utf8)
    default: throw corrupt("unknown escape", at: position - 2)
    }
  }

  private mutating func escapedScalar() throws(CheckpointError) -> Unicode.Scalar {
    let start = position - 2
    var code = try fourHexDigits()
    if code >= 0xd800 && code < 0xdc00 {
      guard peek() == UInt8(ascii: "\\") else {
        throw corrupt("half of a surrogate pair", at: start)
      }
      position += 1
      guard peek() == UInt8(ascii: "u") else {
        throw corrupt("half of a surrogate pair", at: start)
      }
      position += 1
      let low = try fourHexDigits()
      guard low >= 0xdc00 && low < 0xe000 else {
        throw corrupt("half of a surrogate pair", at: start)
      }
      code = 0x10000 + (code - 0xd800) << 10 + (low - 0xdc00)
    }
    guard let scalar = Unicode.Scalar(code) else {
      throw corrupt("half of a surrogate pair", at: start)
    }
    return scalar
  }

  private mutating func fourHexDigits() throws(CheckpointError) -> UInt32 {
    var value: UInt32 = 0
    for _ in 0..<4 {
      guard let byte = peek() else { throw corrupt("string without end") }
      switch byte {
      case 0x30...0x39: value = value << 4 | UInt32(byte - 0x30)
      case 0x41...0x46, 0x61...0x66: value = value << 4 | UInt32((byte | 0x20) - 0x57)
      default: throw corrupt("expected four hexadecimal digits")
      }
      position += 1
    }
    return value
  }
}

/// Text of JSON values, as serde_json prints them (the writer of the public safetensors library).
package enum JSONText {
  /// A string with quotes; control characters escaped, everything else as UTF-8.
  package static func quoted(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case "\u{8}": result += "\\b"
      case "\u{c}": result += "\\f"
      case "\n": result += "\\n"
      case "\r": result += "\\r"
      case "\t": result += "\\t"
      case "\0"..."\u{1f}":
        let digits = String(scalar.value, radix: 16)
        result += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result + "\""
  }
}
