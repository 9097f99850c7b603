/// What `Split` and `Replace` look for: a fixed text or a regular expression.
struct TextPattern: Sendable {
  private enum Form: Sendable {
    case literal([UInt8])
    case known(KnownPattern)
    case pattern(Pattern)
  }

  private let form: Form

  init(_ json: JSONValue) throws(TokenizerError) {
    if let text = json["String"] {
      self.init(literal: try text.text())
    } else if let source = json["Regex"] {
      let text = try source.string()
      do {
        try self.init(pattern: text)
      } catch {
        throw .invalid(
          file: json.document.file, place: source.place,
          reason: "the pattern is wrong at character \(error.offset): \(error.reason)")
      }
    } else {
      throw json.invalid("expected {\"String\": ...} or {\"Regex\": ...}")
    }
  }

  init(literal: [UInt8]) { form = .literal(literal) }

  /// True for the patterns that have scanners of their own.
  var isKnown: Bool { if case .known = form { true } else { false } }

  init(pattern source: String) throws(PatternError) {
    if let known = KnownPattern(source) {
      form = .known(known)
    } else {
      form = .pattern(try Pattern(source))
    }
  }

  /// Calls `body` with every match from left to right.
  func forEachMatch(
    _ text: UnsafePointer<UInt8>, _ count: Int, _ workspace: inout Pattern.Workspace,
    _ body: (Range<Int>) -> Void
  ) {
    switch form {
    case .known(let known): known.forEachMatch(text, count, body)
    case .pattern(let pattern): pattern.forEachMatch(text, count, &workspace, body)
    case .literal(let literal): Self.forEachMatch(of: literal, text, count, body)
    }
  }

  private static func forEachMatch(
    of literal: [UInt8], _ text: UnsafePointer<UInt8>, _ count: Int, _ body: (Range<Int>) -> Void
  ) {
    literal.withUnsafeBufferPointer { literal in
      guard let first = literal.first, let needle = literal.baseAddress else {
        // The empty text is between all scalars.
        var position = 0
        while position <= count {
          body(position..<position)
          position += position < count ? UTF8Text.length(lead: text[position]) : 1
        }
        return
      }
      var position = 0
      while position + literal.count <= count {
        if text[position] == first, ByteTable.equal(needle, text + position, literal.count) {
          body(position..<position + literal.count)
          position += literal.count
        } else {
          position += 1
        }
      }
    }
  }

  func replace(in text: inout [UInt8], with content: [UInt8]) {
    guard !text.isEmpty else { return }
    var output: [UInt8] = []
    var copied = 0
    var workspace = Pattern.Workspace()
    text.withUnsafeBufferPointer { buffer in
      guard let base = buffer.baseAddress else { return }
      forEachMatch(base, buffer.count, &workspace) { match in
        output.append(contentsOf: buffer[copied..<match.lowerBound])
        output.append(contentsOf: content)
        copied = match.upperBound
      }
      if copied > 0 || !output.isEmpty { output.append(contentsOf: buffer[copied...]) }
    }
    if copied > 0 || !output.isEmpty { text = output }
  }
}
