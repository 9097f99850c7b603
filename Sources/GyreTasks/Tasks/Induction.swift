extension TaskEntry {
  /// Random letters; wherever the last n − 1 letters came before, the letter that followed them then.
  /// Olsson et al., "In-context learning and induction heads", 2022 (n = 2).
  /// https://arxiv.org/abs/2209.11895
  public static let induction = TaskEntry(
    "induction", "letters; where the last n-1 of them came before: what followed them then",
    options: [
      TaskOption("order", 2, 2...8, "n"), TaskOption("symbols", 16, 2...1000, "different letters"),
    ]
  ) { Induction(order: $0["order"], symbols: $0["symbols"]) }
}

struct Induction: SequenceTask {
  let order, symbols: Int
  let vocabulary: [String]
  var chance: Double { 1 / Double(symbols) }
  /// A context can come again only after itself and what followed it.
  var shortest: Int { 2 * order }

  init(order: Int, symbols: Int) {
    (self.order, self.symbols) = (order, symbols)
    vocabulary = (0..<symbols).map { "s\($0)" }
  }

  func example(length: Int, _ random: inout TaskRandom) -> TaskExample {
    var row = TaskExample()
    var letters = (0..<length).map { _ in random.below(symbols) }
    // The last context is an earlier one, so that every row asks something.
    let context = order - 1
    let source = random.below(length - 2 * context)
    letters.replaceSubrange(
      (length - context)..., with: Array(letters[source..<source + context]))
    var seen: [ArraySlice<Int>: Int] = [:]
    for i in letters.indices {
      let last = i >= context - 1 ? letters[(i - context + 1)...i] : []
      row.append(letters[i], answer: last.isEmpty ? nil : seen[last].map { letters[$0] })
      if !last.isEmpty { seen[last] = i + 1 }
    }
    return row
  }
}
