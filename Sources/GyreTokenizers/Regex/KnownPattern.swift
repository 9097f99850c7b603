/// Hand-written scanners for the patterns that most byte-level tokenizers use. Every scalar is in a match.
enum KnownPattern: Sendable, Hashable {
  /// GPT-2, GPT-NeoX: contractions, ` ?` runs of letters, of digits, of other; whitespace.
  case gpt2
  /// cl100k and its descendants; numbers are split into groups of at most this many digits.
  case grouped(digits: Int)

  private static let contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
  private static let tail = #"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#

  init?(_ source: String) {
    switch source {
    case #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#:
      self = .gpt2
    case Self.contractions + #"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"# + Self.tail:
      self = .grouped(digits: 3)
    case Self.contractions + #"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"# + Self.tail:
      self = .grouped(digits: 1)
    default: return nil
    }
  }

  func forEachMatch(_ text: UnsafePointer<UInt8>, _ count: Int, _ body: (Range<Int>) -> Void) {
    let table = ScalarTable.shared
    var position = 0
    while position < count {
      let end =
        switch self {
        case .gpt2: Self.gpt2(text, count, position, table)
        case .grouped(let digits): Self.grouped(text, count, position, digits, table)
        }
      body(position..<end)
      position = end
    }
  }

  private enum Kind {
    static let space: UInt8 = 0, letter: UInt8 = 1, number: UInt8 = 2, other: UInt8 = 3
  }

  /// 128 kinds in memory that lives as long as the process, so that scanning needs no array access.
  private static let asciiKinds: KindPointer = {
    let kinds = UnsafeMutablePointer<UInt8>.allocate(capacity: 128)
    for scalar in 0..<128 { kinds[scalar] = kind(UInt32(scalar), ScalarTable.shared) }
    return KindPointer(pointer: UnsafePointer(kinds))
  }()
  private struct KindPointer: @unchecked Sendable { let pointer: UnsafePointer<UInt8> }

  private static func kind(_ scalar: UInt32, _ table: ScalarTable) -> UInt8 {
    let bit = UInt32(1) << UInt32(table.bit(of: scalar))
    if bit & ScalarClass.letter.rawValue != 0 { return Kind.letter }
    if bit & ScalarClass.number.rawValue != 0 { return Kind.number }
    return bit & ScalarClass.whitespace.rawValue != 0 ? Kind.space : Kind.other
  }

  @inline(__always)
  private static func kind(
    _ text: UnsafePointer<UInt8>, _ position: Int, _ table: ScalarTable
  ) -> (kind: UInt8, length: Int) {
    let lead = text[position]
    if lead < 128 { return (asciiKinds.pointer[Int(lead)], 1) }
    let (scalar, length) = UTF8Text.scalar(text, position)
    return (kind(scalar, table), length)
  }

  @inline(__always)
  private static func run(
    of wanted: UInt8, _ text: UnsafePointer<UInt8>, _ count: Int, _ start: Int, _ table: ScalarTable
  ) -> Int {
    let kinds = asciiKinds.pointer
    var position = start
    while position < count {
      let lead = text[position]
      if lead < 128 {
        if kinds[Int(lead)] != wanted { break }
        position += 1
      } else {
        let (kind, length) = kind(text, position, table)
        if kind != wanted { break }
        position += length
      }
    }
    return position
  }

  /// The end of a contraction at an apostrophe, or `start`.
  private static func contraction(
    _ text: UnsafePointer<UInt8>, _ count: Int, _ start: Int, foldsCase: Bool
  ) -> Int {
    guard start + 1 < count else { return start }
    let first = foldsCase && text[start + 1] &- 0x41 < 26 ? text[start + 1] | 0x20 : text[start + 1]
    switch first {
    case UInt8(ascii: "s"), UInt8(ascii: "t"), UInt8(ascii: "m"), UInt8(ascii: "d"):
      return start + 2
    case 0xC5 where foldsCase && start + 2 < count && text[start + 2] == 0xBF:
      // U+017F, the long s, folds to s.
      return start + 3
    case UInt8(ascii: "r"), UInt8(ascii: "v"), UInt8(ascii: "l"):
      guard start + 2 < count else { return start }
      let second =
        foldsCase && text[start + 2] &- 0x41 < 26 ? text[start + 2] | 0x20 : text[start + 2]
      return second == (first == UInt8(ascii: "l") ? first : UInt8(ascii: "e")) ? start + 3 : start
    default: return start
    }
  }

  /// `\s+(?!\S)|\s+` at the whitespace run `start..<end`.
  @inline(__always)
  private static func whitespace(
    _ text: UnsafePointer<UInt8>, _ count: Int, _ start: Int, _ end: Int
  ) -> Int {
    if end == count { return end }
    let last = UTF8Text.start(before: end, in: text)
    return last > start ? last : end
  }

  private static func gpt2(
    _ text: UnsafePointer<UInt8>, _ count: Int, _ start: Int, _ table: ScalarTable
  ) -> Int {
    let lead = text[start]
    if lead == UInt8(ascii: "'") {
      let end = contraction(text, count, start, foldsCase: false)
      if end > start { return end }
    }
    let body = lead == 0x20 ? start + 1 : start
    if body < count {
      let (kind, length) = kind(text, body, table)
      if kind != Kind.space { return run(of: kind, text, count, body + length, table) }
    }
    return whitespace(text, count, start, run(of: Kind.space, text, count, start, table))
  }

  private static func grouped(
    _ text: UnsafePointer<UInt8>, _ count: Int, _ start: Int, _ digits: Int, _ table: ScalarTable
  ) -> Int {
    let lead = text[start]
    if lead == UInt8(ascii: "'") {
      let end = contraction(text, count, start, foldsCase: true)
      if end > start { return end }
    }
    let (kind, length) = kind(text, start, table)
    switch kind {
    case Kind.letter: return run(of: Kind.letter, text, count, start + length, table)
    case Kind.number:
      var end = start + length
      for _ in 1..<max(digits, 1) where end < count {
        let next = Self.kind(text, end, table)
        guard next.kind == Kind.number else { break }
        end += next.length
      }
      return end
    default: break
    }
    let body = start + length
    if lead != 0x0A, lead != 0x0D, body < count, Self.kind(text, body, table).kind == Kind.letter {
      return run(of: Kind.letter, text, count, body, table)
    }
    let other = lead == 0x20 ? start + 1 : start
    if other < count, Self.kind(text, other, table).kind == Kind.other {
      var end = run(of: Kind.other, text, count, other, table)
      while end < count, text[end] == 0x0A || text[end] == 0x0D { end += 1 }
      return end
    }
    let end = run(of: Kind.space, text, count, start, table)
    var newline = end
    while newline > start, text[newline - 1] != 0x0A, text[newline - 1] != 0x0D { newline -= 1 }
    return newline > start ? newline : whitespace(text, count, start, end)
  }
}
