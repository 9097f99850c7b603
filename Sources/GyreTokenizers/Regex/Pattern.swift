/// A compiled pattern: a backtracking matcher over UTF-8 with loops over single-scalar sets as one instruction.
///
/// One pass over a text costs a number of steps proportional to its length; when they are used up nothing more
/// matches, so that a hostile pattern cannot hang.
struct Pattern: Sendable {
  enum Instruction: Sendable {
    case match
    case set(Int)
    case byte(UInt8)
    case loop(set: Int, minimum: Int, maximum: Int, mode: PatternNode.Mode)
    case jump(Int)
    /// Tries `first`, then `second`.
    case split(first: Int, second: Int)
    case look(end: Int, isNegated: Bool)
    case lookBehind(set: Int, isNegated: Bool)
    case atomic(end: Int)
    case assertion(PatternNode.Assertion)
    case markStart(Int)
    /// Fails when the body of a loop matched nothing.
    case requireProgress(Int)
  }

  static let instructionLimit = 20_000
  static let stepLimit = 2_000_000

  private var program: [Instruction] = []
  private var sets: [ScalarSet] = []
  private var markCount = 0
  /// Bytes that can begin a match; all of them when a match may be empty.
  private var firstBytes: [Bool]
  /// Alternatives of the whole pattern by first byte: jumping over branches that cannot begin here.
  private var branches: [(start: Int, first: [Bool])] = []
  private static let word = {
    var set = ScalarSet.word; set.prepare(); return set
  }()

  init(_ source: String) throws(PatternError) {
    firstBytes = []
    let node = try PatternParser.parse(source)
    if case .alternation(let nodes) = node {
      for branch in nodes {
        branches.append((program.count, Self.first(branch).bytes))
        try compile(branch)
        program.append(.match)
      }
    } else {
      branches = [(0, Self.first(node).bytes)]
      try compile(node)
      program.append(.match)
    }
    firstBytes = (0..<256).map { byte in branches.contains { $0.first[byte] } }
  }

  // MARK: Compilation

  private mutating func emit(_ instruction: Instruction) throws(PatternError) {
    guard program.count < Self.instructionLimit else {
      throw PatternError(offset: 0, reason: "the pattern is too large")
    }
    program.append(instruction)
  }

  private mutating func index(of set: ScalarSet) -> Int {
    sets.append(set)
    return sets.count - 1
  }

  private mutating func compile(_ node: PatternNode) throws(PatternError) {
    switch node {
    case .empty: break
    case .set(let set):
      if let byte = Self.singleByte(set) {
        try emit(.byte(byte))
      } else {
        try emit(.set(index(of: set)))
      }
    case .concatenation(let nodes): for node in nodes { try compile(node) }
    case .alternation(let nodes):
      var exits: [Int] = []
      for (position, node) in nodes.enumerated() {
        guard position + 1 < nodes.count else {
          try compile(node)
          break
        }
        let split = program.count
        try emit(.match)
        try compile(node)
        exits.append(program.count)
        try emit(.match)
        program[split] = .split(first: split + 1, second: program.count)
      }
      for exit in exits { program[exit] = .jump(program.count) }
    case .repetition(let body, let minimum, let maximum, let mode):
      try compileRepetition(body, minimum, maximum, mode)
    case .look(let body, let isNegated):
      let start = program.count
      try emit(.match)
      try compile(body)
      try emit(.match)
      program[start] = .look(end: program.count, isNegated: isNegated)
    case .lookBehind(let set, let isNegated):
      try emit(.lookBehind(set: index(of: set), isNegated: isNegated))
    case .atomic(let body):
      let start = program.count
      try emit(.match)
      try compile(body)
      try emit(.match)
      program[start] = .atomic(end: program.count)
    case .assertion(let assertion): try emit(.assertion(assertion))
    }
  }

  private mutating func compileRepetition(
    _ body: PatternNode, _ minimum: Int, _ maximum: Int?, _ mode: PatternNode.Mode
  ) throws(PatternError) {
    if case .set(let set) = body {
      try emit(.loop(set: index(of: set), minimum: minimum, maximum: maximum ?? .max, mode: mode))
      return
    }
    guard mode != .possessive else {
      return try compile(
        .atomic(.repetition(body, minimum: minimum, maximum: maximum, mode: .greedy)))
    }
    for _ in 0..<minimum { try compile(body) }
    func split(_ body: Int, _ exit: Int) -> Instruction {
      mode == .greedy ? .split(first: body, second: exit) : .split(first: exit, second: body)
    }
    if let maximum {
      var splits: [Int] = []
      for _ in minimum..<max(minimum, maximum) {
        splits.append(program.count)
        try emit(.match)
        try compile(body)
      }
      for place in splits { program[place] = split(place + 1, program.count) }
    } else {
      let place = program.count
      let mark = markCount
      markCount += 1
      try emit(.match)
      try emit(.markStart(mark))
      try compile(body)
      try emit(.requireProgress(mark))
      try emit(.jump(place))
      program[place] = split(place + 1, program.count)
    }
  }

  private static func singleByte(_ set: ScalarSet) -> UInt8? {
    guard set.ranges.count == 1, set.mask.isEmpty, set.unions.isEmpty, set.intersections.isEmpty,
      set.exceptions.bounds.isEmpty, !set.isNegated, !set.foldsCase, let range = set.ranges.first,
      range.lowerBound == range.upperBound, range.lowerBound < 128
    else { return nil }
    return UInt8(range.lowerBound)
  }

  /// The bytes that can begin a match of `node`, and whether it can match nothing.
  private static func first(_ node: PatternNode) -> (bytes: [Bool], isNullable: Bool) {
    let none = [Bool](repeating: false, count: 256)
    let every = [Bool](repeating: true, count: 256)
    func unite(_ left: [Bool], _ right: [Bool]) -> [Bool] { zip(left, right).map { $0 || $1 } }
    func finish(_ result: (bytes: [Bool], isNullable: Bool)) -> (bytes: [Bool], isNullable: Bool) {
      result.isNullable ? (every, true) : result
    }
    func compute(_ node: PatternNode) -> (bytes: [Bool], isNullable: Bool) {
      switch node {
      case .empty, .look, .lookBehind, .assertion: return (none, true)
      case .set(let set):
        let bitmap = set.asciiBitmap
        var bytes = every
        for byte in 0..<64 {
          bytes[byte] = (bitmap.low >> UInt64(byte)) & 1 != 0
          bytes[byte + 64] = (bitmap.high >> UInt64(byte)) & 1 != 0
        }
        return (bytes, false)
      case .concatenation(let nodes):
        var bytes = none
        for node in nodes {
          let part = compute(node)
          bytes = unite(bytes, part.bytes)
          if !part.isNullable { return (bytes, false) }
        }
        return (bytes, true)
      case .alternation(let nodes):
        let parts = nodes.map(compute)
        return (parts.reduce(none) { unite($0, $1.bytes) }, parts.contains { $0.isNullable })
      case .repetition(let body, let minimum, _, _):
        let part = compute(body)
        return (part.bytes, part.isNullable || minimum == 0)
      case .atomic(let body): return compute(body)
      }
    }
    return finish(compute(node))
  }

  // MARK: Matching

  fileprivate struct Choice {
    var instruction: Int
    var position: Int
    /// For loops: positions down to this one are still to be tried (greedy), or how many more (lazy).
    var limit: Int
    var set: Int32
  }

  /// Reusable memory of a matcher.
  struct Workspace {
    fileprivate var choices: [Choice] = []
    fileprivate var marks: [Int] = []
    fileprivate var steps = 0
  }

  /// The end of the match that begins exactly at `start`, or nil.
  private func matchEnd(
    _ text: UnsafePointer<UInt8>, _ count: Int, at start: Int, _ workspace: inout Workspace
  ) -> Int? {
    if workspace.marks.count < markCount {
      workspace.marks = [Int](repeating: -1, count: markCount)
    }
    for branch in branches {
      if start < count, !branch.first[Int(text[start])] { continue }
      if let end = run(branch.start, text, count, start, &workspace) { return end }
    }
    return nil
  }

  /// The leftmost match at or behind `start`.
  private func firstMatch(
    _ text: UnsafePointer<UInt8>, _ count: Int, from start: Int, _ workspace: inout Workspace
  ) -> Range<Int>? {
    var position = start
    while position <= count {
      if position == count || firstBytes[Int(text[position])] {
        if let end = matchEnd(text, count, at: position, &workspace) { return position..<end }
      }
      guard position < count else { return nil }
      position += UTF8Text.length(lead: text[position])
    }
    return nil
  }

  /// Calls `body` with every match from left to right, as the public library iterates.
  func forEachMatch(
    _ text: UnsafePointer<UInt8>, _ count: Int, _ workspace: inout Workspace,
    _ body: (Range<Int>) -> Void
  ) {
    var position = 0
    var lastEnd = -1
    workspace.steps = Self.stepLimit + 64 * count
    while position <= count {
      guard let match = firstMatch(text, count, from: position, &workspace) else { return }
      if match.isEmpty, match.upperBound == lastEnd {
        // An empty match right behind a match does not count.
        position += position < count ? UTF8Text.length(lead: text[position]) : 1
        continue
      }
      position = match.upperBound
      lastEnd = match.upperBound
      body(match)
    }
  }

  private func run(
    _ entry: Int, _ text: UnsafePointer<UInt8>, _ count: Int, _ start: Int,
    _ workspace: inout Workspace
  ) -> Int? {
    let floor = workspace.choices.count
    defer { workspace.choices.removeLast(workspace.choices.count - floor) }
    var instruction = entry
    var position = start
    while true {
      workspace.steps -= 1
      if workspace.steps < 0 { return nil }
      var isAlive = true
      switch program[instruction] {
      case .match: return position
      case .byte(let byte):
        isAlive = position < count && text[position] == byte
        position += 1
        instruction += 1
      case .set(let set):
        if position < count {
          let (scalar, length) = UTF8Text.scalar(text, position)
          isAlive = sets[set].contains(scalar)
          position += length
          instruction += 1
        } else {
          isAlive = false
        }
      case .loop(let set, let minimum, let maximum, let mode):
        let wanted = mode == .lazy ? minimum : maximum
        var taken = 0
        var least = position
        sets.withUnsafeBufferPointer { sets in
          while taken < wanted, position < count {
            let (scalar, length) = UTF8Text.scalar(text, position)
            guard sets[set].contains(scalar) else { break }
            position += length
            taken += 1
            if taken == minimum { least = position }
          }
        }
        workspace.steps -= taken >> 3
        isAlive = taken >= minimum
        instruction += 1
        if isAlive, mode == .greedy, taken > minimum {
          workspace.choices.append(
            Choice(instruction: instruction, position: position, limit: least, set: -2))
        } else if isAlive, mode == .lazy, taken < maximum {
          workspace.choices.append(
            Choice(
              instruction: instruction, position: position, limit: maximum - taken, set: Int32(set))
          )
        }
      case .jump(let target): instruction = target
      case .split(let first, let second):
        workspace.choices.append(Choice(instruction: second, position: position, limit: 0, set: -1))
        instruction = first
      case .look(let end, let isNegated):
        isAlive = (run(instruction + 1, text, count, position, &workspace) != nil) != isNegated
        instruction = end
      case .lookBehind(let set, let isNegated):
        var isIn = false
        if position > 0 {
          isIn = sets[set].contains(
            UTF8Text.scalar(text, UTF8Text.start(before: position, in: text)).value)
        }
        isAlive = isIn != isNegated
        instruction += 1
      case .atomic(let end):
        if let stop = run(instruction + 1, text, count, position, &workspace) {
          position = stop
          instruction = end
        } else {
          isAlive = false
        }
      case .assertion(let assertion):
        isAlive = Self.holds(assertion, text, count, position)
        instruction += 1
      case .markStart(let mark):
        workspace.marks[mark] = position
        instruction += 1
      case .requireProgress(let mark):
        isAlive = workspace.marks[mark] != position
        instruction += 1
      }
      if isAlive { continue }
      guard backtrack(floor, text, count, &workspace, &instruction, &position) else { return nil }
    }
  }

  @inline(__always)
  private func backtrack(
    _ floor: Int, _ text: UnsafePointer<UInt8>, _ count: Int, _ workspace: inout Workspace,
    _ instruction: inout Int, _ position: inout Int
  ) -> Bool {
    while workspace.choices.count > floor {
      let last = workspace.choices.count - 1
      let choice = workspace.choices[last]
      instruction = choice.instruction
      switch choice.set {
      case -1:
        workspace.choices.removeLast()
        position = choice.position
        return true
      case -2:
        position = UTF8Text.start(before: choice.position, in: text)
        if position > choice.limit {
          workspace.choices[last].position = position
        } else {
          workspace.choices.removeLast()
        }
        return true
      default:
        workspace.choices.removeLast()
        guard choice.position < count else { continue }
        let (scalar, length) = UTF8Text.scalar(text, choice.position)
        guard sets[Int(choice.set)].contains(scalar) else { continue }
        position = choice.position + length
        if choice.limit > 1 {
          workspace.choices.append(
            Choice(
              instruction: instruction, position: position, limit: choice.limit - 1, set: choice.set
            ))
        }
        return true
      }
    }
    return false
  }

  private static func holds(
    _ assertion: PatternNode.Assertion, _ text: UnsafePointer<UInt8>, _ count: Int, _ position: Int
  ) -> Bool {
    switch assertion {
    case .textStart: return position == 0
    case .textEnd: return position == count
    case .textEndOrNewline:
      return position == count || position == count - 1 && text[position] == 10
    case .lineStart: return position == 0 || text[position - 1] == 10 && position < count
    case .lineEnd: return position == count || text[position] == 10
    case .wordBoundary, .notWordBoundary:
      let before =
        position > 0
        && word.contains(UTF8Text.scalar(text, UTF8Text.start(before: position, in: text)).value)
      let after = position < count && word.contains(UTF8Text.scalar(text, position).value)
      return (before != after) == (assertion == .wordBoundary)
    }
  }
}
