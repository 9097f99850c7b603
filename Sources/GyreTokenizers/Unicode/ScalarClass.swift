/// Sets of scalars as bit masks over the general categories, with a lookup table for all of Unicode.
///
/// Whitespace controls (tab to carriage return, U+0085) have a bit of their own, so that `\s` is a mask too.
struct ScalarClass: OptionSet, Hashable, Sendable {
  let rawValue: UInt32

  static let unassigned = ScalarClass(bit: 0)
  static let uppercase = ScalarClass(bit: 1)
  static let lowercase = ScalarClass(bit: 2)
  static let titlecase = ScalarClass(bit: 3)
  static let modifierLetter = ScalarClass(bit: 4)
  static let otherLetter = ScalarClass(bit: 5)
  static let nonspacingMark = ScalarClass(bit: 6)
  static let decimalDigit = ScalarClass(bit: 9)
  static let letterNumber = ScalarClass(bit: 10)
  static let connector = ScalarClass(bit: 12)
  static let control = ScalarClass(bits: 26...26).union(whitespaceControl)
  static let whitespaceControl = ScalarClass(bit: 30)

  static let letter = ScalarClass(bits: 1...5)
  static let mark = ScalarClass(bits: 6...8)
  static let number = ScalarClass(bits: 9...11)
  static let punctuation = ScalarClass(bits: 12...18)
  static let symbol = ScalarClass(bits: 19...22)
  static let separator = ScalarClass(bits: 23...25)
  static let other = ScalarClass(bits: 26...29).union([whitespaceControl, unassigned])
  static let whitespace = separator.union(whitespaceControl)
  static let word = letter.union(mark).union([decimalDigit, letterNumber, connector])
  static let all = ScalarClass(rawValue: .max)

  init(rawValue: UInt32) { self.rawValue = rawValue }
  private init(bit: Int) { rawValue = 1 << UInt32(bit) }
  private init(bits: ClosedRange<Int>) { rawValue = bits.reduce(0) { $0 | 1 << UInt32($1) } }

  /// Names as they stand in `\p{...}`: categories of one or two letters.
  private static let names: [String: Int] = {
    let list =
      "Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cs"
    return Dictionary(
      uniqueKeysWithValues: list.split(separator: " ").enumerated().map {
        ($0.element.lowercased(), $0.offset)
      })
  }()

  /// The class with this name in a pattern, for example `L`, `Lu`, `Letter`.
  init?(named name: String) {
    let folded = String(
      name.lowercased().unicodeScalars.filter { $0 != "_" && $0 != " " && $0 != "-" })
    if let bit = Self.names[folded] {
      self = bit == 26 ? .control : ScalarClass(bit: bit)
      return
    }
    switch folded {
    case "l", "letter": self = .letter
    case "m", "mark": self = .mark
    case "n", "number": self = .number
    case "p", "punctuation", "punct": self = .punctuation
    case "s", "symbol": self = .symbol
    case "z", "separator": self = .separator
    case "c", "other": self = .other
    case "uppercaseletter": self = .uppercase
    case "lowercaseletter": self = .lowercase
    case "decimalnumber", "digit": self = .decimalDigit
    case "space", "whitespace": self = .whitespace
    case "any": self = .all
    default: return nil
    }
  }
}

/// The bit numbers of `ScalarClass` for every scalar, in two stages: 128 scalars a block.
struct ScalarTable: Sendable {
  static let shared = ScalarTable()

  private let blocks: [UInt16]
  private let values: [UInt8]

  private init() {
    var all = [UInt8](repeating: 0, count: 0x110000)
    var start = 0
    let text = UnsafeBufferPointer(
      start: UnicodeData.categories.utf8Start, count: UnicodeData.categories.utf8CodeUnitCount)
    var position = 0
    while position < text.count {
      let letter = text[position]
      position += 1
      guard letter > 0x20 else { continue }
      var length = 0
      while position < text.count, let digit = Self.digit(text, &position) {
        length = length << 4 | digit
      }
      let value = letter <= 0x5A ? letter - 0x41 : letter - UInt8(ascii: "g") + 26
      let end = min(start + max(length, 1), all.count)
      if value != 0 { for index in start..<end { all[index] = value } }
      start = end
    }
    for scalar in [9, 10, 11, 12, 13, 0x85] { all[scalar] = 30 }
    var blocks: [UInt16] = []
    var values: [UInt8] = []
    var known: [[UInt8]: UInt16] = [:]
    for block in stride(from: 0, to: all.count, by: 128) {
      let content = Array(all[block..<block + 128])
      if let index = known[content] {
        blocks.append(index)
      } else {
        let index = UInt16(values.count / 128)
        known[content] = index
        blocks.append(index)
        values += content
      }
    }
    self.blocks = blocks
    self.values = values
  }

  /// Skips line breaks inside the data; stops before anything that is not a digit.
  private static func digit(_ text: UnsafeBufferPointer<UInt8>, _ position: inout Int) -> Int? {
    while position < text.count, text[position] <= 0x20 { position += 1 }
    guard position < text.count, let value = HexDigit.value(of: text[position]),
      text[position] > 0x5A || text[position] < 0x41
    else { return nil }
    position += 1
    return Int(value)
  }

  @inline(__always)
  func bit(of scalar: UInt32) -> UInt8 {
    blocks.withUnsafeBufferPointer { blocks in
      values.withUnsafeBufferPointer { values in
        values[
          Int(blocks[Int(truncatingIfNeeded: scalar >> 7)]) << 7
            | Int(truncatingIfNeeded: scalar & 127)]
      }
    }
  }

  @inline(__always)
  func contains(_ scalar: UInt32, in mask: ScalarClass) -> Bool {
    mask.rawValue >> UInt32(bit(of: scalar)) & 1 != 0
  }
}

/// A set of scalars as sorted ranges.
struct ScalarRanges: Sendable, Hashable {
  /// Even entries begin a range, odd entries are the first scalar behind it.
  private(set) var bounds: [UInt32] = []

  init() {}
  init(_ range: ClosedRange<UInt32>) { bounds = [range.lowerBound, range.upperBound + 1] }

  /// Ranges in any order.
  init(_ ranges: [ClosedRange<UInt32>]) {
    for range in ranges.sorted(by: { $0.lowerBound < $1.lowerBound }) {
      if let last = bounds.last, range.lowerBound <= last {
        bounds[bounds.count - 1] = max(last, range.upperBound + 1)
      } else {
        bounds += [range.lowerBound, range.upperBound + 1]
      }
    }
  }

  /// Reads `gap+length` runs of `UnicodeData`.
  init(data: some Sequence<UInt8>) {
    var start: UInt32 = 0
    var fields: [UInt32] = [0]
    func flush(_ bounds: inout [UInt32]) {
      start += fields[0]
      let end = start + (fields.count > 1 ? fields[1] : 1)
      bounds += [start, end]
      start = end
      fields = [0]
    }
    var isEmpty = true
    for byte in data {
      if let digit = HexDigit.value(of: byte) {
        fields[fields.count - 1] = fields[fields.count - 1] << 4 | UInt32(digit)
        isEmpty = false
      } else if byte == UInt8(ascii: "+") {
        fields.append(0)
      } else if byte == UInt8(ascii: ",") {
        flush(&bounds)
        isEmpty = true
      }
    }
    if !isEmpty { flush(&bounds) }
  }

  init(_ data: StaticString) {
    self.init(data: UnsafeBufferPointer(start: data.utf8Start, count: data.utf8CodeUnitCount))
  }

  /// The scalars for which `holds` is true.
  init(where holds: (UInt32) -> Bool) {
    var wasIn = false
    for scalar in UInt32(0)...0x110000 {
      let isIn = scalar < 0x110000 && holds(scalar)
      if isIn != wasIn { bounds.append(scalar) }
      wasIn = isIn
    }
  }

  /// Without the ranges that begin below a scalar.
  func dropping(below limit: UInt32) -> ScalarRanges {
    var result = ScalarRanges()
    for index in stride(from: 0, to: bounds.count, by: 2) where bounds[index] >= limit {
      result.bounds += [bounds[index], bounds[index + 1]]
    }
    return result
  }

  func contains(_ scalar: UInt32) -> Bool {
    var low = 0
    var high = bounds.count
    while low < high {
      let middle = (low + high) / 2
      if bounds[middle] <= scalar { low = middle + 1 } else { high = middle }
    }
    return low & 1 == 1
  }
}

/// Sets that the public library defines by other versions of Unicode than its patterns.
enum LibraryScalars {
  private static let libraryWord = ScalarRanges(UnicodeData.libraryWordDifference)
  private static let punctuation = ScalarRanges(UnicodeData.punctuationDifference)
  private static let numeric = ScalarRanges(UnicodeData.numericDifference)
  private static let accents = ScalarRanges(UnicodeData.accentDifference)
  private static let bertControl = ScalarRanges(UnicodeData.bertControlDifference)
  private static let bertAccents = ScalarRanges(UnicodeData.bertAccentDifference)
  private static let asciiSymbols: [UInt32] = "$+<=>^`|~".unicodeScalars.map(\.value)

  private static func contains(_ scalar: UInt32, _ mask: ScalarClass, _ difference: ScalarRanges)
    -> Bool
  {
    ScalarTable.shared.contains(scalar, in: mask) != difference.contains(scalar)
  }

  static func isWord(_ scalar: UInt32) -> Bool { contains(scalar, .word, libraryWord) }
  static func isNumeric(_ scalar: UInt32) -> Bool { contains(scalar, .number, numeric) }
  static func isWhitespace(_ scalar: UInt32) -> Bool {
    ScalarTable.shared.contains(scalar, in: .whitespace)
  }
  static func isAccent(_ scalar: UInt32) -> Bool { contains(scalar, .mark, accents) }
  static func isBertAccent(_ scalar: UInt32) -> Bool {
    contains(scalar, .nonspacingMark, bertAccents)
  }

  static func isPunctuation(_ scalar: UInt32) -> Bool {
    if scalar < 128, asciiSymbols.contains(scalar) { return true }
    return contains(scalar, .punctuation, punctuation)
  }

  /// Control, format and private-use scalars and the two that clean-up removes besides: U+0000, U+FFFD.
  static func isBertRemoved(_ scalar: UInt32) -> Bool {
    contains(scalar, Self.bertRemoved, bertControl)
  }
  private static let bertRemoved = ScalarClass.control.union(
    ScalarClass(rawValue: 1 << 27 | 1 << 28))
}
