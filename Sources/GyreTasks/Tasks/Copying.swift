extension TaskEntry {
  /// A row of symbols, then the same again.
  public static let copying = TaskEntry(
    "copying", "symbols, then | ; the same symbols again",
    options: [TaskOption("symbols", 16, 2...1000, "different symbols")]
  ) { Copying(symbols: $0["symbols"], selected: nil) }

  /// A few symbols scattered among blanks, then the symbols without the blanks. Gu and Dao, "Mamba",
  /// 2023, after Jing et al., "Gated orthogonal recurrent units", 2019.
  public static let selectiveCopying = TaskEntry(
    "selective_copying", "symbols among blanks, then | ; the symbols without the blanks",
    options: [
      TaskOption("symbols", 16, 2...1000, "different symbols"),
      TaskOption("count", 8, 1...1000, "symbols in a row"),
    ]
  ) { Copying(symbols: $0["symbols"], selected: $0["count"]) }
}

struct Copying: SequenceTask {
  /// Different symbols.
  let symbols: Int
  /// Symbols of a row among blanks; nil: as many as fit, without blanks.
  let selected: Int?
  let vocabulary: [String]
  var chance: Double { 1 / Double(symbols) }
  var shortest: Int { 2 * (selected ?? 1) + 1 }

  init(symbols: Int, selected: Int?) {
    self.symbols = symbols
    self.selected = selected
    vocabulary =
      (0..<symbols).map { "s\($0)" } + ["|", "."]
  }

  func example(length: Int, _ random: inout TaskRandom) -> TaskExample {
    let count = selected ?? (length - 1) / 2
    let room = selected == nil ? count : length - 1 - count
    let places = Set(random.distinct(count, below: room))
    var row = TaskExample()
    var written: [Int] = []
    for i in 0..<room {
      if places.contains(i) { written.append(random.below(symbols)) }
      row.append(places.contains(i) ? written[written.count - 1] : symbols + 1)
    }
    row.append(symbols)
    row.appendAnswered(written)
    return row
  }
}
