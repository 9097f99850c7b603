extension TaskEntry {
  /// Words of a regular language that is new in every row: a random automaton's walks, one word after
  /// the other; after each letter, one that may follow. Akyürek, Wang, Kim and Andreas, "In-context
  /// language learning: architectures and algorithms", 2024. https://arxiv.org/abs/2401.12973
  public static let randomAutomata = TaskEntry(
    "random_automata", "words of a random automaton, new in every row; a letter that may follow",
    options: [
      TaskOption("states", 6, 2...64, "states of the automaton"),
      TaskOption("symbols", 12, 4...64, "different letters"),
      TaskOption("word", 12, 2...1000, "letters of a word"),
    ]
  ) { RandomAutomata(states: $0["states"], symbols: $0["symbols"], word: $0["word"]) }
}

struct RandomAutomata: SequenceTask {
  let states, symbols, word: Int
  let vocabulary: [String]
  /// Each state has two to four letters.
  var chance: Double { 3 / Double(symbols) }
  let shortest = 4

  init(states: Int, symbols: Int, word: Int) {
    (self.states, self.symbols, self.word) = (states, symbols, word)
    vocabulary = (0..<symbols).map { "s\($0)" } + ["|"]
  }

  func example(length: Int, _ random: inout TaskRandom) -> TaskExample {
    // Deterministic: a letter leads from a state to one other.
    let edges = (0..<states).map { _ in
      random.distinct(2 + random.below(3), below: symbols).map { ($0, random.below(states)) }
    }
    var row = TaskExample()
    var (state, written) = (0, 0)
    row.append(symbols)
    while row.tokens.count < length {
      if written == word {
        row.append(symbols)
        (state, written) = (0, 0)
        continue
      }
      let choices = edges[state]
      let (letter, next) = choices[random.below(choices.count)]
      let place = row.tokens.count - 1
      row.answers[place] = Int32(letter)
      row.accepted[place] = choices.map { Int32($0.0) }
      row.append(letter)
      (state, written) = (next, written + 1)
    }
    return row
  }
}
