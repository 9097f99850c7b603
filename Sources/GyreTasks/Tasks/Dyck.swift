extension TaskEntry {
  /// Bracket words of bounded depth over several kinds; after each bracket the kind that must be closed
  /// next. Hewitt et al., "RNNs can generate bounded hierarchical languages with optimal memory", 2020.
  /// https://arxiv.org/abs/2010.07515
  public static let dyck = TaskEntry(
    "dyck", "brackets of n kinds; after each: which bracket must be closed next",
    options: [
      TaskOption("kinds", 2, 1...100, "n"),
      TaskOption("depth", 4, 1...100, "brackets open at once at most"),
    ]
  ) { Dyck(kinds: $0["kinds"], depth: $0["depth"]) }
}

struct Dyck: SequenceTask {
  let kinds, depth: Int
  let vocabulary: [String]
  /// The walk over depths is uniform over 0…depth but for its ends; an empty stack is one answer.
  var chance: Double { 1 / Double(kinds + 1) }

  init(kinds: Int, depth: Int) {
    self.kinds = kinds
    self.depth = depth
    let pairs = kinds <= 3 ? Array(["()", "[]", "{}"].prefix(kinds)) : []
    let opening = kinds <= 3 ? pairs.map { String($0.prefix(1)) } : (0..<kinds).map { "\($0)(" }
    let closing = kinds <= 3 ? pairs.map { String($0.suffix(1)) } : (0..<kinds).map { ")\($0)" }
    vocabulary = opening + closing + ["none"]
  }

  func example(length: Int, _ random: inout TaskRandom) -> TaskExample {
    var row = TaskExample()
    var open: [Int] = []
    for _ in 0..<length {
      let opens = open.isEmpty || (open.count < depth && random.below(2) == 0)
      let token: Int
      if opens {
        token = random.below(kinds)
        open.append(token)
      } else {
        token = kinds + open.removeLast()
      }
      row.append(token, answer: open.last.map { kinds + $0 } ?? 2 * kinds)
    }
    return row
  }
}
