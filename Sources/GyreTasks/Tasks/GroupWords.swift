/// A group with elements 0, 1, …, of which 0 is the neutral one.
protocol FiniteGroup: Sendable {
  /// A word for each element.
  var names: [String] { get }
  /// The elements that rows are made of.
  var letters: [Int] { get }
  /// First a, then b.
  func product(_ a: Int, _ b: Int) -> Int
}

/// The word problem of a group: letters, and after each the product so far.
///
/// Solvable groups are within reach of constant-depth threshold circuits, A₅ and S₅ are not (complete
/// for NC¹). Merrill, Petty and Sabharwal, "The illusion of state in state-space models", 2024.
/// https://arxiv.org/abs/2404.08819
struct GroupWords<Group: FiniteGroup>: SequenceTask {
  let group: Group
  let asksLastOnly: Bool
  let vocabulary: [String]

  init(_ group: Group, asksLastOnly: Bool) {
    self.group = group
    self.asksLastOnly = asksLastOnly
    vocabulary = group.names
  }

  var chance: Double { 1 / Double(vocabulary.count) }

  func example(length: Int, _ random: inout TaskRandom) -> TaskExample {
    var row = TaskExample()
    var element = 0
    let letters = group.letters
    for i in 0..<length {
      let letter = letters[random.below(letters.count)]
      element = group.product(element, letter)
      row.append(letter, answer: !asksLastOnly || i == length - 1 ? element : nil)
    }
    return row
  }
}
