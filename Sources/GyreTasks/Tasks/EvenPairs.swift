extension TaskEntry {
  /// Whether the pairs ab and ba together are even in number, which is whether the letter equals the
  /// first. Delétang et al., "Neural networks and the Chomsky hierarchy", 2022.
  /// https://arxiv.org/abs/2207.02098
  public static let evenPairs = TaskEntry(
    "even_pairs", "letters a and b; after each: are the pairs ab and ba so far even in number"
  ) { _ in EvenPairs() }
}

struct EvenPairs: SequenceTask {
  let vocabulary = ["a", "b", "even", "odd"]
  let chance = 0.5

  func example(length: Int, _ random: inout TaskRandom) -> TaskExample {
    var row = TaskExample()
    var first: Int?
    for _ in 0..<length {
      let letter = random.below(2)
      row.append(letter, answer: letter == first ?? letter ? 2 : 3)
      first = first ?? letter
    }
    return row
  }
}
