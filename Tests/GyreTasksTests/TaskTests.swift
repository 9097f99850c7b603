import GyreTensors
import GyreTraining
import Testing

@testable import GyreTasks

func rows(
  _ description: String, length: Int, count: Int = 50
) throws -> [(words: [String], answers: [String?], row: TaskExample)] {
  let task = try TaskCatalog.task(description)
  return (0..<count).map { i in
    var random = TaskRandom(seed: 3, purpose: "test", batch: 0, row: i)
    let row = task.example(length: length, &random)
    return (
      row.tokens.map { task.vocabulary[Int($0)] },
      row.answers.map { $0 < 0 ? nil : task.vocabulary[Int($0)] }, row
    )
  }
}

@Suite struct TaskTests {
  @Test(arguments: TaskCatalog.entries.map(\.name)) func rowsAreWhole(_ name: String) throws {
    let task = try TaskCatalog.task(name)
    let words = Int32(task.vocabulary.count)
    #expect(Set(task.vocabulary).count == task.vocabulary.count)
    #expect(task.vocabulary.allSatisfy { !$0.isEmpty && !$0.contains(" ") })
    #expect(task.chance > 0 && task.chance < 1)
    for length in [task.shortest, task.shortest + 1, task.shortest + 50] {
      for i in 0..<20 {
        var first = TaskRandom(seed: 5, purpose: "test", batch: 2, row: i)
        var second = first
        let row = task.example(length: length, &first)
        #expect(row == task.example(length: length, &second))
        #expect(row.tokens.count == row.answers.count && row.tokens.count <= length)
        #expect(row.tokens.allSatisfy { $0 >= 0 && $0 < words })
        #expect(row.answers.allSatisfy { $0 >= -1 && $0 < words })
        #expect(row.answers.contains { $0 >= 0 })
        for (place, choices) in row.accepted { #expect(choices.contains(row.answers[place])) }
      }
    }
    #expect(try TaskCatalog.canonical(TaskCatalog.canonical(name)) == TaskCatalog.canonical(name))
  }

  @Test(arguments: [
    "nothing", "parity:first=1", "modular_addition:modulus=1", "dyck:kinds", "mqar:pairs=70",
    "dyck:kinds=99999999999999999999", "set_disjointness:small=100",
  ]) func wrongDescriptions(_ description: String) {
    #expect(throws: TaskError.self) { try TaskCatalog.task(description) }
  }

  @Test func sums() throws {
    for (name, modulus) in [("parity", 2), ("modular_addition:modulus=7", 7)] {
      for (words, answers, _) in try rows(name, length: 30) {
        for i in words.indices {
          let sum = words[...i].compactMap { Int($0) }.reduce(0, +)
          #expect(answers[i] == "\(sum % modulus)")
        }
      }
    }
    for (_, answers, _) in try rows("parity:last=1", length: 9) {
      #expect(answers.dropLast().allSatisfy { $0 == nil } && answers.last != .some(nil))
    }
  }

  /// Things are moved one permutation after the other; the groups have their known orders.
  @Test func permutations() throws {
    for (name, order) in [("s3", 6), ("a5", 60), ("s5", 120), ("a5:generators=1", 60)] {
      #expect(try TaskCatalog.task(name).vocabulary.count == order)
      for (words, answers, _) in try rows(name, length: 12) {
        var places = Array(0..<words[0].count)
        for (word, answer) in zip(words, answers) {
          let move = word.compactMap(\.wholeNumberValue).map { $0 - 1 }
          places = places.map { move[$0] }
          #expect(answer == places.map { "\($0 + 1)" }.joined())
        }
      }
    }
  }

  @Test func evenPairs() throws {
    for (words, answers, _) in try rows("even_pairs", length: 25) {
      for i in words.indices {
        let changes = (0..<i).count { words[$0] != words[$0 + 1] }
        #expect(answers[i] == (changes % 2 == 0 ? "even" : "odd"))
      }
    }
  }

  /// The value by descent over the grammar, which generation does not use.
  private func value(_ words: ArraySlice<String>, _ n: Int) -> Int {
    var rest = words
    func factor() -> Int {
      let word = rest.removeFirst()
      guard word == "(" else { return Int(word) ?? 0 }
      let inside = sum()
      rest.removeFirst()
      return inside
    }
    func product() -> Int {
      var x = factor()
      while rest.first == "*" {
        rest.removeFirst()
        x = x * factor() % n
      }
      return x
    }
    func sum() -> Int {
      var x = product()
      while let op = rest.first, op == "+" || op == "-" {
        rest.removeFirst()
        x = (x + (op == "+" ? 1 : n - 1) * product()) % n
      }
      return x
    }
    return sum()
  }

  @Test func arithmetic() throws {
    for (words, answers, _) in try rows("modular_arithmetic", length: 31) {
      for i in words.indices where answers[i] != nil {
        #expect(answers[i] == "\(value(words[...i], 5))")
      }
    }
    for (words, answers, _) in try rows("bracket_arithmetic:modulus=7,depth=4", length: 60) {
      for i in words.indices where words[i] == ")" {
        var (open, depth) = (i, 0)
        repeat {
          depth += words[open] == ")" ? 1 : words[open] == "(" ? -1 : 0
          open -= 1
        } while depth > 0
        #expect(answers[i] == "\(value(words[(open + 1)...i], 7))")
      }
    }
  }

  @Test func brackets() throws {
    for (words, answers, _) in try rows("dyck:kinds=3,depth=3", length: 40) {
      var open: [String] = []
      for (word, answer) in zip(words, answers) {
        if let kind = ["(", "[", "{"].firstIndex(of: word) {
          open.append([")", "]", "}"][kind])
        } else {
          #expect(open.popLast() == word)
        }
        #expect(open.count <= 3 && answer == open.last ?? "none")
      }
    }
  }

  @Test func flipFlop() throws {
    for (words, answers, _) in try rows("flip_flop", length: 60) {
      var bit = ""
      for i in words.indices {
        if i > 0, words[i - 1] == "write" { bit = words[i] }
        #expect(answers[i] == (words[i] == "read" ? bit : nil))
      }
    }
  }

  @Test func copies() throws {
    for name in ["copying", "selective_copying:count=5"] {
      for (words, answers, _) in try rows(name, length: 41) {
        let bar = try #require(words.firstIndex(of: "|"))
        let read = words[..<bar].filter { $0 != "." }
        #expect(answers.compactMap { $0 } == read && Array(words[(bar + 1)...]) == read)
        #expect(name != "copying" || read.count == 20)
        #expect(name == "copying" || read.count == 5)
      }
    }
  }

  @Test func recall() throws {
    for (words, answers, _) in try rows("mqar:pairs=6,repeats=2", length: 40) {
      var values: [String: String] = [:]
      for i in 0..<12 { values[words[2 * i]] = words[2 * i + 1] }
      #expect(values.count == 6 && answers.count { $0 != nil } == 6)
      for i in words.indices where answers[i] != nil { #expect(answers[i] == values[words[i]]) }
    }
    for order in 0...1 {
      var commons = 0
      for (words, answers, _) in try rows("set_disjointness:order=\(order)", length: 40) {
        let sets = words.dropLast().split(separator: "|").map(Set.init)
        #expect(sets.count == 2 && sets[order].count == 4)
        let common = sets[0].intersection(sets[1])
        #expect(answers.last == common.first ?? "none" && common.count <= 1)
        commons += common.count
      }
      #expect((10...40).contains(commons))
    }
  }

  @Test func induction() throws {
    for order in 2...3 {
      for (words, answers, _) in try rows("induction:order=\(order),symbols=5", length: 40) {
        for i in words.indices {
          var expected: String?
          if i >= order - 2 {
            let context = words[(i - order + 2)...i]
            for j in stride(from: i - 1, through: order - 2, by: -1)
            where expected == nil && words[(j - order + 2)...j].elementsEqual(context) {
              expected = words[j + 1]
            }
          }
          #expect(answers[i] == expected)
        }
      }
    }
  }

  /// Letters that follow another in one state are among those accepted there.
  @Test func automata() throws {
    for (words, _, row) in try rows("random_automata:word=5", length: 50) {
      for (place, choices) in row.accepted {
        #expect((2...4).contains(choices.count) && Set(choices).count == choices.count)
        #expect(choices.contains(row.tokens[place + 1]) && words[place + 1] != "|")
      }
      // Every word begins in the same state.
      let first = words.indices.filter { words[$0] == "|" }.compactMap { row.accepted[$0] }
      #expect(Set(first).count == 1)
    }
  }

  @Test func hiddenNumbers() throws {
    for name in ["passkey", "needle:needles=3"] {
      for (words, answers, _) in try rows(name, length: 60) {
        let ask = try #require(words.firstIndex(of: "ask"))
        let who = words[ask + 1]
        let place = try #require(words.indices.first { words[$0] == "key" && words[$0 + 1] == who })
        let digits = name == "passkey" ? 5 : 2
        #expect(answers.compactMap { $0 } == Array(words[(place + 2)..<(place + 2 + digits)]))
      }
    }
  }

  @Test func batchesArePure() throws {
    let run = TaskRun(task: "copying", shortest: 5, curriculum: 10)
    let batches = try TaskBatches(run, batch: 4, length: 25, seed: 7)
    let batch = batches.batch(3)
    #expect(batch.tokens == batches.batch(3).tokens && batch.tokens != batches.batch(4).tokens)
    #expect(batch.tokens.count == batch.targets.count && batch.tokens.count % 4 == 0)
    #expect((0..<10).allSatisfy { batches.length(of: $0) == 5 + 2 * ($0 + 1) })
    #expect((10..<200).allSatisfy { batches.length(of: $0) == 25 })
    let mixed = try TaskBatches(
      TaskRun(task: "copying", shortest: 5), batch: 4, length: 25, seed: 7)
    #expect(Set((0..<200).map(mixed.length(of:))) == Set(5...25))
    let other = try TaskBatches(run, batch: 4, length: 25, seed: 8)
    #expect(other.batch(3).tokens != batch.tokens)
    let task = try TaskCatalog.task("copying")
    let train = TaskRows(task, purpose: "train", batch: 0, rows: 8, length: 25, seed: 7)
    let held = TaskRows(task, purpose: "held out 25", batch: 0, rows: 8, length: 25, seed: 7)
    #expect(train.tokens != held.tokens)
    #expect(throws: TaskError.self) { try TaskBatches(run, batch: 4, length: 4, seed: 7) }
  }
}
