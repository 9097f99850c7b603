extension TaskEntry {
  /// Expressions of digits, +, − and × modulo n, products first; after each digit the value so far.
  /// Delétang et al., "Neural networks and the Chomsky hierarchy", 2022, modular arithmetic (simple).
  public static let modularArithmetic = TaskEntry(
    "modular_arithmetic", "3 + 2 * 4 …; after each digit: the value so far modulo n",
    options: [TaskOption("modulus", 5, 2...100, "n")]
  ) { ModularArithmetic(modulus: $0["modulus"]) }

  /// The same with brackets, which needs a stack; after each closing bracket the value of its group.
  public static let bracketArithmetic = TaskEntry(
    "bracket_arithmetic", "( 3 + ( 2 * 4 ) ) …; after each group: its value modulo n",
    options: [
      TaskOption("modulus", 5, 2...100, "n"),
      TaskOption("depth", 3, 1...50, "groups inside each other at most"),
    ]
  ) { BracketArithmetic(modulus: $0["modulus"], depth: $0["depth"]) }
}

private enum Operator: Int { case plus, minus, times }

struct ModularArithmetic: SequenceTask {
  let modulus: Int
  let vocabulary: [String]
  var chance: Double { 1 / Double(modulus) }

  init(modulus: Int) {
    self.modulus = modulus
    vocabulary = (0..<modulus).map(String.init) + ["+", "-", "*"]
  }

  func example(length: Int, _ random: inout TaskRandom) -> TaskExample {
    var row = TaskExample()
    // The value so far is sum + sign · product: the product may still grow.
    var (sum, sign, product) = (0, 1, random.below(modulus))
    row.append(product, answer: product)
    while row.tokens.count + 2 <= length {
      let (op, digit) = (random.below(3), random.below(modulus))
      row.append(modulus + op)
      if Operator(rawValue: op) == .times {
        product = product * digit % modulus
      } else {
        sum = (sum + sign * product) % modulus
        (sign, product) = (Operator(rawValue: op) == .minus ? -1 : 1, digit)
      }
      let value = (sum + sign * product) % modulus
      row.append(digit, answer: (value + modulus) % modulus)
    }
    return row
  }
}

/// Rows of expressions a ∘ b in brackets, each operand a digit or an expression of its own.
struct BracketArithmetic: SequenceTask {
  let modulus, depth: Int
  let vocabulary: [String]
  var chance: Double { 1 / Double(modulus) }
  let shortest = 5

  init(modulus: Int, depth: Int) {
    self.modulus = modulus
    self.depth = depth
    vocabulary = (0..<modulus).map(String.init) + ["+", "-", "*", "(", ")"]
  }

  func example(length: Int, _ random: inout TaskRandom) -> TaskExample {
    var row = TaskExample()
    while row.tokens.count + 5 <= length {
      _ = group(in: length - row.tokens.count, depth, &row, &random)
    }
    return row
  }

  /// Appends a group of at most `room` ≥ 5 tokens; its value.
  private func group(
    in room: Int, _ depth: Int, _ row: inout TaskExample, _ random: inout TaskRandom
  ) -> Int {
    row.append(modulus + 3)
    // Besides an operand of one token, a group takes brackets and operator: four tokens.
    let end = row.tokens.count - 1 + room
    let a = operand(in: room - 4, depth, &row, &random)
    let op = random.below(3)
    row.append(modulus + op)
    let b = operand(in: end - row.tokens.count - 1, depth, &row, &random)
    let value =
      switch Operator(rawValue: op) {
      case .plus: (a + b) % modulus
      case .minus: (a - b + modulus) % modulus
      default: a * b % modulus
      }
    row.append(modulus + 4, answer: value)
    return value
  }

  private func operand(
    in room: Int, _ depth: Int, _ row: inout TaskExample, _ random: inout TaskRandom
  ) -> Int {
    if depth > 1, room >= 5, random.below(2) == 0 {
      return group(in: room, depth - 1, &row, &random)
    }
    let digit = random.below(modulus)
    row.append(digit)
    return digit
  }
}
