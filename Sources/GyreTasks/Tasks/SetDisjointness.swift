extension TaskEntry {
  /// Two sets with at most one common element; the answer is that element, or none. A model that reads
  /// once needs room for the set that comes first, so the order matters; with `repeats` 2 it may read
  /// the other first. Arora et al., "Just read twice", 2024. https://arxiv.org/abs/2407.05483
  public static let setDisjointness = TaskEntry(
    "set_disjointness", "a set | another set ?; the element in both, or none",
    options: [
      TaskOption("small", 4, 1...1000, "elements of the small set"),
      TaskOption("order", 0, 0...1, "0: the small set first; 1: the large one first"),
      TaskOption("elements", 128, 2...10_000, "different elements"),
      TaskOption("repeats", 1, 1...100, "times that both sets are given"),
    ]
  ) { (v) throws(TaskError) in
    guard v["small"] <= v["elements"] / 2 else {
      throw .option(task: "set_disjointness", reason: "small must be at most half of elements")
    }
    return SetDisjointness(
      small: v["small"], largeFirst: v["order"] == 1, elements: v["elements"],
      repeats: v["repeats"])
  }
}

struct SetDisjointness: SequenceTask {
  let small: Int
  let largeFirst: Bool
  let elements, repeats: Int
  let vocabulary: [String]
  /// Half of the rows have no common element.
  let chance = 0.5
  var shortest: Int { repeats * (small + 3) + 1 }

  init(small: Int, largeFirst: Bool, elements: Int, repeats: Int) {
    (self.small, self.largeFirst) = (small, largeFirst)
    (self.elements, self.repeats) = (elements, repeats)
    vocabulary = (0..<elements).map { "e\($0)" } + ["|", "?", "none"]
  }

  func example(length: Int, _ random: inout TaskRandom) -> TaskExample {
    // The large set fills the row, as far as there are elements.
    let large = min((length - 1) / repeats - small - 2, elements - small)
    let drawn = random.distinct(small + large, below: elements)
    let smallSet = Array(drawn[..<small])
    var largeSet = Array(drawn[small...])
    var common: Int?
    if random.below(2) == 0 {
      let element = smallSet[random.below(small)]
      largeSet[random.below(large)] = element
      common = element
    }
    var row = TaskExample()
    for _ in 0..<repeats {
      for element in largeFirst ? largeSet : smallSet { row.append(element) }
      row.append(elements)
      for element in largeFirst ? smallSet : largeSet { row.append(element) }
      row.append(elements)
    }
    row.append(elements + 1, answer: common ?? elements + 2)
    return row
  }
}
