/// The tokens that a tokenizer puts around one sequence.
struct PostProcessor: Sendable {
  private(set) var before: [TokenID] = []
  private(set) var after: [TokenID] = []
  /// How often the sequence itself occurs; templates without it drop the text.
  private(set) var repeats = 1

  init() {}

  init(_ json: JSONValue) throws(TokenizerError) {
    switch try json.required("type").string() {
    case "ByteLevel": break
    case "BertProcessing", "RobertaProcessing":
      before = [try Self.pair(json.required("cls"))]
      after = [try Self.pair(json.required("sep"))]
    case "TemplateProcessing": try template(json)
    case "Sequence":
      for step in try json.required("processors").elements() {
        let inner = try PostProcessor(step)
        guard inner.repeats == 1 || repeats == 1 else {
          throw json.invalid("the text is repeated twice")
        }
        if inner.repeats == 0 {
          (before, after, repeats) = (inner.before, [], 0)
        } else {
          guard inner.repeats == 1 else { throw Self.repeated(step) }
          before = inner.before + before
          after += inner.after
        }
      }
    case let name:
      throw .unsupported(
        file: json.document.file, place: json.place, feature: "post-processor \(name)")
    }
  }

  private static func repeated(_ json: JSONValue) -> TokenizerError {
    .unsupported(
      file: json.document.file, place: json.place, feature: "a template that repeats the text")
  }

  private static func pair(_ json: JSONValue) throws(TokenizerError) -> TokenID {
    let elements = try json.elements()
    guard elements.count == 2 else { throw json.invalid("expected [text, number]") }
    return TokenID(try elements[1].integer())
  }

  private mutating func template(_ json: JSONValue) throws(TokenizerError) {
    var special: [[UInt8]: [TokenID]] = [:]
    if let map = json["special_tokens"] {
      guard map.kind == .object else { throw map.wrong("an object") }
      try map.forEachChild { (_, key, value) throws(TokenizerError) in
        var ids: [TokenID] = []
        for id in try map.child(at: value, named: ".\(key)").required("ids").elements() {
          ids.append(TokenID(try id.integer()))
        }
        special[Array(map.document.bytes(at: key))] = ids
      }
    }
    var seen = 0
    for piece in try json.required("single").elements() {
      if piece["Sequence"] != nil {
        seen += 1
      } else {
        let name = try piece.required("SpecialToken").required("id")
        guard let ids = special[try name.text()] else {
          throw name.invalid("\"\(try name.string())\" is not in special_tokens")
        }
        if seen == 0 { before += ids } else { after += ids }
      }
    }
    guard seen <= 1 else { throw Self.repeated(json) }
    repeats = seen
  }
}
