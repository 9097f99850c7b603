/// The four Unicode normalisation forms (UAX #15) over the public library's version of the data.
struct UnicodeNormalization: Sendable {
  enum Form: Sendable { case nfc, nfd, nfkc, nfkd }

  static let shared = UnicodeNormalization()

  private let canonical: [UInt32: [UInt32]]
  private let compatibility: [UInt32: [UInt32]]
  private let composition: [UInt64: UInt32]
  private let combiningClass: [UInt32: UInt8]
  /// A bit per scalar and form: the scalar may change or take part in a change.
  private let active: [[UInt64]]

  private static let hangul: (base: UInt32, count: UInt32) = (0xAC00, 11172)

  private init() {
    let steps = Self.map(UnicodeData.canonical)
    var full: [UInt32: [UInt32]] = [:]
    func expand(_ scalar: UInt32, _ depth: Int) -> [UInt32] {
      guard depth < 8, let step = steps[scalar]?.targets else { return [scalar] }
      return step.flatMap { expand($0, depth + 1) }
    }
    var composition: [UInt64: UInt32] = [:]
    var backward: Set<UInt32> = []
    for (scalar, step) in steps {
      full[scalar] = expand(scalar, 0)
      if step.targets.count == 2, !step.isExcluded {
        composition[UInt64(step.targets[0]) << 32 | UInt64(step.targets[1])] = scalar
        backward.insert(step.targets[1])
      }
    }
    canonical = full
    self.composition = composition
    compatibility = Self.map(UnicodeData.compatibility).mapValues(\.targets)
    var classes: [UInt32: UInt8] = [:]
    let text = UnsafeBufferPointer(
      start: UnicodeData.combiningClasses.utf8Start,
      count: UnicodeData.combiningClasses.utf8CodeUnitCount)
    for part in text.split(separator: UInt8(ascii: ";")) {
      let fields = part.split(separator: UInt8(ascii: ":"), maxSplits: 1)
      guard fields.count == 2 else { continue }
      // Lines of the data may be broken inside of a number.
      let value = fields[0].compactMap(HexDigit.value(of:)).reduce(0) { $0 << 4 | Int($1) }
      let bounds = ScalarRanges(data: fields[1]).bounds
      for index in stride(from: 0, to: bounds.count, by: 2) {
        for scalar in bounds[index]..<bounds[index + 1] { classes[scalar] = UInt8(value & 0xFF) }
      }
    }
    combiningClass = classes

    let words = 0x110000 / 64
    var active = [[UInt64]](repeating: [UInt64](repeating: 0, count: words), count: 4)
    func mark(_ scalar: UInt32, _ forms: [Int]) {
      for form in forms { active[form][Int(scalar) / 64] |= 1 << UInt64(scalar % 64) }
    }
    for (scalar, step) in steps {
      mark(scalar, [1, 3])
      if step.isExcluded || step.targets.count == 1 { mark(scalar, [0, 2]) }
    }
    for scalar in compatibility.keys { mark(scalar, [2, 3]) }
    for scalar in classes.keys { mark(scalar, [0, 1, 2, 3]) }
    for scalar in backward { mark(scalar, [0, 2]) }
    for scalar in Self.hangul.base..<Self.hangul.base + Self.hangul.count { mark(scalar, [1, 3]) }
    for scalar in UInt32(0x1161)...0x11C2 { mark(scalar, [0, 2]) }
    self.active = active
  }

  private static func map(_ data: StaticString) -> [UInt32: (targets: [UInt32], isExcluded: Bool)] {
    var map: [UInt32: (targets: [UInt32], isExcluded: Bool)] = [:]
    var scalar: UInt32 = 0
    var gap: UInt32 = 0
    var targets: [UInt32] = []
    var isExcluded = false
    func digit(_ byte: UInt8) {
      guard let value = HexDigit.value(of: byte) else { return }
      if targets.isEmpty {
        gap = gap << 4 | UInt32(value)
      } else {
        targets[targets.count - 1] = targets[targets.count - 1] << 4 | UInt32(value)
      }
    }
    func flush() {
      guard !targets.isEmpty else { return }
      scalar += gap
      map[scalar] = (targets, isExcluded)
      gap = 0
      targets = []
      isExcluded = false
    }
    for byte in UnsafeBufferPointer(start: data.utf8Start, count: data.utf8CodeUnitCount) {
      switch byte {
      case UInt8(ascii: "="), UInt8(ascii: "+"): targets.append(0)
      case UInt8(ascii: "!"): isExcluded = true
      case UInt8(ascii: ","): flush()
      default: digit(byte)
      }
    }
    flush()
    return map
  }

  /// Lower-case mappings of the library, scalar by scalar.
  static let lowercase: [UInt32: [UInt32]] = map(UnicodeData.lowercase).mapValues(\.targets)

  /// The normalised text, or nil when it is already normalised.
  func normalize(_ bytes: UnsafeBufferPointer<UInt8>, _ form: Form) -> [UInt8]? {
    guard let text = bytes.baseAddress else { return nil }
    let active = self.active[form == .nfc ? 0 : form == .nfd ? 1 : form == .nfkc ? 2 : 3]
    func isActive(_ scalar: UInt32) -> Bool {
      active[Int(scalar >> 6)] >> UInt64(scalar & 63) & 1 != 0
    }
    var output: [UInt8] = []
    var copied = 0
    var position = 0
    var didChange = false
    while position < bytes.count {
      if text[position] < 0x80 {
        position += 1
        continue
      }
      let (scalar, length) = UTF8Text.scalar(text, position)
      guard isActive(scalar) else {
        position += length
        continue
      }
      // The scalar before may combine with this one, so the stretch begins there.
      let start = max(copied, position > 0 ? UTF8Text.start(before: position, in: text) : 0)
      var stretch: [UInt32] = []
      var end = start
      while end < bytes.count {
        let next = UTF8Text.scalar(text, end)
        if end > position, !isActive(next.value) { break }
        stretch.append(next.value)
        end += next.length
      }
      if !didChange { output.reserveCapacity(bytes.count + 16) }
      didChange = true
      output.append(contentsOf: bytes[copied..<start])
      for scalar in normalize(stretch, form) { UTF8Text.append(scalar, to: &output) }
      copied = end
      position = end
    }
    guard didChange else { return nil }
    output.append(contentsOf: bytes[copied...])
    return output
  }

  private func normalize(_ scalars: [UInt32], _ form: Form) -> [UInt32] {
    let isCompatible = form == .nfkc || form == .nfkd
    var result: [UInt32] = []
    var classes: [UInt8] = []
    for scalar in scalars {
      let syllable = scalar &- Self.hangul.base
      if syllable < Self.hangul.count {
        result += [0x1100 + syllable / 588, 0x1161 + syllable % 588 / 28]
        if syllable % 28 != 0 { result.append(0x11A7 + syllable % 28) }
      } else if isCompatible, let targets = compatibility[scalar] {
        result += targets
      } else if let targets = canonical[scalar] {
        result += targets
      } else {
        result.append(scalar)
      }
    }
    classes = result.map { combiningClass[$0] ?? 0 }
    // Stable insertion within runs of marks; runs are short, long ones are sorted.
    var start = 0
    while start < result.count {
      guard classes[start] != 0 else {
        start += 1
        continue
      }
      var end = start
      while end < result.count, classes[end] != 0 { end += 1 }
      if end - start > 1 {
        let order = (start..<end).sorted { (classes[$0], $0) < (classes[$1], $1) }
        let sorted = order.map { (result[$0], classes[$0]) }
        for (offset, item) in sorted.enumerated() {
          (result[start + offset], classes[start + offset]) = item
        }
      }
      start = end
    }
    return form == .nfc || form == .nfkc ? compose(result, classes) : result
  }

  private func compose(_ scalars: [UInt32], _ classes: [UInt8]) -> [UInt32] {
    var result: [UInt32] = []
    var starter: Int?
    var lastClass = 0
    for (index, scalar) in scalars.enumerated() {
      let value = Int(classes[index])
      if let place = starter, lastClass < value || lastClass == 0 && result.count == place + 1,
        let composed = pair(result[place], scalar)
      {
        result[place] = composed
        continue
      }
      if value == 0 {
        starter = result.count
        lastClass = 0
      } else {
        lastClass = value
      }
      result.append(scalar)
    }
    return result
  }

  private func pair(_ first: UInt32, _ second: UInt32) -> UInt32? {
    if first &- 0x1100 < 19, second &- 0x1161 < 21 {
      return Self.hangul.base + ((first - 0x1100) * 21 + second - 0x1161) * 28
    }
    if first &- Self.hangul.base < Self.hangul.count, (first - Self.hangul.base) % 28 == 0,
      second &- 0x11A8 < 27
    {
      return first + second - 0x11A7
    }
    return composition[UInt64(first) << 32 | UInt64(second)]
  }
}
