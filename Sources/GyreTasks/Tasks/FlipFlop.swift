extension TaskEntry {
  /// A memory of one bit among distractions: write, ignore and read instructions, each with a bit; after
  /// a read the bit written last. Liu, Ash, Goel, Krishnamurthy and Zhang, "Exposing attention
  /// glitches with flip-flop language modeling", 2023. https://arxiv.org/abs/2306.00946
  public static let flipFlop = TaskEntry(
    "flip_flop", "write, ignore and read with bits; after read: the bit written last",
    options: [TaskOption("ignore", 800, 0...998, "ignored instructions in a thousand")]
  ) { FlipFlop(ignored: $0["ignore"]) }
}

struct FlipFlop: SequenceTask {
  let ignored: Int
  let vocabulary = ["0", "1", "write", "ignore", "read"]
  let chance = 0.5
  let shortest = 4

  func example(length: Int, _ random: inout TaskRandom) -> TaskExample {
    var row = TaskExample()
    var bit = random.below(2)
    row.append(2)
    row.append(bit)
    while row.tokens.count + 4 <= length {
      if random.happens(ignored) {
        row.append(3)
        row.append(random.below(2))
      } else if random.below(2) == 0 {
        bit = random.below(2)
        row.append(2)
        row.append(bit)
      } else {
        row.append(4, answer: bit)
        row.append(bit)
      }
    }
    row.append(4, answer: bit)
    return row
  }
}
