import FoundationEssentials

/// What `--json` writes: keys in snake case, sorted.
enum JSONOutput {
  /// One line on standard output.
  static func line(_ value: some Encodable) throws { try write(value, []) }
  /// Indented on standard output.
  static func document(_ value: some Encodable) throws { try write(value, .prettyPrinted) }

  static func text(_ value: some Encodable, _ formatting: JSONEncoder.OutputFormatting) throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = formatting.union([.sortedKeys, .withoutEscapingSlashes])
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.nonConformingFloatEncodingStrategy = .convertToString(
      positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
    return String(decoding: try encoder.encode(value), as: UTF8.self)
  }

  private static func write(
    _ value: some Encodable, _ formatting: JSONEncoder.OutputFormatting
  ) throws { Terminal.line(try text(value, formatting)) }
}
