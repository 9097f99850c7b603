import FoundationEssentials
import GyreCheckpoints
import GyreTokenizers

/// SentencePiece's byte pair encoding as GGUF files hold it (`tokenizer.ggml.model` = llama): pieces with
/// scores, where the two neighbours whose join has the highest score are joined first. Kudo and
/// Richardson, "SentencePiece", 2018.
///
/// The same as merges: every way to cut a piece into two pieces is a merge, in the order of the whole's
/// score. Where a text has two joins of equal score, merges may join another one first.
struct SentencePieces {
  /// `tokenizer.ggml.token_type`.
  enum Kind: Int {
    case normal = 1
    case unknown, control, userDefined, unused, byte
  }
  struct Piece {
    var text: [UInt8]
    var score: Double
    var kind: Kind
  }
  struct Merge: Hashable {
    var left, right: Int
  }

  var pieces: [Piece]
  /// A space before the text.
  var addsSpace = true
  /// Put before texts.
  var beginning: Int?

  static let space = Array("▁".utf8)

  /// Pieces that joins can make.
  private var numbers: [[UInt8]: Int] {
    var numbers: [[UInt8]: Int] = [:]
    for (id, piece) in pieces.enumerated() where piece.kind == .normal && !piece.text.isEmpty {
      if numbers[piece.text] == nil { numbers[piece.text] = id }
    }
    return numbers
  }

  /// All joins, highest scores first, those of one piece by the numbers of their parts.
  var merges: [Merge] {
    let numbers = numbers
    var found: [(merge: Merge, whole: Int)] = []
    for (id, piece) in pieces.enumerated() where numbers[piece.text] == id {
      var own: [Merge] = []
      for cut in piece.text.indices.dropFirst() {
        if let left = numbers[Array(piece.text[..<cut])],
          let right = numbers[Array(piece.text[cut...])]
        {
          own.append(Merge(left: left, right: right))
        }
      }
      own.sort { ($0.left, $0.right) < ($1.left, $1.right) }
      found += own.map { ($0, id) }
    }
    found.sort {
      let (a, b) = (pieces[$0.whole].score, pieces[$1.whole].score)
      return a != b ? a > b : $0.whole < $1.whole
    }
    return found.map(\.merge)
  }

  /// The `tokenizer.json` that means the same.
  var document: [UInt8] {
    var json = JSONText()
    json.raw(#"{"version":"1.0","added_tokens":["#)
    var isFirst = true
    for (id, piece) in pieces.enumerated()
    where [.unknown, .control, .userDefined].contains(piece.kind) {
      json.raw(isFirst ? "" : ",")
      isFirst = false
      json.raw(#"{"id":\#(id),"content":"#)
      json.string(piece.text)
      let isSpecial = piece.kind != .userDefined
      json.raw(
        #","special":\#(isSpecial),"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}"#
      )
    }
    let prefix = addsSpace ? #"{"type":"Prepend","prepend":"▁"},"# : ""
    let strip = addsSpace ? #",{"type":"Strip","content":" ","start":1,"stop":0}"# : ""
    json.raw(
      #"],"normalizer":{"type":"Sequence","normalizers":["# + prefix
        + #"{"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"#)
    if let beginning { template(beginning, &json) }
    json.raw(
      #""decoder":{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"#
        + #""content":" "},{"type":"ByteFallback"},{"type":"Fuse"}"# + strip + "]},")
    json.raw(#""model":{"type":"BPE","#)
    if let unknown = pieces.first(where: { $0.kind == .unknown }) {
      json.raw(#""unk_token":"#)
      json.string(unknown.text)
      json.raw(",")
    }
    json.raw(#""fuse_unk":true,"byte_fallback":true,"vocab":{"#)
    var seen: Set<[UInt8]> = []
    for (id, piece) in pieces.enumerated() where seen.insert(piece.text).inserted {
      json.raw(seen.count > 1 ? "," : "")
      json.string(piece.text)
      json.raw(":\(id)")
    }
    json.raw(#"},"merges":["#)
    for (i, merge) in merges.enumerated() {
      json.raw(i > 0 ? ",[" : "[")
      json.string(pieces[merge.left].text)
      json.raw(",")
      json.string(pieces[merge.right].text)
      json.raw("]")
    }
    json.raw("]}}")
    return json.bytes
  }

  private func template(_ token: Int, _ json: inout JSONText) {
    let text = pieces[token].text
    json.raw(#""post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"#)
    json.string(text)
    json.raw(#","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"#)
    json.string(text)
    json.raw(#":{"id":"#)
    json.string(text)
    json.raw(#","ids":[\#(token)],"tokens":["#)
    json.string(text)
    json.raw("]}}},")
  }

  /// Text of JSON, byte by byte: Swift's strings hold different spellings of a letter for equal, and
  /// vocabularies do not.
  private struct JSONText {
    var bytes: [UInt8] = []
    mutating func raw(_ text: String) { bytes += Array(text.utf8) }
    mutating func string(_ text: [UInt8]) {
      bytes.append(0x22)
      for byte in text {
        switch byte {
        case 0x22, 0x5C: bytes += [0x5C, byte]
        case 0..<0x20:
          let digits = String(byte, radix: 16)
          raw("\\u00" + (digits.count < 2 ? "0" : "") + digits)
        default: bytes.append(byte)
        }
      }
      bytes.append(0x22)
    }
  }
}

extension SentencePieces {
  /// The pieces of a file's metadata.
  ///
  /// - Throws: a key and what it must be.
  init(
    _ value: (String) -> GGUFValue?, _ fail: (String, String) -> TokenizerError
  ) throws(TokenizerError) {
    let tokens = value("tokens")?.array?.compactMap(\.string) ?? []
    let scores = value("scores")?.array?.compactMap(\.double) ?? []
    let kinds = value("token_type")?.array?.compactMap(\.int) ?? []
    guard scores.count == tokens.count else {
      throw fail("scores", "must be \(tokens.count) numbers, are \(scores.count)")
    }
    guard kinds.count == tokens.count else {
      throw fail("token_type", "must be \(tokens.count) numbers, are \(kinds.count)")
    }
    pieces = []
    pieces.reserveCapacity(tokens.count)
    for (id, token) in tokens.enumerated() {
      guard let kind = Kind(rawValue: kinds[id]) else {
        throw fail("token_type", "[\(id)] must be in 1...6, is \(kinds[id])")
      }
      guard !scores[id].isNaN else { throw fail("scores", "[\(id)] is no number") }
      pieces.append(Piece(text: Array(token.utf8), score: scores[id], kind: kind))
    }
    addsSpace = value("add_space_prefix")?.bool ?? true
    guard value("add_bos_token")?.bool ?? true else { return }
    let first = value("bos_token_id")?.int ?? 1
    guard pieces.indices.contains(first) else {
      throw fail("bos_token_id", "must be in 0..<\(pieces.count), is \(first)")
    }
    beginning = first
  }

  /// The pieces of a tokenizer that was read from a `tokenizer.json` of this form.
  ///
  /// - Parameter stored: the file's parts.
  /// - Throws: what has no form in pieces.
  init(
    _ tokenizer: any Tokenizer, _ stored: GGUFTokenizer.Stored,
    _ fail: (String) -> TokenizerError
  ) throws(TokenizerError) {
    let steps = stored.normalizer?.flat ?? []
    let metaspace = stored.pre_tokenizer?.flat ?? []
    switch (steps.map(\.type), metaspace.map(\.type)) {
    case (["Prepend", "Replace"], []): addsSpace = true
    case (["Replace"], []): addsSpace = false
    case ([], ["Metaspace"]) where metaspace[0].split == false:
      addsSpace = (metaspace[0].prepend_scheme ?? "always") != "never"
    default:
      throw fail(
        "only byte-level BPE, and BPE over pieces with ▁ for spaces, can be written into GGUF files"
      )
    }
    let added = Dictionary(
      (stored.added_tokens ?? []).map { ($0.id, $0) }, uniquingKeysWith: { a, _ in a })
    let unknown = tokenizer.specialTokens.unknown.map(Int.init)
    let bytes = Set(
      (0..<256).compactMap { byte in tokenizer.token(named: Self.name(ofByte: byte)).map(Int.init) }
    )
    pieces = []
    for id in 0..<tokenizer.vocabularySize {
      let text = (try? tokenizer.bytes(of: TokenID(id))) ?? []
      if let token = added[id] {
        let kind: Kind =
          token.content == stored.model.unk_token || id == unknown
          ? .unknown : token.special ?? false ? .control : .userDefined
        pieces.append(Piece(text: Array(token.content.utf8), score: 0, kind: kind))
      } else if bytes.contains(id), let byte = text.first {
        pieces.append(
          Piece(text: Array(Self.name(ofByte: Int(byte)).utf8), score: 0, kind: .byte))
      } else if text.isEmpty {
        pieces.append(Piece(text: Array("[PAD\(id)]".utf8), score: 0, kind: .unused))
      } else {
        let spelled = text.flatMap { $0 == 0x20 ? Self.space : [$0] }
        pieces.append(Piece(text: spelled, score: 0, kind: .normal))
      }
    }
    try score(stored.model.merges.map(\.parts), fail)
    var marks: [TokenID] = []
    tokenizer.encodeWithSpecialTokens("", into: &marks)
    beginning = marks.first.map(Int.init)
  }

  private static func name(ofByte byte: Int) -> String {
    let digits = String(byte, radix: 16, uppercase: true)
    return "<0x" + (digits.count < 2 ? "0" : "") + digits + ">"
  }

  /// Gives pieces the scores that make these merges, −rank, and all others lower ones.
  private mutating func score(
    _ stored: [[String]], _ fail: (String) -> TokenizerError
  ) throws(TokenizerError) {
    let numbers = numbers
    var list: [Merge] = []
    var wholes: [Int] = []
    for parts in stored {
      guard parts.count == 2, let left = numbers[Array(parts[0].utf8)],
        let right = numbers[Array(parts[1].utf8)],
        let whole = numbers[Array(parts[0].utf8) + Array(parts[1].utf8)]
      else { throw fail("a merge of \(parts) has no piece of its own") }
      list.append(Merge(left: left, right: right))
      if wholes.last != whole { wholes.append(whole) }
    }
    for id in pieces.indices where pieces[id].kind == .normal {
      pieces[id].score = -Double(wholes.count + id)
    }
    for (rank, whole) in wholes.enumerated() { pieces[whole].score = -Double(rank) }
    guard Set(wholes).count == wholes.count, Set(list) == Set(merges) else {
      throw fail("its merges are not those of pieces with scores, as GGUF files hold them")
    }
  }

  /// What `tokenizer.*` says.
  var metadata: [(String, GGUFValue)] {
    let texts: [GGUFValue] = pieces.map { .string(String(decoding: $0.text, as: UTF8.self)) }
    let scores: [GGUFValue] = pieces.map { .float($0.score) }
    let kinds: [GGUFValue] = pieces.map { .integer(Int64($0.kind.rawValue)) }
    let fields: [(String, GGUFValue)] = [
      ("model", .string("llama")), ("pre", .string("default")), ("tokens", .array(texts)),
      ("scores", .array(scores)), ("token_type", .array(kinds)),
      ("add_space_prefix", .bool(addsSpace)), ("add_bos_token", .bool(beginning != nil)),
      ("add_eos_token", .bool(false)),
    ]
    return fields.map { ("tokenizer.ggml." + $0.0, $0.1) }
  }
}
