/// A strict JSON parser (RFC 8259) with a depth limit and no recursion. Memory is proportional to the text.
struct JSONReader {
  static let depthLimit = 128

  private let text: UnsafeBufferPointer<UInt8>
  private let file: String
  private var position = 0
  private var nodes: [JSONDocument.Node] = []
  private var arena: [UInt8] = []
  /// Open arrays and objects: the index of their node.
  private var open: [Int] = []

  static func parse(_ bytes: [UInt8], file: String) throws(TokenizerError) -> JSONDocument {
    guard bytes.count < Int(Int32.max) else {
      throw .malformed(file: file, offset: 0, reason: "the file is larger than 2 GB")
    }
    var failure: TokenizerError?
    let document = bytes.withUnsafeBufferPointer { buffer -> JSONDocument? in
      var reader = JSONReader(text: buffer, file: file)
      do throws(TokenizerError) {
        try reader.document()
        return JSONDocument(nodes: reader.nodes, arena: reader.arena, file: file)
      } catch {
        failure = error
        return nil
      }
    }
    guard let document else {
      throw failure ?? .malformed(file: file, offset: 0, reason: "unreadable")
    }
    return document
  }

  private init(text: UnsafeBufferPointer<UInt8>, file: String) {
    self.text = text
    self.file = file
    nodes.reserveCapacity(text.count / 12 + 1)
    arena.reserveCapacity(text.count / 2)
  }

  private func fail(_ reason: String) -> TokenizerError {
    .malformed(file: file, offset: position, reason: reason)
  }

  private mutating func skipSpace() {
    while position < text.count {
      switch text[position] {
      case 0x20, 0x0A, 0x0D, 0x09: position += 1
      default: return
      }
    }
  }

  private mutating func document() throws(TokenizerError) {
    // A byte order mark is not JSON, but editors add it.
    if text.count >= 3, text[0] == 0xEF, text[1] == 0xBB, text[2] == 0xBF { position = 3 }
    repeat {
      try value()
      // Close what ends here and move to the next value of what stays open.
      closing: while let parent = open.last {
        skipSpace()
        guard position < text.count else {
          throw fail("the text ends inside \(nodes[parent].kind)")
        }
        let isObject = nodes[parent].kind == .object
        switch text[position] {
        case UInt8(ascii: ","):
          position += 1
          if isObject { try key() }
          break closing
        case UInt8(ascii: "}") where isObject, UInt8(ascii: "]") where !isObject:
          position += 1
          nodes[parent].next = Int32(nodes.count)
          open.removeLast()
        default: throw fail("expected \",\" or the end of the \(nodes[parent].kind)")
        }
      }
    } while !open.isEmpty
    skipSpace()
    guard position == text.count else { throw fail("text behind the end") }
  }

  private mutating func key() throws(TokenizerError) {
    skipSpace()
    guard position < text.count, text[position] == UInt8(ascii: "\"") else {
      throw fail("expected a member name")
    }
    try string()
    skipSpace()
    guard position < text.count, text[position] == UInt8(ascii: ":") else {
      throw fail("expected \":\"")
    }
    position += 1
  }

  /// Reads one value; an array or object that is not empty is left open before its first child.
  private mutating func value() throws(TokenizerError) {
    while true {
      skipSpace()
      guard position < text.count else { throw fail("the text ends where a value should be") }
      if let parent = open.last { nodes[parent].count += 1 }
      switch text[position] {
      case UInt8(ascii: "\""): return try string()
      case UInt8(ascii: "t"): return try word("true", .yes)
      case UInt8(ascii: "f"): return try word("false", .no)
      case UInt8(ascii: "n"): return try word("null", .null)
      case UInt8(ascii: "-"), 0x30...0x39: return try number()
      case let bracket where bracket == UInt8(ascii: "{") || bracket == UInt8(ascii: "["):
        let isObject = bracket == UInt8(ascii: "{")
        guard open.count < Self.depthLimit else {
          throw fail("nested deeper than \(Self.depthLimit)")
        }
        position += 1
        append(isObject ? .object : .array, 0)
        skipSpace()
        guard position < text.count else { throw fail("the text ends inside a bracket") }
        if text[position] == (isObject ? UInt8(ascii: "}") : UInt8(ascii: "]")) {
          position += 1
          return
        }
        open.append(nodes.count - 1)
        if isObject { try key() }
      default: throw fail("no value starts like this")
      }
    }
  }

  private mutating func append(_ kind: JSONDocument.Kind, _ payload: UInt64) {
    nodes.append(.init(kind: kind, count: 0, payload: payload, next: Int32(nodes.count + 1)))
  }

  private mutating func word(
    _ word: StaticString, _ kind: JSONDocument.Kind
  ) throws(TokenizerError) {
    let count = word.utf8CodeUnitCount
    guard position + count <= text.count,
      text[position..<position + count].elementsEqual(
        UnsafeBufferPointer(start: word.utf8Start, count: count))
    else { throw fail("expected \(word)") }
    position += count
    append(kind, 0)
  }

  private mutating func digits() throws(TokenizerError) {
    let start = position
    while position < text.count, text[position] &- 0x30 < 10 { position += 1 }
    guard position > start else { throw fail("expected a digit") }
  }

  private mutating func number() throws(TokenizerError) {
    let start = position
    let isNegative = text[position] == UInt8(ascii: "-")
    if isNegative { position += 1 }
    let whole = position
    try digits()
    guard position - whole == 1 || text[whole] != UInt8(ascii: "0") else {
      throw fail("a number begins with 0")
    }
    var isWhole = true
    if position < text.count, text[position] == UInt8(ascii: ".") {
      isWhole = false
      position += 1
      try digits()
    }
    if position < text.count, text[position] | 0x20 == UInt8(ascii: "e") {
      isWhole = false
      position += 1
      if position < text.count,
        text[position] == UInt8(ascii: "-") || text[position] == UInt8(ascii: "+")
      {
        position += 1
      }
      try digits()
    }
    if isWhole, position - whole <= 15 {
      var value = 0
      for byte in text[whole..<position] { value = value * 10 + Int(byte - 0x30) }
      append(.number, (isNegative ? -Double(value) : Double(value)).bitPattern)
    } else {
      guard position - start < 2048,
        let value = Double(String(decoding: text[start..<position], as: UTF8.self)), value.isFinite
      else { throw fail("the number is out of range") }
      append(.number, value.bitPattern)
    }
  }

  private mutating func string() throws(TokenizerError) {
    position += 1
    let start = arena.count
    while true {
      let run = position
      while position < text.count, text[position] != UInt8(ascii: "\""),
        text[position] != UInt8(ascii: "\\"), text[position] >= 0x20
      {
        position += 1
      }
      if position > run { arena.append(contentsOf: text[run..<position]) }
      guard position < text.count else { throw fail("the text ends inside a string") }
      switch text[position] {
      case UInt8(ascii: "\""):
        position += 1
        guard UTF8Text.isValid(arena[start...]) else { throw fail("the string is not UTF-8") }
        append(.string, UInt64(start) << 32 | UInt64(arena.count - start))
        return
      case UInt8(ascii: "\\"): try escape()
      default: throw fail("a control character inside a string")
      }
    }
  }

  private mutating func escape() throws(TokenizerError) {
    guard position + 1 < text.count else { throw fail("the text ends inside an escape") }
    let letter = text[position + 1]
    position += 2
    switch letter {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): arena.append(letter)
    case UInt8(ascii: "b"): arena.append(0x08)
    case UInt8(ascii: "f"): arena.append(0x0C)
    case UInt8(ascii: "n"): arena.append(0x0A)
    case UInt8(ascii: "r"): arena.append(0x0D)
    case UInt8(ascii: "t"): arena.append(0x09)
    case UInt8(ascii: "u"):
      var value = try hexadecimal()
      if value & 0xFC00 == 0xD800, position + 1 < text.count, text[position] == UInt8(ascii: "\\"),
        text[position + 1] == UInt8(ascii: "u")
      {
        position += 2
        let low = try hexadecimal()
        guard low & 0xFC00 == 0xDC00 else { throw fail("an unpaired surrogate") }
        value = 0x10000 + (value & 0x3FF) << 10 + (low & 0x3FF)
      }
      guard let scalar = Unicode.Scalar(value) else { throw fail("an unpaired surrogate") }
      UTF8Text.append(scalar.value, to: &arena)
    default: throw fail("an unknown escape")
    }
  }

  private mutating func hexadecimal() throws(TokenizerError) -> UInt32 {
    guard position + 4 <= text.count else { throw fail("the text ends inside an escape") }
    var value: UInt32 = 0
    for _ in 0..<4 {
      guard let digit = HexDigit.value(of: text[position]) else {
        throw fail("expected a hexadecimal digit")
      }
      value = value << 4 | UInt32(digit)
      position += 1
    }
    return value
  }
}

/// Hexadecimal digits as bytes.
enum HexDigit {
  static func value(of byte: UInt8) -> UInt8? {
    switch byte {
    case 0x30...0x39: byte - 0x30
    case 0x41...0x46: byte - 0x41 + 10
    case 0x61...0x66: byte - 0x61 + 10
    default: nil
    }
  }
}
