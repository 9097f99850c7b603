import GyreTensors

/// One row of a task: what the model reads and what it must answer where.
public struct TaskExample: Sendable, Hashable {
  /// Numbers of the task's tokens.
  public var tokens: [Int32] = []
  /// The answer due after each token; negative where nothing is asked.
  public var answers: [Int32] = []
  /// Answers that count as right where there are several, by position; training takes `answers`.
  public var accepted: [Int: [Int32]] = [:]

  public init() {}

  /// Appends a token and what is due after it.
  public mutating func append(_ token: Int, answer: Int? = nil) {
    tokens.append(Int32(token))
    answers.append(Int32(answer ?? -1))
  }

  /// Appends tokens of which each is the answer due after the token before it.
  public mutating func appendAnswered(_ written: [Int]) {
    for token in written {
      if !answers.isEmpty { answers[answers.count - 1] = Int32(token) }
      append(token)
    }
  }

  /// Fills the row with one token to a length.
  mutating func pad(to length: Int, with token: Int32) {
    while tokens.count < length {
      tokens.append(token)
      answers.append(-1)
    }
  }
}

/// A language to learn from generated rows: words, questions and answers.
///
/// To add one: a file in `Tasks/` with an entry, one line in `TaskCatalog`, one test.
public protocol SequenceTask: Sendable {
  /// The words, at least two; a token's number is its place.
  var vocabulary: [String] { get }
  /// The part of answers that guessing without reading gets right.
  var chance: Double { get }
  /// The shortest row that asks something.
  var shortest: Int { get }
  /// A row of `length` tokens or a few less; the same draws give the same row.
  ///
  /// - Precondition: `length` is not below `shortest`.
  func example(length: Int, _ random: inout TaskRandom) -> TaskExample
}

extension SequenceTask {
  public var shortest: Int { 2 }
}

/// A whole number that a task may be given.
public struct TaskOption: Sendable, Hashable {
  public var name: String
  public var initial: Int
  public var range: ClosedRange<Int>
  public var meaning: String

  public init(_ name: String, _ initial: Int, _ range: ClosedRange<Int>, _ meaning: String) {
    self.name = name
    self.initial = initial
    self.range = range
    self.meaning = meaning
  }
}

/// The options of a task by name, each in its range.
public struct TaskValues: Sendable, Hashable {
  var values: [String: Int]
  /// - Precondition: the entry lists the option.
  public subscript(_ name: String) -> Int {
    guard let value = values[name] else { preconditionFailure("no option is called \(name)") }
    return value
  }
}

/// A line of the catalogue: how a task is called, what it asks and what it can be given.
public struct TaskEntry: Sendable {
  public var name: String
  /// What is read and asked, in a line.
  public var summary: String
  public var options: [TaskOption]
  /// - Throws: options that do not go together.
  public var make: @Sendable (TaskValues) throws(TaskError) -> any SequenceTask

  public init(
    _ name: String, _ summary: String, options: [TaskOption] = [],
    _ make: @escaping @Sendable (TaskValues) throws(TaskError) -> any SequenceTask
  ) {
    self.name = name
    self.summary = summary
    self.options = options
    self.make = make
  }
}

/// What is wrong with a task's description or a study's.
public enum TaskError: Error, CustomStringConvertible {
  case unknown(name: String, known: [String])
  case option(task: String, reason: String)
  case length(task: String, length: Int, shortest: Int)
  case file(path: String, reason: String)
  case study(String)

  public var description: String {
    switch self {
    case .unknown(let name, let known):
      "no task is called '\(name)'; there are \(known.joined(separator: ", "))"
    case .option(let task, let reason): "task \(task): \(reason)"
    case .length(let task, let length, let shortest):
      "task \(task): rows of \(length) tokens ask nothing; at least \(shortest) are needed"
    case .file(let path, let reason): "\(path): \(reason)"
    case .study(let reason): reason
    }
  }
}

/// Draws for one row, a pure function of seed, purpose, batch and row.
public struct TaskRandom: Sendable {
  private let generator: CounterGenerator
  private var counter: UInt64

  /// - Parameters:
  ///   - purpose: draws of different purposes are independent.
  ///   - row: at most 2²⁰ rows a batch.
  public init(seed: UInt64, purpose: String, batch: Int, row: Int) {
    generator = CounterGenerator(seed: seed, name: "task \(purpose) \(batch)")
    counter = UInt64(row) << 44
  }

  /// Uniform in 0..<bound.
  public mutating func below(_ bound: Int) -> Int {
    counter += 1
    return generator.integer(counter - 1, below: bound)
  }
  public mutating func index(in range: ClosedRange<Int>) -> Int {
    range.lowerBound + below(range.count)
  }
  /// True with a probability in thousandths.
  public mutating func happens(_ thousandths: Int) -> Bool { below(1000) < thousandths }

  /// Fisher and Yates.
  public mutating func shuffled<T>(_ items: [T]) -> [T] {
    var items = items
    for i in stride(from: items.count - 1, to: 0, by: -1) { items.swapAt(i, below(i + 1)) }
    return items
  }

  /// Different numbers of 0..<bound.
  ///
  /// - Precondition: there are so many.
  public mutating func distinct(_ count: Int, below bound: Int) -> [Int] {
    precondition(count <= bound, "\(count) different numbers below \(bound)")
    var numbers = Array(0..<bound)
    for i in 0..<count { numbers.swapAt(i, i + below(bound - i)) }
    return Array(numbers[..<count])
  }
}
