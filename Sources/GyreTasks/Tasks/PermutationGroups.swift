extension TaskEntry {
  /// S₃: the smallest group whose order of factors matters.
  public static let symmetric3 = permutations("s3", "S_3", degree: 3, evenOnly: false)
  /// A₅: the smallest group that is not solvable.
  public static let alternating5 = permutations("a5", "A_5", degree: 5, evenOnly: true)
  /// S₅: all 120 arrangements of five things.
  public static let symmetric5 = permutations("s5", "S_5", degree: 5, evenOnly: false)

  private static func permutations(
    _ name: String, _ group: String, degree: Int, evenOnly: Bool
  ) -> TaskEntry {
    TaskEntry(
      name, "permutations; after each: their product so far (word problem of \(group))",
      options: [
        TaskOption("generators", 0, 0...1, "1: rows of two generators and their inverses only"),
        TaskOption("last", 0, 0...1, "1: asks only after the last permutation"),
      ]
    ) {
      GroupWords(
        PermutationGroup(
          degree: degree, evenOnly: evenOnly, usesGenerators: $0["generators"] == 1),
        asksLastOnly: $0["last"] == 1)
    }
  }
}

/// All or the even permutations of a few things, in lexicographic order and one-line notation.
struct PermutationGroup: FiniteGroup {
  let names: [String]
  let letters: [Int]
  private let table: [[Int]]

  /// - Parameter usesGenerators: letters are (1 2) and (1 2 … n) of Sₙ, (1 2 3) and (1 2 3 4 5) of A₅,
  ///   and their inverses.
  init(degree: Int, evenOnly: Bool, usesGenerators: Bool) {
    var all: [[Int]] = [[]]
    for _ in 0..<degree {
      all = all.flatMap { head in
        (0..<degree).filter { !head.contains($0) }.map { head + [$0] }
      }
    }
    let elements = evenOnly ? all.filter { Self.inversions($0) % 2 == 0 } : all
    let places = Dictionary(uniqueKeysWithValues: elements.enumerated().map { ($1, $0) })
    table = elements.map { a in
      // (a then b)(i) = b(a(i)).
      elements.map { b in places[a.map { b[$0] }] ?? 0 }
    }
    names = elements.map { $0.map { String($0 + 1) }.joined() }
    guard usesGenerators else {
      letters = Array(elements.indices)
      return
    }
    let cycle = (0..<degree).map { ($0 + 1) % degree }
    let short: [Int] =
      evenOnly
      ? [1, 2, 0] + Array(3..<degree) : [1, 0] + Array(2..<degree)
    var generators: Set<Int> = []
    for g in [short, cycle] {
      guard let place = places[g] else { continue }
      generators.insert(place)
      if let inverse = table[place].firstIndex(of: 0) { generators.insert(inverse) }
    }
    letters = generators.sorted()
  }

  private static func inversions(_ p: [Int]) -> Int {
    p.indices.reduce(0) { n, i in n + p[i...].filter { $0 < p[i] }.count }
  }

  func product(_ a: Int, _ b: Int) -> Int { table[a][b] }
}
