import ArgumentParser
import GyreCheckpoints
import GyrePlatform
import GyreTasks

struct Tasks: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "List the tasks of gyre train --task, or measure a table of tasks by models.",
    discussion: """
      A task makes its rows itself, from a seed. Words that an answer is due after are written
      word→answer. Options follow the name: dyck:kinds=3,depth=6.

        gyre tasks
        gyre tasks mqar
        gyre train --task parity --model delta_net-negative
        gyre eval runs/parity-1 --task parity
        gyre tasks --table state-tracking --out tables
        gyre tasks --table recall --only "MQAR 8" --out tables

      A table trains every model on every task and writes NAME.json, NAME.md and NAME.svg beside one
      file a cell; cells that are there already are not measured again.
      """)

  @Argument(help: "A task to explain, with options or without.") var task: String?
  @Option(
    help: ArgumentHelp(
      "Measure a table: \(Study.all.map(\.name).joined(separator: ", ")).", valueName: "name"))
  var table: String?
  @Option(help: "With --table: where its files go.") var out: String?
  @Option(help: "With --table: only cells whose task and model, \"parity lstm\", contain this.")
  var only = ""
  @Option(help: "With --table: seeds a cell; the best counts.") var seeds = 1
  @Option(help: "With --table: cells at a time, one thread each (default: all cores).")
  var jobs: Int?
  @Option(help: "Tokens of the example rows.") var length: Int?
  @Option(help: "Seed of the example rows, first seed of a table.") var seed: UInt64 = 0
  @Flag(help: "One object on standard output.") var json = false
  @OptionGroup var device: DeviceOptions

  func validate() throws {
    if table != nil, task != nil { throw ValidationError("--table goes without a task") }
    if table != nil, out == nil { throw ValidationError("--table needs --out, a folder") }
    if table == nil, out != nil || !only.isEmpty { throw ValidationError("--out needs --table") }
    if !(1...1000).contains(seeds) { throw ValidationError("--seeds must be in 1...1000") }
    if !(1...4096).contains(jobs ?? 1) { throw ValidationError("--jobs must be in 1...4096") }
    if !(1...4096).contains(length ?? 1) { throw ValidationError("--length must be in 1...4096") }
  }

  func run() async throws {
    if let table, let out { return try await measure(try Study.named(table), out) }
    if let task { return try explain(task) }
    let lines = try TaskCatalog.entries.map { try Line($0, length: length, seed: seed) }
    if json { return try JSONOutput.document(lines) }
    for line in lines {
      Terminal.line(Terminal.styled(line.name, .bold) + "  " + line.summary)
      Terminal.line("    " + Terminal.styled(line.example, .dim))
    }
  }

  private struct Line: Encodable {
    var name, summary: String
    var chance: Double
    var vocabulary: Int
    var options: [String: Int]
    var example: String

    init(_ entry: TaskEntry, length: Int?, seed: UInt64) throws {
      let task = try TaskCatalog.task(entry.name)
      (name, summary) = (entry.name, entry.summary)
      (chance, vocabulary) = (task.chance, task.vocabulary.count)
      options = Dictionary(uniqueKeysWithValues: entry.options.map { ($0.name, $0.initial) })
      var random = TaskRandom(seed: seed, purpose: "example", batch: 0, row: 0)
      let row = task.example(length: max(length ?? 12, task.shortest), &random)
      example = Tasks.text(row, task)
    }
  }

  /// Words with the answers that are due after them.
  private static func text(_ row: TaskExample, _ task: any SequenceTask) -> String {
    zip(row.tokens, row.answers).map { token, answer in
      task.vocabulary[Int(token)] + (answer < 0 ? "" : "→" + task.vocabulary[Int(answer)])
    }.joined(separator: " ")
  }

  private func explain(_ description: String) throws {
    let (entry, values) = try TaskCatalog.parse(description)
    let task = try entry.make(values)
    Terminal.line(Terminal.styled(entry.name, .bold) + "  " + entry.summary)
    Terminal.line(
      "\(task.vocabulary.count) words; guessing is right \(Format.fixed(100 * task.chance, 1)) % of "
        + "the time; rows of \(task.shortest) tokens or more")
    if !entry.options.isEmpty {
      Terminal.line()
      var table = Table([("option", .left), ("value", .right), ("range", .left), ("", .left)])
      for o in entry.options {
        table.add([
          o.name, "\(values[o.name])", "\(o.range.lowerBound)…\(o.range.upperBound)", o.meaning,
        ])
      }
      table.print()
    }
    Terminal.line()
    for i in 0..<3 {
      var random = TaskRandom(seed: seed, purpose: "example", batch: 0, row: i)
      let row = task.example(length: max(length ?? 16, task.shortest), &random)
      Terminal.line("  " + Tasks.text(row, task))
    }
  }

  private func measure(_ study: Study, _ out: String) async throws {
    let count = jobs ?? device.threads ?? Devices.threadCount
    Devices.threadCount = 1
    let folder = StudyFolder(study, path: out)
    try Files.makeFolder("\(out)/\(study.name)")
    let seeds = (0..<UInt64(self.seeds)).map { seed &+ $0 }
    let cells = study.cells(only: only)
    if cells.isEmpty { throw Failure("no cell's task and model contain '\(only)'") }
    let wanted = cells.flatMap { cell in seeds.map { (cell.task, cell.model, $0) } }
    let open = wanted.filter { folder.stored($0.0, $0.1, seed: $0.2) == nil }
    Interrupts.install()
    var progress = Progress(total: open.count, unit: "cell", quiet: json)
    let name = device.device
    try await withThrowingTaskGroup(of: StudyCell?.self) { group in
      var (next, done) = (0, 0)
      func start() {
        guard next < open.count, !Interrupts.isRequested else { return }
        let (task, model, seed) = open[next]
        next += 1
        group.addTask {
          try folder.measure(
            task, model, seed: seed, on: try Devices.open(name),
            shouldStop: { Interrupts.isRequested })
        }
      }
      for _ in 0..<count { start() }
      while let finished = try await group.next() {
        done += 1
        if let cell = finished {
          progress.update(
            done,
            "\(cell.task), \(cell.model): \(Format.fixed(100 * (cell.curve.scores.first?.accuracy ?? 0), 1)) %, \(Format.fixed(cell.seconds, 0)) s "
          )
        }
        start()
      }
    }
    progress.end()
    // What earlier calls measured of the study belongs to its table too.
    let measured = study.cells(only: "").flatMap { cell in
      seeds.compactMap { folder.stored(cell.task, cell.model, seed: $0) }
    }
    let table = StudyTable(study, measured)
    try table.write(to: out)
    if json { try JSONOutput.document(measured) } else { Terminal.write(table.markdown()) }
    Terminal.note("\(out)/\(study.name).json, .md, .svg")
  }
}
