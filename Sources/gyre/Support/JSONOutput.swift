import FoundationEssentials

/// What `--json` writes: keys in snake case, sorted.
enum JSONOutput {
  /// One line on standard output.
  static func line(_ value: some Encodable) throws {
    try Terminal.line(text(value, indented: false))
  }
  /// Indented on standard output.
  static func document(_ value: some Encodable) throws {
    try Terminal.line(text(value, indented: true))
  }

  static func text(_ value: some Encodable, indented: Bool) throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting =
      indented
      ? [.sortedKeys, .withoutEscapingSlashes, .prettyPrinted]
      : [.sortedKeys, .withoutEscapingSlashes]
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.nonConformingFloatEncodingStrategy = .convertToString(
      positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
    return String(decoding: try encoder.encode(value), as: UTF8.self)
  }
}
