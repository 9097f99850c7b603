extension TaskEntry {
  /// Multi-query associative recall: pairs of keys and values, then keys; after each its value. Arora et
  /// al., "Zoology: measuring and improving recall in efficient language models", 2023.
  /// https://arxiv.org/abs/2312.04927. With `repeats` the pairs are given several times, in one order:
  /// Arora et al., "Just read twice", 2024. https://arxiv.org/abs/2407.05483
  public static let associativeRecall = TaskEntry(
    "mqar", "pairs of keys and values, then keys; after each: its value",
    options: [
      TaskOption("pairs", 8, 1...1000, "pairs in a row"),
      TaskOption("keys", 64, 1...10_000, "different keys"),
      TaskOption("values", 64, 2...10_000, "different values"),
      TaskOption("repeats", 1, 1...100, "times that the pairs are given"),
    ]
  ) { (v) throws(TaskError) in
    guard v["pairs"] <= v["keys"] else {
      throw .option(task: "mqar", reason: "pairs must not be more than keys (\(v["keys"]))")
    }
    return AssociativeRecall(
      pairs: v["pairs"], keys: v["keys"], values: v["values"], repeats: v["repeats"])
  }
}

struct AssociativeRecall: SequenceTask {
  let pairs, keys, values, repeats: Int
  let vocabulary: [String]
  var chance: Double { 1 / Double(values) }
  var shortest: Int { 2 * pairs * repeats + 1 }

  init(pairs: Int, keys: Int, values: Int, repeats: Int) {
    (self.pairs, self.keys, self.values, self.repeats) = (pairs, keys, values, repeats)
    vocabulary = (0..<keys).map { "k\($0)" } + (0..<values).map { "v\($0)" } + ["."]
  }

  func example(length: Int, _ random: inout TaskRandom) -> TaskExample {
    let chosen = random.distinct(pairs, below: keys)
    let given = chosen.map { _ in random.below(values) }
    var row = TaskExample()
    for _ in 0..<repeats {
      for (key, value) in zip(chosen, given) {
        row.append(key)
        row.append(keys + value)
      }
    }
    // Every key once as far as there is room; what is left is blanks before and between.
    let room = length - row.tokens.count
    let asked = random.shuffled(Array(0..<pairs)).prefix(room)
    let places = Set(random.distinct(asked.count, below: room))
    var next = 0
    for i in 0..<room {
      if places.contains(i) {
        let pair = asked[asked.startIndex + next]
        row.append(chosen[pair], answer: keys + given[pair])
        next += 1
      } else {
        row.append(keys + values)
      }
    }
    return row
  }
}
