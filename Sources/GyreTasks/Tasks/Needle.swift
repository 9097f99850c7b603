extension TaskEntry {
  /// A number hidden in a text that repeats; the text ends with a question for it. Mohtashami and Jaggi,
  /// "Landmark attention", 2023. https://arxiv.org/abs/2305.16300
  public static let passkey = TaskEntry(
    "passkey", "a text that repeats, with a number in it; the digits of the number",
    options: [TaskOption("digits", 5, 1...100, "digits of the number")]
  ) { Needle(names: 1, needles: 1, digits: $0["digits"], repeatsText: true) }

  /// Numbers of several names hidden among random words; the row ends with a name. Hsieh et al., "RULER",
  /// 2024, multi-key retrieval. https://arxiv.org/abs/2404.06654
  public static let needle = TaskEntry(
    "needle", "random words with the numbers of some names in it, then a name; its number",
    options: [
      TaskOption("needles", 4, 1...16, "names in a row"),
      TaskOption("digits", 2, 1...100, "digits of a number"),
    ]
  ) { Needle(names: 16, needles: $0["needles"], digits: $0["digits"], repeatsText: false) }
}

struct Needle: SequenceTask {
  private static let text =
    "the grass is green . the sky is blue . the sun is yellow . here we go . there and back again ."
    .split(separator: " ").map(String.init)
  private static let people = [
    "ann", "bob", "cem", "dora", "eva", "finn", "gus", "hana", "ivo", "jan", "kim", "lea", "max",
    "nora", "otto", "pia",
  ]

  let names, needles, digits: Int
  /// The text again and again, or its words in random order.
  let repeatsText: Bool
  let vocabulary: [String]
  private let words: [String]
  let chance = 0.1
  /// Each needle is a mark, a name and a number; the question is a mark and a name.
  var shortest: Int { needles * (digits + 2) + 2 + digits }

  init(names: Int, needles: Int, digits: Int, repeatsText: Bool) {
    (self.names, self.needles, self.digits) = (names, needles, digits)
    self.repeatsText = repeatsText
    words = Set(Self.text).sorted()
    vocabulary =
      (0..<10).map(String.init) + ["key", "ask"]
      + (names == 1 ? ["number"] : Array(Self.people.prefix(names))) + words
  }

  func example(length: Int, _ random: inout TaskRandom) -> TaskExample {
    let people = random.distinct(needles, below: names)
    let numbers = people.map { _ in (0..<digits).map { _ in random.below(10) } }
    let filler = length - shortest
    // Where among the words the needles are.
    let places = (0..<needles).map { _ in random.below(filler + 1) }.sorted()
    let asked = random.below(needles)
    var row = TaskExample()
    var next = 0
    for i in 0...filler {
      while next < needles, places[next] == i {
        row.append(10)
        row.append(12 + people[next])
        for digit in numbers[next] { row.append(digit) }
        next += 1
      }
      guard i < filler else { break }
      let word =
        repeatsText
        ? words.firstIndex(of: Self.text[i % Self.text.count]) ?? 0 : random.below(words.count)
      row.append(12 + names + word)
    }
    row.append(11)
    row.append(12 + people[asked])
    row.appendAnswered(numbers[asked])
    return row
  }
}
