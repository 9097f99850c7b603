/// The tree of a pattern.
indirect enum PatternNode: Sendable {
  case empty
  case set(ScalarSet)
  case concatenation([PatternNode])
  case alternation([PatternNode])
  case repetition(PatternNode, minimum: Int, maximum: Int?, mode: Mode)
  case look(PatternNode, isNegated: Bool)
  /// Look behind by one scalar that is in the set.
  case lookBehind(ScalarSet, isNegated: Bool)
  case atomic(PatternNode)
  case assertion(Assertion)

  enum Mode: Sendable { case greedy, lazy, possessive }
  enum Assertion: Sendable {
    case textStart, textEnd, textEndOrNewline, lineStart, lineEnd, wordBoundary, notWordBoundary
  }
}

/// Why a pattern cannot be used.
struct PatternError: Error, Sendable, Equatable {
  let offset: Int
  let reason: String
}

/// Reads the dialect of Oniguruma (Ruby) that tokenizer files are written in.
struct PatternParser {
  static let depthLimit = 64
  static let repetitionLimit = 1000

  private let pattern: [Unicode.Scalar]
  private var position = 0
  private var depth = 0
  private var foldsCase = false
  private var isExtended = false
  private var dotMatchesNewline = false

  static func parse(_ pattern: String) throws(PatternError) -> PatternNode {
    var parser = PatternParser(pattern: Array(pattern.unicodeScalars))
    let node = try parser.alternation()
    guard parser.position == parser.pattern.count else { throw parser.fail("an unmatched \")\"") }
    return node
  }

  private init(pattern: [Unicode.Scalar]) { self.pattern = pattern }

  private func fail(_ reason: String) -> PatternError {
    PatternError(offset: position, reason: reason)
  }
  private var next: Unicode.Scalar? { position < pattern.count ? pattern[position] : nil }

  private mutating func take(_ text: String) -> Bool {
    let scalars = Array(text.unicodeScalars)
    guard position + scalars.count <= pattern.count,
      pattern[position..<position + scalars.count].elementsEqual(scalars)
    else { return false }
    position += scalars.count
    return true
  }

  private mutating func alternation() throws(PatternError) -> PatternNode {
    depth += 1
    guard depth <= Self.depthLimit else { throw fail("nested too deeply") }
    defer { depth -= 1 }
    var branches = [try concatenation()]
    while take("|") { branches.append(try concatenation()) }
    return branches.count == 1 ? branches[0] : .alternation(branches)
  }

  private mutating func concatenation() throws(PatternError) -> PatternNode {
    var items: [PatternNode] = []
    while let scalar = next, scalar != "|", scalar != ")" {
      if isExtended, scalar.properties.isPatternWhitespace {
        position += 1
        continue
      }
      if isExtended, scalar == "#" {
        while let skipped = next, skipped != "\n" { position += skipped == "\n" ? 0 : 1 }
        continue
      }
      let atom = try atom()
      items.append(try quantified(atom))
    }
    return items.isEmpty ? .empty : items.count == 1 ? items[0] : .concatenation(items)
  }

  private mutating func quantified(_ atom: PatternNode) throws(PatternError) -> PatternNode {
    var node = atom
    var stacked = 0
    while let (minimum, maximum, isInterval) = try quantifier() {
      stacked += 1
      guard stacked <= 8 else { throw fail("too many quantifiers") }
      var mode = PatternNode.Mode.greedy
      if take("?") {
        mode = .lazy
      } else if !isInterval, take("+") {
        // After {n,m} a plus is another quantifier in this dialect.
        mode = .possessive
      }
      node = .repetition(node, minimum: minimum, maximum: maximum, mode: mode)
    }
    return node
  }

  private mutating func quantifier() throws(PatternError) -> (Int, Int?, Bool)? {
    if take("*") { return (0, nil, false) }
    if take("+") { return (1, nil, false) }
    if take("?") { return (0, 1, false) }
    guard next == "{" else { return nil }
    let start = position
    position += 1
    let minimum = number()
    var maximum = minimum
    let hasComma = take(",")
    if hasComma { maximum = number() }
    guard take("}"), minimum != nil || hasComma && maximum != nil else {
      position = start
      return nil
    }
    guard (minimum ?? 0) <= Self.repetitionLimit, (maximum ?? 0) <= Self.repetitionLimit,
      maximum == nil || (minimum ?? 0) <= (maximum ?? 0)
    else { throw fail("a repetition is out of range") }
    return (minimum ?? 0, maximum, true)
  }

  private mutating func number() -> Int? {
    var value: Int?
    while let scalar = next, ("0"..."9").contains(scalar), (value ?? 0) < 1_000_000 {
      value = (value ?? 0) * 10 + Int(scalar.value - 0x30)
      position += 1
    }
    return value
  }

  private func literal(_ scalar: Unicode.Scalar) -> PatternNode {
    var set = ScalarSet()
    set.ranges = [scalar.value...scalar.value]
    set.foldsCase = foldsCase
    set.prepare()
    return .set(set)
  }

  private mutating func atom() throws(PatternError) -> PatternNode {
    guard let scalar = next else { throw fail("the pattern ends early") }
    switch scalar {
    case "(":
      position += 1
      return try group()
    case "[":
      position += 1
      var set = try bracket()
      set.prepare()
      return .set(set)
    case ".":
      position += 1
      var set = ScalarSet(isNegated: true)
      if !dotMatchesNewline { set.ranges = [10...10] }
      set.prepare()
      return .set(set)
    case "^":
      position += 1
      return .assertion(.lineStart)
    case "$":
      position += 1
      return .assertion(.lineEnd)
    case "\\":
      position += 1
      return try escape()
    case "*", "+", "?": throw fail("nothing to repeat")
    default:
      position += 1
      return literal(scalar)
    }
  }

  private mutating func group() throws(PatternError) -> PatternNode {
    let outer = (foldsCase, isExtended, dotMatchesNewline)
    var wrap: (PatternNode) -> PatternNode = { $0 }
    if take("?:") {
    } else if take("?=") {
      wrap = { .look($0, isNegated: false) }
    } else if take("?!") {
      wrap = { .look($0, isNegated: true) }
    } else if take("?>") {
      wrap = { .atomic($0) }
    } else if take("?<=") || take("?<!") {
      let isNegated = pattern[position - 1] == "!"
      let body = try alternation()
      guard take(")") else { throw fail("expected \")\"") }
      guard case .set(let set) = body else { throw fail("look-behind of more than one character") }
      return .lookBehind(set, isNegated: isNegated)
    } else if take("?#") {
      while let scalar = next, scalar != ")" { position += scalar == ")" ? 0 : 1 }
      guard take(")") else { throw fail("expected \")\"") }
      return .empty
    } else if take("?<") || take("?P<") {
      while let scalar = next, scalar != ">" { position += scalar == ">" ? 0 : 1 }
      guard take(">") else { throw fail("expected \">\"") }
    } else if take("?") {
      var turnsOn = true
      flags: while let scalar = next {
        position += 1
        switch scalar {
        case "-": turnsOn = false
        case "i": foldsCase = turnsOn
        case "x": isExtended = turnsOn
        case "m", "s": dotMatchesNewline = turnsOn
        case "u", "a", "d": break
        case ":": break flags
        case ")":
          // Flags without a group hold to the end of the enclosing one.
          let rest = try alternation()
          (foldsCase, isExtended, dotMatchesNewline) = outer
          return rest
        default: throw fail("an unknown group")
        }
      }
    }
    let body = try alternation()
    guard take(")") else { throw fail("expected \")\"") }
    (foldsCase, isExtended, dotMatchesNewline) = outer
    return wrap(body)
  }

  private mutating func escape() throws(PatternError) -> PatternNode {
    guard let scalar = next else { throw fail("the pattern ends in \"\\\"") }
    switch scalar {
    case "A": position += 1; return .assertion(.textStart)
    case "z": position += 1; return .assertion(.textEnd)
    case "Z": position += 1; return .assertion(.textEndOrNewline)
    case "b": position += 1; return .assertion(.wordBoundary)
    case "B": position += 1; return .assertion(.notWordBoundary)
    case "R":
      position += 1
      return try Self.parse("(?>\\r\\n|[\\n-\\r\\x{85}\\x{2028}\\x{2029}])")
    case "1"..."9", "k", "g", "K", "X", "G": throw fail("\\\(scalar) is not supported")
    default: break
    }
    if var set = try classEscape() {
      set.prepare()
      return .set(set)
    }
    return literal(try characterEscape())
  }

  /// `\p{..}`, `\s`, `\w`, `\d`, `\h` and their negations, or nil.
  private mutating func classEscape() throws(PatternError) -> ScalarSet? {
    guard let letter = next else { return nil }
    switch letter {
    case "s", "S":
      position += 1
      return ScalarSet(mask: .whitespace, isNegated: letter == "S")
    case "d", "D":
      position += 1
      return ScalarSet(mask: .decimalDigit, isNegated: letter == "D")
    case "w", "W":
      position += 1
      var set = ScalarSet.word
      set.isNegated = letter == "W"
      return set
    case "h", "H":
      position += 1
      var set = ScalarSet(isNegated: letter == "H")
      set.ranges = [0x30...0x39, 0x41...0x46, 0x61...0x66]
      return set
    case "p", "P":
      position += 1
      return try property(isNegated: letter == "P")
    default: return nil
    }
  }

  private mutating func property(isNegated: Bool) throws(PatternError) -> ScalarSet {
    var isNegated = isNegated
    var name = ""
    if take("{") {
      if take("^") { isNegated.toggle() }
      while let scalar = next, scalar != "}", name.unicodeScalars.count < 64 {
        name.unicodeScalars.append(scalar)
        position += 1
      }
      guard take("}") else { throw fail("expected \"}\"") }
    } else if let scalar = next {
      name = String(scalar)
      position += 1
    }
    for prefix in ["Script=", "sc=", "General_Category=", "gc="] where name.hasPrefix(prefix) {
      name = String(name.dropFirst(prefix.count))
    }
    if let mask = ScalarClass(named: name) { return ScalarSet(mask: mask, isNegated: isNegated) }
    guard var set = Self.derived(name) ?? ScalarSet.script(name) else {
      throw fail("the property \(name) is not known")
    }
    set.isNegated = isNegated
    return set
  }

  private mutating func characterEscape() throws(PatternError) -> Unicode.Scalar {
    guard let letter = next else { throw fail("the pattern ends in \"\\\"") }
    position += 1
    switch letter {
    case "n": return "\n"
    case "r": return "\r"
    case "t": return "\t"
    case "f": return "\u{0C}"
    case "v": return "\u{0B}"
    case "a": return "\u{07}"
    case "e": return "\u{1B}"
    case "0": return "\0"
    case "x", "u":
      var value: UInt32 = 0
      var digits = 0
      let isBraced = letter == "x" && take("{")
      let limit = isBraced ? 8 : letter == "x" ? 2 : 4
      while digits < limit, let scalar = next, scalar.isASCII,
        let digit = HexDigit.value(of: UInt8(scalar.value))
      {
        value = value << 4 | UInt32(digit)
        digits += 1
        position += 1
      }
      guard digits > 0, !isBraced || take("}"), let scalar = Unicode.Scalar(value) else {
        throw fail("a bad character number")
      }
      return scalar
    default: return letter
    }
  }

  /// The inside of `[...]`, behind the opening bracket.
  private mutating func bracket() throws(PatternError) -> ScalarSet {
    depth += 1
    guard depth <= Self.depthLimit else { throw fail("nested too deeply") }
    defer { depth -= 1 }
    var set = ScalarSet()
    set.foldsCase = foldsCase
    let isNegated = take("^")
    var operands: [ScalarSet] = []
    var isFirst = true
    while true {
      guard let scalar = next else { throw fail("expected \"]\"") }
      if scalar == "]", !isFirst {
        position += 1
        break
      }
      isFirst = false
      if take("&&") {
        operands.append(set)
        set = ScalarSet()
        set.foldsCase = foldsCase
        continue
      }
      if take("[:") {
        let isNegatedClass = take("^")
        var name = ""
        while let letter = next, letter != ":", name.utf8.count < 32 {
          name.unicodeScalars.append(letter)
          position += 1
        }
        guard take(":]") else { throw fail("expected \":]\"") }
        set.unions.append(try posix(name, isNegated: isNegatedClass))
        continue
      }
      if scalar == "[" {
        position += 1
        set.unions.append(try bracket())
        continue
      }
      if scalar == "\\" {
        position += 1
        if var nested = try classEscape() {
          if nested.exceptions == ScalarSet.word.exceptions {
            nested.exceptions = ScalarSet.bracketWord.exceptions
          }
          if nested.isNegated || !nested.exceptions.bounds.isEmpty || !nested.ranges.isEmpty {
            set.unions.append(nested)
          } else {
            set.mask.formUnion(nested.mask)
          }
          continue
        }
      }
      let low = try bracketScalar(scalar)
      if next == "-", position + 1 < pattern.count, pattern[position + 1] != "]" {
        position += 1
        guard let top = next else { throw fail("expected \"]\"") }
        if top == "\\" { position += 1 }
        let high = try bracketScalar(top)
        guard low.value <= high.value else { throw fail("an empty range") }
        set.ranges.append(low.value...high.value)
      } else {
        set.ranges.append(low.value...low.value)
      }
    }
    if !operands.isEmpty {
      operands.append(set)
      set = ScalarSet(mask: .all)
      set.intersections = operands
    }
    set.isNegated = isNegated
    return set
  }

  private mutating func bracketScalar(_ scalar: Unicode.Scalar) throws(PatternError)
    -> Unicode.Scalar
  {
    if scalar == "\\" {
      if next == "b" {
        position += 1
        return "\u{08}"
      }
      return try characterEscape()
    }
    position += 1
    return scalar
  }

  /// Properties that no union of categories gives.
  private static func derived(_ name: String) -> ScalarSet? {
    switch name.lowercased() {
    case "upper", "uppercase": return .property { $0.isUppercase }
    case "lower", "lowercase": return .property { $0.isLowercase }
    case "alpha", "alphabetic": return .property { $0.isAlphabetic }
    case "alnum":
      var set = ScalarSet.property { $0.isAlphabetic }
      set.unions = [ScalarSet(mask: .decimalDigit)]
      return set
    case "word": return .word
    default: return nil
    }
  }

  private func posix(_ name: String, isNegated: Bool) throws(PatternError) -> ScalarSet {
    var set = ScalarSet()
    switch name {
    case "space": set.mask = .whitespace
    case "digit": set.mask = .decimalDigit
    case "upper", "lower", "alpha", "alnum": set = Self.derived(name) ?? set
    case "punct": set.mask = .punctuation.union(.symbol)
    case "cntrl": set.mask = .control
    case "xdigit": set.ranges = [0x30...0x39, 0x41...0x46, 0x61...0x66]
    case "blank":
      set.mask = ScalarClass(named: "Zs") ?? []
      set.ranges = [9...9]
    case "word": set = .bracketWord
    case "ascii": set.ranges = [0...127]
    default: throw fail("the class [:\(name):] is not supported")
    }
    set.isNegated = isNegated
    return set
  }
}
