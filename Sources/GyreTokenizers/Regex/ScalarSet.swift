/// A set of scalars inside a pattern: a bitmap for ASCII, then class masks, ranges and nested sets.
struct ScalarSet: Sendable {
  var mask = ScalarClass()
  var ranges: [ClosedRange<UInt32>] = []
  /// Sets that are united with this one, for example a negated class or a script.
  var unions: [ScalarSet] = []
  /// Sets that a member must also be in (`&&`).
  var intersections: [ScalarSet] = []
  var isNegated = false
  var foldsCase = false
  /// Membership differs from `mask` for these (`\w` of the pattern engine).
  var exceptions = ScalarRanges()

  private var sortedRanges = ScalarRanges()
  private var low: UInt64 = 0
  private var high: UInt64 = 0
  private var isPlainMask = false

  init(mask: ScalarClass = [], isNegated: Bool = false) {
    self.mask = mask
    self.isNegated = isNegated
  }

  static let word: ScalarSet = {
    var set = ScalarSet(mask: .word)
    set.exceptions = ScalarRanges(UnicodeData.wordDifference)
    return set
  }()

  /// `\w` inside of brackets: the engine counts a few Latin-1 numbers as word characters only outside of them.
  static let bracketWord: ScalarSet = {
    var set = ScalarSet.word
    set.exceptions = set.exceptions.dropping(below: 0x100)
    return set
  }()

  /// A derived property that is not a union of categories, such as Uppercase.
  static func property(_ holds: (Unicode.Scalar.Properties) -> Bool) -> ScalarSet {
    var set = ScalarSet()
    set.exceptions = ScalarRanges(where: {
      Unicode.Scalar($0).map { holds($0.properties) } ?? false
    })
    return set
  }

  static func script(_ name: String) -> ScalarSet? {
    let text = UnsafeBufferPointer(
      start: UnicodeData.scripts.utf8Start, count: UnicodeData.scripts.utf8CodeUnitCount)
    for part in text.split(separator: UInt8(ascii: ";")) {
      let fields = part.filter { $0 > 0x20 }.split(separator: UInt8(ascii: ":"), maxSplits: 1)
      guard fields.count == 2,
        String(decoding: fields[0], as: UTF8.self).lowercased() == name.lowercased()
      else { continue }
      var set = ScalarSet()
      set.exceptions = ScalarRanges(data: fields[1])
      return set
    }
    return nil
  }

  private func slowContains(_ scalar: UInt32) -> Bool {
    var found =
      ScalarTable.shared.contains(scalar, in: mask) != exceptions.contains(scalar)
      || sortedRanges.contains(scalar) || unions.contains { $0.slowContains(scalar) }
    if !found, foldsCase {
      found = CaseFolding.equivalents(of: scalar).contains { other in
        ScalarTable.shared.contains(other, in: mask) != exceptions.contains(other)
          || sortedRanges.contains(other) || unions.contains { $0.slowContains(other) }
      }
    }
    if found { found = intersections.allSatisfy { $0.slowContains(scalar) } }
    return found != isNegated
  }

  /// Call once when the set is complete.
  mutating func prepare() {
    for index in unions.indices { unions[index].prepare() }
    for index in intersections.indices { intersections[index].prepare() }
    sortedRanges = ScalarRanges(ranges)
    low = 0
    high = 0
    for scalar in UInt32(0)..<64 where slowContains(scalar) { low |= 1 << UInt64(scalar) }
    for scalar in UInt32(64)..<128 where slowContains(scalar) { high |= 1 << UInt64(scalar - 64) }
    isPlainMask =
      exceptions.bounds.isEmpty && unions.isEmpty && intersections.isEmpty && !foldsCase
      && ranges.allSatisfy { $0.upperBound < 128 }
  }

  @inline(__always)
  func contains(_ scalar: UInt32) -> Bool {
    if scalar < 64 { return low >> UInt64(scalar) & 1 != 0 }
    if scalar < 128 { return high >> UInt64(scalar - 64) & 1 != 0 }
    if isPlainMask { return ScalarTable.shared.contains(scalar, in: mask) != isNegated }
    return slowContains(scalar)
  }

  var asciiBitmap: (low: UInt64, high: UInt64) { (low, high) }
}

/// Simple case folding, one scalar to one.
enum CaseFolding {
  static func fold(_ scalar: UInt32) -> UInt32 {
    guard let value = Unicode.Scalar(scalar) else { return scalar }
    let upper = single(value.properties.uppercaseMapping) ?? value
    return (single(upper.properties.lowercaseMapping) ?? upper).value
  }

  /// Other scalars that fold to the same; those that patterns meet in practice.
  static func equivalents(of scalar: UInt32) -> [UInt32] {
    guard let value = Unicode.Scalar(scalar) else { return [] }
    var found: [UInt32] = []
    for mapping in [value.properties.uppercaseMapping, value.properties.lowercaseMapping] {
      if let other = single(mapping), other != value { found.append(other.value) }
    }
    let folded = fold(scalar)
    if folded == 0x73 { found += [0x73, 0x53, 0x17F] }
    if folded == 0x6B { found += [0x6B, 0x4B, 0x212A] }
    if folded == 0xE5 { found += [0xE5, 0xC5, 0x212B] }
    return found
  }

  private static func single(_ text: String) -> Unicode.Scalar? {
    text.unicodeScalars.count == 1 ? text.unicodeScalars.first : nil
  }
}
