/// One step that rewrites text before it is split.
indirect enum Normalizer: Sendable {
  case unicode(UnicodeNormalization.Form)
  case lowercase
  case strip(left: Bool, right: Bool)
  case stripAccents
  case replace(TextPattern, with: [UInt8])
  case prepend([UInt8])
  case bert(cleanText: Bool, chineseCharacters: Bool, stripAccents: Bool, lowercase: Bool)
  case precompiled(CharacterMap)
  case nmt
  case byteLevel
  case sequence([Normalizer])

  init(_ json: JSONValue) throws(TokenizerError) {
    switch try json.required("type").string() {
    case "NFC": self = .unicode(.nfc)
    case "NFD": self = .unicode(.nfd)
    case "NFKC": self = .unicode(.nfkc)
    case "NFKD": self = .unicode(.nfkd)
    case "Lowercase": self = .lowercase
    case "Strip":
      self = .strip(
        left: try json.bool("strip_left", default: true),
        right: try json.bool("strip_right", default: true))
    case "StripAccents": self = .stripAccents
    case "Replace":
      self = .replace(
        try TextPattern(json.required("pattern")), with: try json.required("content").text())
    case "Prepend": self = .prepend(try json.required("prepend").text())
    case "BertNormalizer":
      let lowercase = try json.bool("lowercase", default: true)
      self = .bert(
        cleanText: try json.bool("clean_text", default: true),
        chineseCharacters: try json.bool("handle_chinese_chars", default: true),
        stripAccents: try json.bool("strip_accents", default: lowercase), lowercase: lowercase)
    case "Precompiled": self = .precompiled(try CharacterMap(json.required("precompiled_charsmap")))
    case "Nmt": self = .nmt
    case "ByteLevel": self = .byteLevel
    case "Sequence":
      var steps: [Normalizer] = []
      for step in try json.required("normalizers").elements() { steps.append(try Normalizer(step)) }
      self = .sequence(steps)
    case let name:
      throw .unsupported(file: json.document.file, place: json.place, feature: "normalizer \(name)")
    }
  }

  /// Rewrites `text`.
  func apply(_ text: inout [UInt8]) {
    switch self {
    case .unicode(let form):
      if let changed = text.withUnsafeBufferPointer({
        UnicodeNormalization.shared.normalize($0, form)
      }) {
        text = changed
      }
    case .lowercase: Self.lowercase(&text)
    case .strip(let left, let right): Self.strip(&text, left, right)
    case .stripAccents: Self.filter(&text) { !LibraryScalars.isAccent($0) }
    case .replace(let pattern, let content): pattern.replace(in: &text, with: content)
    case .prepend(let prefix): if !text.isEmpty { text.insert(contentsOf: prefix, at: 0) }
    case .bert(let cleanText, let chineseCharacters, let stripAccents, let lowercase):
      if cleanText { Self.clean(&text) }
      if chineseCharacters { Self.spaceChinese(&text) }
      if stripAccents {
        Normalizer.unicode(.nfd).apply(&text)
        Self.filter(&text) { !LibraryScalars.isBertAccent($0) }
      }
      if lowercase { Self.lowercase(&text) }
    case .precompiled(let map): map.apply(&text)
    case .nmt: Self.nmt(&text)
    case .byteLevel: text = ByteAlphabet.map(text)
    case .sequence(let steps): for step in steps { step.apply(&text) }
    }
  }

  /// Rewrites scalar by scalar; ASCII runs that stay as they are cost a table lookup a byte.
  private static func transform(_ text: inout [UInt8], _ body: (UInt32, inout [UInt8]) -> Void) {
    var output: [UInt8] = []
    output.reserveCapacity(text.count + 16)
    text.withUnsafeBufferPointer { buffer in
      guard let base = buffer.baseAddress else { return }
      var position = 0
      while position < buffer.count {
        let (scalar, length) = UTF8Text.scalar(base, position)
        body(scalar, &output)
        position += length
      }
    }
    text = output
  }

  private static func filter(_ text: inout [UInt8], _ keeps: (UInt32) -> Bool) {
    transform(&text) { scalar, output in
      if keeps(scalar) { UTF8Text.append(scalar, to: &output) }
    }
  }

  private static func lowercase(_ text: inout [UInt8]) {
    let map = UnicodeNormalization.lowercase
    transform(&text) { scalar, output in
      if scalar < 128 {
        output.append(UInt8(scalar &- 0x41 < 26 ? scalar | 0x20 : scalar))
      } else if let mapped = map[scalar] {
        for target in mapped { UTF8Text.append(target, to: &output) }
      } else {
        UTF8Text.append(scalar, to: &output)
      }
    }
  }

  private static func strip(_ text: inout [UInt8], _ left: Bool, _ right: Bool) {
    let range = text.withUnsafeBufferPointer { buffer -> Range<Int> in
      guard let base = buffer.baseAddress else { return 0..<0 }
      var start = 0
      var end = buffer.count
      while left, start < end {
        let (scalar, length) = UTF8Text.scalar(base, start)
        guard LibraryScalars.isWhitespace(scalar) else { break }
        start += length
      }
      while right, end > start {
        let last = UTF8Text.start(before: end, in: base)
        guard LibraryScalars.isWhitespace(UTF8Text.scalar(base, last).value) else { break }
        end = last
      }
      return start..<end
    }
    if range.count != text.count { text = Array(text[range]) }
  }

  private static func clean(_ text: inout [UInt8]) {
    transform(&text) { scalar, output in
      if LibraryScalars.isBertRemoved(scalar) { return }
      if LibraryScalars.isWhitespace(scalar) {
        output.append(0x20)
      } else {
        UTF8Text.append(scalar, to: &output)
      }
    }
  }

  private static func spaceChinese(_ text: inout [UInt8]) {
    transform(&text) { scalar, output in
      let isChinese =
        switch scalar {
        case 0x4E00...0x9FFF, 0x3400...0x4DBF, 0x20000...0x2A6DF, 0x2A700...0x2B73F,
          0x2B740...0x2B81F,
          0x2B920...0x2CEAF, 0xF900...0xFAFF, 0x2F800...0x2FA1F:
          true
        default: false
        }
      if isChinese { output.append(0x20) }
      UTF8Text.append(scalar, to: &output)
      if isChinese { output.append(0x20) }
    }
  }

  private static func nmt(_ text: inout [UInt8]) {
    transform(&text) { scalar, output in
      switch scalar {
      case 0x1...0x8, 0xB, 0xE...0x1F, 0x7F, 0x8F, 0x9F: break
      case 0x9, 0xA, 0xC, 0xD, 0x1680, 0x200B...0x200F, 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD:
        output.append(0x20)
      default: UTF8Text.append(scalar, to: &output)
      }
    }
  }
}

/// The printable stand-ins for the 256 bytes that GPT-2 introduced: vocabulary files hold text, not bytes.
enum ByteAlphabet {
  /// The scalar of every byte.
  static let scalars: [UInt32] = {
    var scalars = [UInt32](repeating: 0, count: 256)
    var next: UInt32 = 256
    for byte in UInt32(0)..<256 {
      let isPrintable = (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || byte >= 0xAE
      scalars[Int(byte)] = isPrintable ? byte : next
      if !isPrintable { next += 1 }
    }
    return scalars
  }()

  /// The byte of every scalar below 324, or -1.
  private static let bytes: [Int16] = {
    var bytes = [Int16](repeating: -1, count: 324)
    for (byte, scalar) in scalars.enumerated() { bytes[Int(scalar)] = Int16(byte) }
    return bytes
  }()

  static func byte(of scalar: UInt32) -> UInt8? {
    guard scalar < 324, bytes[Int(scalar)] >= 0 else { return nil }
    return UInt8(bytes[Int(scalar)])
  }

  static func map(_ text: some Sequence<UInt8>) -> [UInt8] {
    var output: [UInt8] = []
    for byte in text { UTF8Text.append(scalars[Int(byte)], to: &output) }
    return output
  }

  /// The bytes behind a text of stand-ins; nil when another scalar is in it.
  static func unmap(_ text: [UInt8]) -> [UInt8]? {
    var output: [UInt8] = []
    output.reserveCapacity(text.count)
    return text.withUnsafeBufferPointer { buffer in
      guard let base = buffer.baseAddress else { return output }
      var position = 0
      while position < buffer.count {
        let (scalar, length) = UTF8Text.scalar(base, position)
        guard let byte = byte(of: scalar) else { return nil }
        output.append(byte)
        position += length
      }
      return output
    }
  }
}
