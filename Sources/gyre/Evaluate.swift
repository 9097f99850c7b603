import ArgumentParser
import FoundationEssentials
import GyreCheckpoints
import GyreEvolution
import GyreInference
import GyreTraining

struct Evaluate: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "eval",
    abstract: "Score a text: bits a byte, perplexity, and n-gram models beside it.",
    discussion: """
      The text is read as one stream with carried state (EGG: up to 64 streams). The n-gram models (orders 1 to 5,
      Witten–Bell) are trained on the run's training text.

        gyre eval runs/tiny-1 book.txt
        gyre eval runs/tiny-1 book.txt --json
      """)

  @Argument(help: "A run folder.") var folder: String
  @Argument(help: "The text to score.") var file: String
  @Flag(help: "One object on standard output.") var json = false
  @OptionGroup var weights: WeightOptions
  @OptionGroup var device: DeviceOptions

  private struct Result: Encodable {
    var file: String
    var evaluation: Evaluation
    var ngram: [Double]

    enum CodingKeys: String, CodingKey {
      case file
      case bitsPerByte = "bits_per_byte"
      case perplexity, tokens, bytes
      case ngram = "ngram_bits_per_byte"
    }
    func encode(to encoder: any Encoder) throws {
      var c = encoder.container(keyedBy: CodingKeys.self)
      try c.encode(file, forKey: .file)
      try c.encode(evaluation.bitsPerByte, forKey: .bitsPerByte)
      try c.encode(evaluation.perplexity, forKey: .perplexity)
      try c.encode(evaluation.tokens, forKey: .tokens)
      try c.encode(evaluation.bytes, forKey: .bytes)
      try c.encode(ngram, forKey: .ngram)
    }
  }

  func run() throws {
    let device = try device.open()
    let tokenizer = try StoredModel.tokenizer(folder: folder)
    let bytes = try Files.read(file)
    guard bytes.count >= 2 else {
      throw Failure("'\(file)' holds \(bytes.count) bytes; at least 2 are needed")
    }
    let path =
      FileManager.default.temporaryDirectory.path
      + "/gyre-eval-\(UInt64.random(in: 0 ... .max)).shard"
    defer { try? FileManager.default.removeItem(atPath: path) }
    try TokenShard.write([bytes], tokenizer: tokenizer, to: path)
    let text = try TokenShard(path: path)
    guard text.count >= 2 else { throw Failure("'\(file)' is a single token") }
    let evaluation: Evaluation
    if let egg = try EggModel.load(folder: folder, device: device) {
      evaluation = try Evaluation(egg, bytes)
    } else {
      evaluation = try Evaluation(
        try StoredModel.load(
          folder: folder, device: device, keepsTypes: weights.keepsTypes), text)
    }
    let run = RunFolder(folder)
    let ngram =
      Files.kind(run.shard("train")) == nil
      ? [] : try Baseline.bitsPerByte(try run.shards().train, text)
    if json {
      try JSONOutput.document(Result(file: file, evaluation: evaluation, ngram: ngram))
      return
    }
    var table = Table([("", .left), ("bits/byte", .right), ("perplexity a token", .right)])
    table.add([
      "model", Format.fixed(evaluation.bitsPerByte, 4), Format.fixed(evaluation.perplexity, 3),
    ])
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
