/// Where a text may be cut such that the tokens of both parts are those of the whole, whatever the second part is.
///
/// Two kinds of places, in front of a space and behind a line break, each only where every step of the pipeline is
/// known to look at neither side from the other:
///
/// - between a scalar that is not white space and a space. No known pattern has a match over such a place, runs of
///   spaces lie behind it as a whole, and steps that put a space in front of a text leave the second part alone;
/// - behind a line break that stands alone, between two scalars that are not white space. (Of longer runs of white
///   space GPT-2's pattern leaves the last scalar to what follows, but not at the end of a text.)
struct TextCuts: Sendable {
  private var beforeSpace = false
  private var behindLine = false
  private var keeps: NormalizerKind = .none

  /// What a normaliser does with single scalars.
  private enum NormalizerKind: Int { case none, keeps, drops, other }

  init(_ normalizer: Normalizer?, _ preTokenizer: PreTokenizer?, _ added: AddedVocabulary) {
    guard let preTokenizer else { return }
    keeps = normalizer.map(Self.kind) ?? .none
    let cuts = Self.cuts(preTokenizer)
    guard keeps != .other, cuts.isLocal else { return }
    beforeSpace = cuts.space
    // Steps that drop scalars may make a space of a line break too.
    behindLine = cuts.line && keeps != .drops
    for token in added.tokens {
      if token.stripsRight { beforeSpace = false }
      if token.stripsLeft { behindLine = false }
      for text in [token.content, added.shown[token.id] ?? []] {
        let scalars = UTF8Text.scalars(of: text)
        for (first, second) in zip(scalars, scalars.dropFirst()) {
          if second == 0x20, !LibraryScalars.isWhitespace(first) { beforeSpace = false }
          if first == 0x0A, !LibraryScalars.isWhitespace(second) { behindLine = false }
        }
      }
    }
  }

  private static func kind(_ normalizer: Normalizer) -> NormalizerKind {
    switch normalizer {
    case .unicode, .lowercase: .keeps
    case .stripAccents, .bert: .drops
    case .sequence(let steps):
      NormalizerKind(rawValue: steps.map { kind($0).rawValue }.max() ?? 0) ?? .other
    case .strip, .replace, .prepend, .precompiled, .nmt, .byteLevel: .other
    }
  }

  /// Whether the pieces end at such a place for certain, and whether a step does nothing else that depends on both
  /// sides.
  private static func cuts(
    _ step: PreTokenizer
  ) -> (space: Bool, line: Bool, isLocal: Bool) {
    switch step {
    case .byteLevel(let addsPrefixSpace, let usesPattern):
      (usesPattern, usesPattern && !addsPrefixSpace, true)
    case .split(let pattern, let behavior, let isInverted):
      // Every scalar is in a match of a known pattern.
      pattern.isKnown && (behavior == .isolated || behavior == .removed && isInverted)
        ? (true, true, true) : (false, false, false)
    case .metaspace(let metaspace): (metaspace.splits, false, true)
    case .whitespace, .whitespaceSplit, .bert: (true, true, true)
    case .punctuation(let behavior): (false, false, behavior != .mergedWithPrevious)
    case .digits: (false, false, true)
    case .delimiter, .fixedLength: (false, false, false)
    case .sequence(let steps): cuts(steps)
    }
  }

  private static func cuts(
    _ steps: [PreTokenizer]
  ) -> (space: Bool, line: Bool, isLocal: Bool) {
    var all = (space: false, line: false, isLocal: true)
    // A space that is put before a second part would change it, whichever step does so.
    var keepsLine = true
    for step in steps {
      let one = cuts(step)
      all.space = all.space || one.space
      all.line = all.line || one.line
      all.isLocal = all.isLocal && one.isLocal
      switch step {
      case .byteLevel(true, _), .metaspace: keepsLine = false
      default: break
      }
    }
    all.line = all.line && keepsLine
    return all
  }

  /// The last place in a text, not its beginning or end.
  func last(in text: UnsafeBufferPointer<UInt8>) -> Int? {
    guard let base = text.baseAddress, beforeSpace || behindLine else { return nil }
    var position = text.count - 1
    while position > 0 {
      if beforeSpace, text[position] == 0x20, isInk(base, before: position) { return position }
      if behindLine, text[position - 1] == 0x0A, position > 1, isInk(base, before: position - 1),
        beginsInk(base + position, text.count - position)
      {
        return position
      }
      position -= 1
    }
    return nil
  }

  /// True when a scalar that is not white space, and that the normaliser leaves there, ends at `end`.
  private func isInk(_ text: UnsafePointer<UInt8>, before end: Int) -> Bool {
    let last = text[end - 1]
    if last < 0x80 { return last > 0x20 && last < 0x7F }
    guard keeps != .drops else { return false }
    var start = end - 1
    while start > 0, end - start < 4, text[start] & 0xC0 == 0x80 { start -= 1 }
    guard UTF8Text.sequenceLength(text + start, available: end - start) == end - start else {
      return false
    }
    return !LibraryScalars.isWhitespace(UTF8Text.scalar(text, start).value)
  }

  /// True when a scalar that is not white space, and whose normal form does not begin with any, begins the text.
  private func beginsInk(_ text: UnsafePointer<UInt8>, _ count: Int) -> Bool {
    if text[0] < 0x80 { return text[0] > 0x20 && text[0] < 0x7F }
    guard UTF8Text.sequenceLength(text, available: count) > 0 else { return false }
    let scalar = UTF8Text.scalar(text, 0).value
    return keeps == .none
      ? !LibraryScalars.isWhitespace(scalar) : (0x4E00...0x9FFF).contains(scalar)
  }
}
