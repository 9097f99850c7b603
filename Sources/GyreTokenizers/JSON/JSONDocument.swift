/// A parsed JSON text: a flat list of nodes over one arena of unescaped string bytes.
///
/// Flat, because a vocabulary has a hundred thousand entries and an object per entry would be slow;
/// byte strings, because `String` compares by canonical equivalence and two different tokens may be equivalent.
final class JSONDocument: Sendable {
  enum Kind: UInt8, Sendable { case null, no, yes, number, string, array, object }

  struct Node: Sendable {
    var kind: Kind
    /// Children of an array, members of an object.
    var count: Int32
    /// Strings: place in the arena. Numbers: bit pattern of the Double.
    var payload: UInt64
    /// The node behind this one and everything inside it.
    var next: Int32
  }

  let nodes: [Node]
  let arena: [UInt8]
  let file: String

  init(nodes: [Node], arena: [UInt8], file: String) {
    self.nodes = nodes
    self.arena = arena
    self.file = file
  }

  var root: JSONValue { JSONValue(document: self, index: 0, path: "") }

  func bytes(at index: Int) -> ArraySlice<UInt8> {
    let node = nodes[index]
    let start = Int(node.payload >> 32)
    return arena[start..<start + Int(node.payload & 0xFFFF_FFFF)]
  }
}

/// One value inside a document, with the path that error messages name.
struct JSONValue: Sendable {
  let document: JSONDocument
  let index: Int
  let path: String

  private var node: JSONDocument.Node { document.nodes[index] }
  var kind: JSONDocument.Kind { node.kind }
  var isNull: Bool { kind == .null }
  var place: String { path.isEmpty ? "top level" : path }

  func wrong(_ expected: String) -> TokenizerError {
    .invalid(file: document.file, place: place, reason: "expected \(expected), found \(kind)")
  }

  func invalid(_ reason: String) -> TokenizerError {
    .invalid(file: document.file, place: place, reason: reason)
  }

  /// The member with this name; absent and null are the same.
  subscript(name: StaticString) -> JSONValue? {
    guard kind == .object else { return nil }
    var found: JSONValue?
    var child = index + 1
    for _ in 0..<Int(node.count) {
      let key = document.bytes(at: child)
      let matches =
        key.count == name.utf8CodeUnitCount
        && key.elementsEqual(UnsafeBufferPointer(start: name.utf8Start, count: key.count))
      if matches {
        found = JSONValue(
          document: document, index: child + 1,
          path: path.isEmpty ? "\(name)" : "\(path).\(name)")
      }
      child = Int(document.nodes[child + 1].next)
    }
    return found.flatMap { $0.isNull ? nil : $0 }
  }

  func required(_ name: StaticString) throws(TokenizerError) -> JSONValue {
    guard kind == .object else { throw wrong("an object") }
    guard let value = self[name] else { throw invalid("\"\(name)\" is missing") }
    return value
  }

  func text() throws(TokenizerError) -> [UInt8] {
    guard kind == .string else { throw wrong("a string") }
    return Array(document.bytes(at: index))
  }

  func string() throws(TokenizerError) -> String { String(decoding: try text(), as: UTF8.self) }

  /// A string of exactly one scalar.
  func scalar() throws(TokenizerError) -> Unicode.Scalar {
    let scalars = try string().unicodeScalars
    guard scalars.count == 1, let first = scalars.first else {
      throw invalid("expected one character")
    }
    return first
  }

  func bool() throws(TokenizerError) -> Bool {
    guard kind == .yes || kind == .no else { throw wrong("true or false") }
    return kind == .yes
  }

  func number() throws(TokenizerError) -> Double {
    guard kind == .number else { throw wrong("a number") }
    return Double(bitPattern: node.payload)
  }

  /// A whole number from 0 to `limit`.
  func integer(limit: Int = Int(Int32.max) - 1) throws(TokenizerError) -> Int {
    let value = try number()
    guard value >= 0, value <= Double(limit), value == value.rounded(.towardZero) else {
      throw invalid("expected a whole number from 0 to \(limit), found \(value)")
    }
    return Int(value)
  }

  func bool(_ name: StaticString, default fallback: Bool) throws(TokenizerError) -> Bool {
    try self[name]?.bool() ?? fallback
  }

  func elements() throws(TokenizerError) -> [JSONValue] {
    guard kind == .array else { throw wrong("an array") }
    var values: [JSONValue] = []
    values.reserveCapacity(Int(node.count))
    var child = index + 1
    for position in 0..<Int(node.count) {
      values.append(JSONValue(document: document, index: child, path: "\(path)[\(position)]"))
      child = Int(document.nodes[child].next)
    }
    return values
  }

  /// Calls `body` with the index of every child node (and of its key, in objects), without making paths.
  func forEachChild<Failure: Error>(
    _ body: (_ position: Int, _ key: Int, _ value: Int) throws(Failure) -> Void
  ) throws(Failure) {
    var child = index + 1
    for position in 0..<Int(node.count) {
      let value = kind == .object ? child + 1 : child
      try body(position, child, value)
      child = Int(document.nodes[value].next)
    }
  }

  func child(at index: Int, named name: String) -> JSONValue {
    JSONValue(document: document, index: index, path: path + name)
  }

  var count: Int { Int(node.count) }
}
