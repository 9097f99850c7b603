import ArgumentParser
import FoundationEssentials
import GyreCheckpoints
import GyreEvolution
import GyreInference
import GyreTasks
import GyreTensors
import GyreTraining

struct Evaluate: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "eval",
    abstract: "Score a text beside n-gram models, or a task over lengths.",
    discussion: """
      The text is read as one stream with carried state (EGG: up to 64 streams). The n-gram models (orders 1 to 5,
      Witten–Bell) are trained on the run's training text.

        gyre eval runs/tiny-1 book.txt
        gyre eval runs/tiny-1 book.txt --json
        gyre eval runs/tiny-1 book.txt --cache 2000 --theta 0.3 --lambda 0.1

      With --cache the model is also mixed with the continuous cache pointer: (1 - lambda) of its own
      probability and lambda of what followed the most similar of the last N hidden states.

      A run of gyre train --task is asked new rows, at its length and up to 16 times that; lengths.json
      and lengths.svg in the folder hold the result.

        gyre eval runs/parity-1
        gyre eval runs/parity-1 --task parity:last=1 --lengths 40,1000,10000
      """)

  @Argument(help: "A run folder.") var folder: String
  @Argument(help: "The text to score.") var file: String?
  @Option(
    help: """
      Tokens after which a model that attends to everything begins anew (default: as many as its run's rows \
      have, else \(Evaluation.usualContext)).
      """)
  var context: Int?
  @Option(help: "Hidden states that the cache pointer remembers.") var cache: Int?
  @Option(help: "With --cache: how much similar states count for more.") var theta = 0.3
  @Option(help: "With --cache: the pointer's part of the probability.") var lambda = 0.1
  @Option(help: "The task to ask (default: the run's), with the words of the run's.")
  var task: String?
  @Option(help: "With a task: tokens of the rows, such as 40,80,640.") var lengths: String?
  @Option(help: "With a task: rows at each length.") var rows = 128
  @Flag(help: "One object on standard output.") var json = false
  @OptionGroup var weights: WeightOptions
  @OptionGroup var compatibility: CompatibilityOptions
  @OptionGroup var device: DeviceOptions

  private struct Result: Encodable {
    var file: String
    var evaluation: Evaluation
    var ngram: [Double]
    var cached: Evaluation?

    enum CodingKeys: String, CodingKey {
      case file
      case bitsPerByte = "bits_per_byte"
      case perplexity, tokens, bytes
      case ngram = "ngram_bits_per_byte"
      case cached = "cache"
    }
    func encode(to encoder: any Encoder) throws {
      var c = encoder.container(keyedBy: CodingKeys.self)
      try c.encode(file, forKey: .file)
      try c.encode(evaluation.bitsPerByte, forKey: .bitsPerByte)
      try c.encode(evaluation.perplexity, forKey: .perplexity)
      try c.encode(evaluation.tokens, forKey: .tokens)
      try c.encode(evaluation.bytes, forKey: .bytes)
      try c.encode(ngram, forKey: .ngram)
      try c.encodeIfPresent(cached, forKey: .cached)
    }
  }

  func validate() throws {
    if file != nil, task != nil || lengths != nil {
      throw ValidationError("--task and --lengths go without a text")
    }
    if let context, context < 1 { throw ValidationError("--context must be at least 1") }
    if !(1...(1 << 20)).contains(rows) { throw ValidationError("--rows must be in 1...2^20") }
    _ = try lengthList()
  }

  /// Tokens of a row that a run was trained on; nil where the folder is not a run.
  private static func rowLength(_ folder: String) throws -> Int? {
    let run = RunFolder(folder)
    return Files.kind(run.training) == nil ? nil : try run.trainingConfiguration().length
  }

  private func lengthList() throws -> [Int]? {
    try lengths.map { list in
      try list.split(separator: ",").map {
        guard let length = Int($0), length > 0 else {
          throw ValidationError("--lengths must be positive numbers with commas between them")
        }
        return length
      }
    }
  }

  /// Asks the model of a folder a task.
  private func ask(_ device: any Device) throws {
    let run = RunFolder(folder)
    guard TaskFolder(run).exists else {
      throw Failure("'\(folder)' is no run of a task; name a text to score")
    }
    let trained = try TaskFolder(run).run()
    let asked = task ?? trained.task
    let words = try TaskCatalog.task(asked).vocabulary
    guard words == (try TaskCatalog.task(trained.task).vocabulary) else {
      throw Failure("--task \(asked) has other words than \(trained.task), the run's")
    }
    let curve = try TaskCurve.measure(
      try StoredModel.load(folder: folder, device: device), run, task: asked,
      lengths: try lengthList(), rows: rows, seed: try run.trainingConfiguration().seed)
    if json { return try JSONOutput.document(curve) }
    Terminal.line(curve.task)
    TaskCurve.table(curve).print()
    Terminal.line("\(folder)/lengths.json, lengths.svg")
  }

  func run() throws {
    let device = try device.open()
    guard let file else { return try ask(device) }
    let tokenizer = try StoredModel.tokenizer(folder: folder)
    let source = try CorpusText(file: file)
    guard source.byteCount >= 2 else {
      throw Failure("'\(file)' holds \(source.byteCount) bytes; at least 2 are needed")
    }
    let path =
      FileManager.default.temporaryDirectory.path
      + "/gyre-eval-\(UInt64.random(in: 0 ... .max)).shard"
    defer { try? FileManager.default.removeItem(atPath: path) }
    try TokenShard.write([source], tokenizer: tokenizer, to: path)
    let text = try TokenShard(path: path)
    guard text.count >= 2 else { throw Failure("'\(file)' is a single token") }
    let pointer = try cache.map { try NeuralCache(size: $0, theta: theta, lambda: lambda) }
    let evaluation: Evaluation
    var cached: Evaluation?
    if let egg = try EggModel.load(folder: folder, device: device) {
      if pointer != nil { throw Failure("--cache needs hidden states; EGG models have none of it") }
      evaluation = try Evaluation(egg, try source.bytes())
    } else {
      let (matrices, precision) = weights.choice(on: device)
      let model = try StoredModel.load(
        folder: folder, device: device, matrices: matrices,
        compatibility: compatibility.faults)
      let context = try context ?? Self.rowLength(folder) ?? Evaluation.usualContext
      evaluation = try Evaluation(model, text, precision: precision, context: context)
      cached = try pointer.map {
        try Evaluation(
          model, text, length: 256, precision: precision, cache: $0, context: context)
      }
    }
    let run = RunFolder(folder)
    let ngram =
      Files.kind(run.shard("train")) == nil
      ? [] : try Baseline.bitsPerByte(try run.shards().train, text)
    if json {
      try JSONOutput.document(
        Result(file: file, evaluation: evaluation, ngram: ngram, cached: cached))
      return
    }
    var table = Table([("", .left), ("bits/byte", .right), ("perplexity a token", .right)])
    table.add([
      "model", Format.fixed(evaluation.bitsPerByte, 4), Format.fixed(evaluation.perplexity, 3),
    ])
    if let cached {
      table.add([
        "model with cache", Format.fixed(cached.bitsPerByte, 4), Format.fixed(cached.perplexity, 3),
      ])
    }
    for (i, bits) in ngram.enumerated() { table.add(["\(i + 1)-gram", Format.fixed(bits, 4), ""]) }
    table.print()
    Terminal.line(
      "\(Format.grouped(evaluation.tokens)) tokens, \(Format.grouped(evaluation.bytes)) bytes")
  }
}

extension Evaluation {
  fileprivate init(_ model: EggModel, _ bytes: [UInt8]) throws {
    let (bits, scored) = try model.score(bytes)
    self.init(bits: bits, tokens: scored, bytes: scored)
  }
}
