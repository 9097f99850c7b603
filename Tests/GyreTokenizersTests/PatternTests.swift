import Testing

@testable import GyreTokenizers

@Suite struct PatternTests {
  private func matches(_ pattern: String, _ text: String) throws -> [String] {
    matches(try Pattern(pattern), text)
  }

  private func matches(_ compiled: Pattern, _ text: String) -> [String] {
    let bytes = Array(text.utf8)
    var found: [String] = []
    var workspace = Pattern.Workspace()
    bytes.withUnsafeBufferPointer { buffer in
      guard let base = buffer.baseAddress else { return }
      compiled.forEachMatch(base, buffer.count, &workspace) {
        found.append(String(decoding: buffer[$0], as: UTF8.self))
      }
    }
    return found
  }

  @Test func theScannersEqualTheirPatterns() throws {
    let sources = [
      #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#,
      #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#,
      #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#,
    ]
    let alphabet: [String] = [
      "a", "B", "é", "世", "1", "२", "½", " ", " ", "\n", "\r", "\t", "\u{3000}", "'", "s", "LL",
      "re", "ſ", "!", "-", "😀", "\u{301}", "\u{85}",
    ]
    var random = SplitMix(state: 11)
    for source in sources {
      let known = try #require(KnownPattern(source))
      let compiled = try Pattern(source)
      for _ in 0..<3000 {
        let text = (0..<Int.random(in: 1..<14, using: &random)).map { _ in
          alphabet.randomElement(using: &random) ?? ""
        }.joined()
        let bytes = Array(text.utf8)
        var found: [String] = []
        bytes.withUnsafeBufferPointer { buffer in
          guard let base = buffer.baseAddress else { return }
          known.forEachMatch(base, buffer.count) {
            found.append(String(decoding: buffer[$0], as: UTF8.self))
          }
        }
        let expected = matches(compiled, text)
        #expect(found == expected, "\(source): \(text.debugDescription)")
      }
    }
  }

  @Test func mistakesAreReported() {
    for pattern in [
      "(", ")", "[a", "*", "a{2000}", "\\p{Nothing}", "(?<=ab)c", "\\1", "[b-a]", "(?z)", "\\",
      String(repeating: "(", count: 500),
    ] {
      #expect(throws: PatternError.self, "\(pattern)") { try Pattern(pattern) }
    }
  }

  @Test func hostilePatternsEnd() throws {
    #expect(try matches("(a|a)*b", String(repeating: "a", count: 3000)) == [])
    #expect(try matches("(a*)*c", String(repeating: "a", count: 3000)) == [])
  }
}
