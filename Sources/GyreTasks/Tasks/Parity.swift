extension TaskEntry {
  /// Parity of the ones so far: the word problem of Z₂. With `last` only the whole row is asked.
  public static let parity = TaskEntry(
    "parity", "bits; after each: is the number of ones so far odd",
    options: [TaskOption("last", 0, 0...1, "1: asks only after the last bit")]
  ) { GroupWords(RunningSum(modulus: 2), asksLastOnly: $0["last"] == 1) }

  /// The sum so far modulo n: the word problem of Zₙ.
  public static let modularAddition = TaskEntry(
    "modular_addition", "digits; after each: the sum so far modulo n (word problem of Z_n)",
    options: [
      TaskOption("modulus", 5, 2...1000, "n"),
      TaskOption("last", 0, 0...1, "1: asks only after the last digit"),
    ]
  ) { GroupWords(RunningSum(modulus: $0["modulus"]), asksLastOnly: $0["last"] == 1) }
}

/// Zₙ: addition modulo n, all elements as letters.
struct RunningSum: FiniteGroup {
  let modulus: Int
  var names: [String] { (0..<modulus).map(String.init) }
  var letters: [Int] { Array(0..<modulus) }
  func product(_ a: Int, _ b: Int) -> Int { (a + b) % modulus }
}
