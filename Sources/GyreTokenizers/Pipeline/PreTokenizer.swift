/// Text cut into pieces. Pieces are ranges of one buffer and are never empty.
struct PieceList {
  struct Piece { var start: Int, end: Int }

  var bytes: [UInt8] = []
  var pieces: [Piece] = []
  /// The bytes stand for their printable scalars (byte-level); the mapping itself is never carried out.
  var isMapped = false
  /// The text begins where the original text begins.
  var isFirst = true
  var spare: [Piece] = []
  var workspace = Pattern.Workspace()
  fileprivate var events: [(start: Int, end: Int, isMatch: Bool)] = []

  /// Makes one piece of `bytes`.
  mutating func begin(isFirst: Bool) {
    self.isFirst = isFirst
    isMapped = false
    pieces.removeAll(keepingCapacity: true)
    if !bytes.isEmpty { pieces.append(Piece(start: 0, end: bytes.count)) }
  }

  /// Carries out a mapping that was left to the model.
  mutating func materialize() {
    guard isMapped else { return }
    isMapped = false
    rewrite { piece, source, output in
      for byte in source[piece.start..<piece.end] {
        UTF8Text.append(ByteAlphabet.scalars[Int(byte)], to: &output)
      }
    }
  }

  /// Replaces the text of every piece.
  mutating func rewrite(_ body: (Piece, [UInt8], inout [UInt8]) -> Void) {
    var output: [UInt8] = []
    output.reserveCapacity(bytes.count + pieces.count)
    var changed: [Piece] = []
    changed.reserveCapacity(pieces.count)
    for piece in pieces {
      let start = output.count
      body(piece, bytes, &output)
      if output.count > start { changed.append(Piece(start: start, end: output.count)) }
    }
    bytes = output
    pieces = changed
  }

  /// Splits every piece at the matches that `find` reports.
  mutating func split(
    _ behavior: SplitBehavior, isInverted: Bool = false,
    _ find: (UnsafePointer<UInt8>, Int, inout Pattern.Workspace, (Range<Int>) -> Void) -> Void
  ) {
    materialize()
    var result = spare
    // Sole ownership, or emptying would allocate anew.
    spare = []
    result.removeAll(keepingCapacity: true)
    let isPlain = behavior == .isolated
    bytes.withUnsafeBufferPointer { buffer in
      guard let base = buffer.baseAddress else { return }
      for piece in pieces {
        let count = piece.end - piece.start
        var previous = 0
        if isPlain {
          find(base + piece.start, count, &workspace) { match in
            if match.lowerBound > previous {
              result.append(
                Piece(start: piece.start + previous, end: piece.start + match.lowerBound))
            }
            if !match.isEmpty {
              result.append(
                Piece(start: piece.start + match.lowerBound, end: piece.start + match.upperBound))
            }
            previous = match.upperBound
          }
          if previous < count {
            result.append(Piece(start: piece.start + previous, end: piece.end))
          }
          continue
        }
        events.removeAll(keepingCapacity: true)
        find(base + piece.start, count, &workspace) { match in
          if match.lowerBound != previous {
            events.append((previous, match.lowerBound, isInverted))
          }
          events.append((match.lowerBound, match.upperBound, !isInverted))
          previous = match.upperBound
        }
        if previous != count { events.append((previous, count, isInverted)) }
        behavior.collect(events) { start, end in
          if end > start {
            result.append(Piece(start: piece.start + start, end: piece.start + end))
          }
        }
      }
    }
    spare = pieces
    pieces = result
  }

  /// Splits at every scalar in a set.
  mutating func split(_ behavior: SplitBehavior, _ isDelimiter: (UInt32) -> Bool) {
    split(behavior) { text, count, _, body in
      var position = 0
      while position < count {
        let (scalar, length) = UTF8Text.scalar(text, position)
        if isDelimiter(scalar) { body(position..<position + length) }
        position += length
      }
    }
  }
}

/// What becomes of the matches of a split.
enum SplitBehavior: String, Sendable {
  case removed, isolated, mergedWithPrevious, mergedWithNext, contiguous

  init(_ json: JSONValue) throws(TokenizerError) {
    switch try json.string() {
    case "Removed", "removed": self = .removed
    case "Isolated", "isolated": self = .isolated
    case "MergedWithPrevious", "merged_with_previous": self = .mergedWithPrevious
    case "MergedWithNext", "merged_with_next": self = .mergedWithNext
    case "Contiguous", "contiguous": self = .contiguous
    case let name: throw json.invalid("no behaviour is called \(name)")
    }
  }

  fileprivate func collect(
    _ events: [(start: Int, end: Int, isMatch: Bool)], _ body: (Int, Int) -> Void
  ) {
    var pending: (start: Int, end: Int)?
    var wasMatch = false
    switch self {
    case .isolated: for event in events { body(event.start, event.end) }
    case .removed: for event in events where !event.isMatch { body(event.start, event.end) }
    case .contiguous, .mergedWithPrevious:
      for event in events {
        let joins = self == .contiguous ? event.isMatch == wasMatch : event.isMatch && !wasMatch
        if joins, let last = pending {
          pending = (last.start, event.end)
        } else {
          if let last = pending { body(last.start, last.end) }
          pending = (event.start, event.end)
        }
        wasMatch = event.isMatch
      }
      if let last = pending { body(last.start, last.end) }
    case .mergedWithNext:
      var reversed: [(start: Int, end: Int)] = []
      for event in events.reversed() {
        if event.isMatch, !wasMatch, let last = reversed.last {
          reversed[reversed.count - 1] = (event.start, last.end)
        } else {
          reversed.append((event.start, event.end))
        }
        wasMatch = event.isMatch
      }
      for piece in reversed.reversed() { body(piece.start, piece.end) }
    }
  }
}

/// One step that cuts text into the pieces that the model sees.
indirect enum PreTokenizer: Sendable {
  case byteLevel(addsPrefixSpace: Bool, usesPattern: Bool)
  case split(TextPattern, SplitBehavior, isInverted: Bool)
  case metaspace(Metaspace)
  case whitespace
  case whitespaceSplit
  case punctuation(SplitBehavior)
  case digits(individual: Bool)
  case bert
  case delimiter(UInt32)
  case fixedLength(Int)
  case sequence([PreTokenizer])

  init(_ json: JSONValue) throws(TokenizerError) {
    switch try json.required("type").string() {
    case "ByteLevel":
      self = .byteLevel(
        addsPrefixSpace: try json.bool("add_prefix_space", default: true),
        usesPattern: try json.bool("use_regex", default: true))
    case "Split":
      self = .split(
        try TextPattern(json.required("pattern")), try SplitBehavior(json.required("behavior")),
        isInverted: try json.bool("invert", default: false))
    case "Metaspace": self = .metaspace(try Metaspace(json))
    case "Whitespace": self = .whitespace
    case "WhitespaceSplit": self = .whitespaceSplit
    case "Punctuation":
      if let behavior = json["behavior"] {
        self = .punctuation(try SplitBehavior(behavior))
      } else {
        self = .punctuation(.isolated)
      }
    case "Digits": self = .digits(individual: try json.bool("individual_digits", default: false))
    case "BertPreTokenizer": self = .bert
    case "CharDelimiterSplit", "Delimiter":
      self = .delimiter(try json.required("delimiter").scalar().value)
    case "FixedLength": self = .fixedLength(max(1, try json["length"]?.integer() ?? 5))
    case "Sequence":
      var steps: [PreTokenizer] = []
      for step in try json.required("pretokenizers").elements() {
        steps.append(try PreTokenizer(step))
      }
      self = .sequence(steps)
    case let name:
      throw .unsupported(
        file: json.document.file, place: json.place, feature: "pre-tokenizer \(name)")
    }
  }

  private static let gpt2 = KnownPattern.gpt2

  /// True when every piece leaves this step as bytes for a byte-level vocabulary.
  var isByteLevel: Bool {
    switch self {
    case .byteLevel: true
    case .sequence(let steps): steps.last?.isByteLevel ?? false
    default: false
    }
  }

  func apply(_ list: inout PieceList) {
    switch self {
    case .byteLevel(let addsPrefixSpace, let usesPattern):
      list.materialize()
      if addsPrefixSpace, list.pieces.contains(where: { list.bytes[$0.start] != 0x20 }) {
        list.rewrite { piece, source, output in
          if source[piece.start] != 0x20 { output.append(0x20) }
          output.append(contentsOf: source[piece.start..<piece.end])
        }
      }
      if usesPattern {
        list.split(.isolated) { text, count, _, body in Self.gpt2.forEachMatch(text, count, body) }
      }
      list.isMapped = true
    case .split(let pattern, let behavior, let isInverted):
      list.split(behavior, isInverted: isInverted) { pattern.forEachMatch($0, $1, &$2, $3) }
    case .metaspace(let metaspace): metaspace.apply(&list)
    case .whitespace:
      list.split(.removed, isInverted: true) { text, count, _, body in
        Self.words(text, count, body)
      }
    case .whitespaceSplit: list.split(.removed) { LibraryScalars.isWhitespace($0) }
    case .punctuation(let behavior): list.split(behavior) { LibraryScalars.isPunctuation($0) }
    case .digits(let individual):
      list.split(individual ? .isolated : .contiguous) { LibraryScalars.isNumeric($0) }
    case .bert:
      list.split(.removed) { LibraryScalars.isWhitespace($0) }
      list.split(.isolated) { LibraryScalars.isPunctuation($0) }
    case .delimiter(let delimiter): list.split(.removed) { $0 == delimiter }
    case .fixedLength(let length):
      list.split(.isolated) { text, count, _, body in
        var position = 0
        while position < count {
          let start = position
          for _ in 0..<length where position < count {
            position += UTF8Text.length(lead: text[position])
          }
          body(start..<position)
        }
      }
    case .sequence(let steps): for step in steps { step.apply(&list) }
    }
  }

  /// `\w+|[^\w\s]+` with the library's own `\w`.
  private static func words(
    _ text: UnsafePointer<UInt8>, _ count: Int, _ body: (Range<Int>) -> Void
  ) {
    func kind(_ scalar: UInt32) -> Int {
      if LibraryScalars.isWord(scalar) { return 1 }
      return LibraryScalars.isWhitespace(scalar) ? 0 : 2
    }
    var position = 0
    while position < count {
      let start = position
      let (scalar, length) = UTF8Text.scalar(text, position)
      let wanted = kind(scalar)
      position += length
      while position < count {
        let next = UTF8Text.scalar(text, position)
        guard kind(next.value) == wanted else { break }
        position += next.length
      }
      if wanted != 0 { body(start..<position) }
    }
  }
}

/// Writes spaces as a visible scalar and cuts in front of it, as SentencePiece does.
struct Metaspace: Sendable {
  enum Scheme: Sendable { case first, never, always }

  let replacement: [UInt8]
  let scheme: Scheme
  let splits: Bool

  init(_ json: JSONValue) throws(TokenizerError) {
    replacement = UTF8Text.bytes(of: [try json.required("replacement").scalar().value])
    switch try json["prepend_scheme"]?.string() {
    case nil:
      scheme = try json.bool("add_prefix_space", default: true) ? .always : .never
    case "always": scheme = .always
    case "first": scheme = .first
    case "never": scheme = .never
    case let name?: throw json.invalid("no prepend scheme is called \(name)")
    }
    splits = try json.bool("split", default: true)
  }

  func apply(_ list: inout PieceList) {
    list.materialize()
    let isFirst = list.isFirst
    list.rewrite { piece, source, output in
      let text = source[piece.start..<piece.end]
      let starts = text.first == 0x20 || text.starts(with: replacement)
      let prepends = scheme == .always || scheme == .first && isFirst && piece.start == 0
      if prepends, !starts { output += replacement }
      var copied = piece.start
      var position = piece.start
      while position < piece.end {
        if source[position] == 0x20 {
          output += source[copied..<position]
          output += replacement
          copied = position + 1
        }
        position += 1
      }
      output += source[copied..<piece.end]
    }
    guard splits else { return }
    let pattern = TextPattern(literal: replacement)
    list.split(.mergedWithNext) { pattern.forEachMatch($0, $1, &$2, $3) }
  }
}
