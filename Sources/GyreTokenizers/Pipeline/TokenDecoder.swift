/// One step that turns the texts of tokens back into text.
indirect enum TokenDecoder: Sendable {
  case byteLevel
  case metaspace(replacement: [UInt8], dropsFirst: Bool)
  case byteFallback
  case fuse
  case strip(content: UInt32, start: Int, stop: Int)
  case replace(TextPattern, with: [UInt8])
  case wordPiece(prefix: [UInt8], cleansUp: Bool)
  case suffix([UInt8])
  case connectionist(padding: [UInt8], delimiter: [UInt8], cleansUp: Bool)
  case sequence([TokenDecoder])

  init(_ json: JSONValue) throws(TokenizerError) {
    switch try json.required("type").string() {
    case "ByteLevel": self = .byteLevel
    case "Metaspace":
      let metaspace = try Metaspace(json)
      self = .metaspace(replacement: metaspace.replacement, dropsFirst: metaspace.scheme != .never)
    case "ByteFallback": self = .byteFallback
    case "Fuse": self = .fuse
    case "Strip":
      self = .strip(
        content: try json.required("content").scalar().value,
        start: try json.required("start").integer(), stop: try json.required("stop").integer())
    case "Replace":
      self = .replace(
        try TextPattern(json.required("pattern")), with: try json.required("content").text())
    case "WordPiece":
      self = .wordPiece(
        prefix: try json["prefix"]?.text() ?? Array("##".utf8),
        cleansUp: try json.bool("cleanup", default: true))
    case "BPEDecoder": self = .suffix(try json["suffix"]?.text() ?? Array("</w>".utf8))
    case "CTC":
      self = .connectionist(
        padding: try json["pad_token"]?.text() ?? Array("<pad>".utf8),
        delimiter: try json["word_delimiter_token"]?.text() ?? Array("|".utf8),
        cleansUp: try json.bool("cleanup", default: true))
    case "Sequence":
      var steps: [TokenDecoder] = []
      for step in try json.required("decoders").elements() { steps.append(try TokenDecoder(step)) }
      self = .sequence(steps)
    case let name:
      throw .unsupported(file: json.document.file, place: json.place, feature: "decoder \(name)")
    }
  }

  /// True when the text is the concatenation of the bytes of the tokens.
  var isConcatenation: Bool {
    switch self {
    case .byteLevel: true
    case .sequence(let steps): steps.count == 1 && steps[0].isConcatenation
    default: false
    }
  }

  /// The steps at the front that look at one token only, and those behind them.
  var split: (alone: TokenDecoder?, rest: TokenDecoder) {
    switch self {
    case .replace: return (self, .sequence([]))
    case .sequence(let steps):
      let front = steps.prefix { if case .replace = $0 { true } else { false } }
      return front.isEmpty
        ? (nil, self) : (.sequence(Array(front)), .sequence(Array(steps.dropFirst(front.count))))
    default: return (nil, self)
    }
  }

  /// The bytes of a token in the middle of a text, where steps that look at neighbours do nothing.
  func bytes(of token: [UInt8]) -> [UInt8] {
    switch self {
    case .byteLevel: return ByteAlphabet.unmap(token) ?? token
    case .metaspace(let replacement, _): return Self.replacing(replacement, with: [0x20], in: token)
    case .byteFallback: return Self.byte(of: token).map { [$0] } ?? token
    case .fuse, .strip: return token
    case .replace, .connectionist: return apply([token]).first ?? []
    case .wordPiece(let prefix, let cleansUp):
      let text = token.starts(with: prefix) ? Array(token.dropFirst(prefix.count)) : [0x20] + token
      return cleansUp ? Self.cleanUp(text) : text
    case .suffix(let suffix): return Self.replacing(suffix, with: [0x20], in: token)
    case .sequence(let steps): return steps.reduce(token) { $1.bytes(of: $0) }
    }
  }

  func apply(_ tokens: [[UInt8]]) -> [[UInt8]] {
    switch self {
    case .byteLevel:
      let bytes = tokens.flatMap { ByteAlphabet.unmap($0) ?? $0 }
      return [Array(String(decoding: bytes, as: UTF8.self).utf8)]
    case .metaspace(let replacement, let dropsFirst):
      return tokens.enumerated().map { index, token in
        Self.replacing(replacement, with: index == 0 && dropsFirst ? [] : [0x20], in: token)
      }
    case .byteFallback: return Self.fallBack(tokens)
    case .fuse: return [Array(tokens.joined())]
    case .strip(let content, let start, let stop):
      return tokens.map { Self.strip($0, content, start, stop) }
    case .replace(let pattern, let content):
      return tokens.map { token in
        var text = token
        pattern.replace(in: &text, with: content)
        return text
      }
    case .wordPiece(let prefix, let cleansUp):
      return tokens.enumerated().map { index, token in
        var text = token
        if index != 0 {
          text = token.starts(with: prefix) ? Array(token.dropFirst(prefix.count)) : [0x20] + token
        }
        return cleansUp ? Self.cleanUp(text) : text
      }
    case .suffix(let suffix):
      return tokens.enumerated().map { index, token in
        Self.replacing(suffix, with: index + 1 == tokens.count ? [] : [0x20], in: token)
      }
    case .connectionist(let padding, let delimiter, let cleansUp):
      var result: [[UInt8]] = []
      for (index, token) in tokens.enumerated() where index == 0 || token != tokens[index - 1] {
        var text = Self.replacing(padding, with: [], in: token)
        if cleansUp { text = Self.replacing(delimiter, with: [0x20], in: Self.cleanUp(text)) }
        if !text.isEmpty { result.append(text) }
      }
      return result
    case .sequence(let steps): return steps.reduce(tokens) { $1.apply($0) }
    }
  }

  /// The byte that a token like `<0x0A>` stands for.
  static func byte(of token: [UInt8]) -> UInt8? {
    guard token.count == 6, token.starts(with: "<0x".utf8), token[5] == UInt8(ascii: ">"),
      let high = HexDigit.value(of: token[3]), let low = HexDigit.value(of: token[4])
    else { return nil }
    return high << 4 | low
  }

  private static func fallBack(_ tokens: [[UInt8]]) -> [[UInt8]] {
    var result: [[UInt8]] = []
    var pending: [UInt8] = []
    func flush() {
      guard !pending.isEmpty else { return }
      if UTF8Text.isValid(pending[...]) {
        result.append(pending)
      } else {
        for _ in pending { result.append(Array("\u{FFFD}".utf8)) }
      }
      pending = []
    }
    for token in tokens {
      if let byte = byte(of: token) {
        pending.append(byte)
      } else {
        flush()
        result.append(token)
      }
    }
    flush()
    return result
  }

  private static func strip(_ token: [UInt8], _ content: UInt32, _ start: Int, _ stop: Int)
    -> [UInt8]
  {
    let scalars = UTF8Text.scalars(of: token)
    let leading = scalars.prefix(start).prefix { $0 == content }.count
    let trailing = scalars.suffix(stop).reversed().prefix { $0 == content }.count
    guard leading + trailing > 0 else { return token }
    // A token that is stripped from both ends at once must not be cut twice.
    return UTF8Text.bytes(of: scalars[leading..<max(leading, scalars.count - trailing)])
  }

  static func replacing(_ needle: [UInt8], with content: [UInt8], in text: [UInt8]) -> [UInt8] {
    guard let first = needle.first, var found = text.firstIndex(of: first) else { return text }
    var output: [UInt8] = []
    output.reserveCapacity(text.count + content.count)
    var copied = 0
    while found + needle.count <= text.count {
      if text[found] == first, text[found..<found + needle.count].elementsEqual(needle) {
        output += text[copied..<found]
        output += content
        found += needle.count
        copied = found
      } else {
        found += 1
      }
    }
    output += text[copied...]
    return output
  }

  private static let cleanUps: [(TextPattern, [UInt8])] = [
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
  ].map { (TextPattern(literal: Array($0.utf8)), Array($1.utf8)) }

  private static func cleanUp(_ text: [UInt8]) -> [UInt8] {
    guard text.contains(0x20) else { return text }
    var text = text
    for (pattern, content) in cleanUps { pattern.replace(in: &text, with: content) }
    return text
  }
}
