import FoundationEssentials
import GyreLayers
import GyreMixers
import GyreModels
import GyreRecurrence
import GyreTensors
import GyreTokenizers
import GyreTraining

/// Whether every mixer learns: a small model of each, trained for a short run of the same length on the
/// built-in text, beside the n-gram models of the same text.
///
/// Width 64, two layers with a gated feed-forward block of 128; 300 steps of 16 rows of 64 bytes, AdamW,
/// 3e-3. What is not below the 2-gram model then is trained anew, four times as long. The first 16 kB of the
/// held-out text are scored as rows of 64 bytes that start from nothing, and as rows of 256, longer than
/// what was trained; the n-gram models read them as one text and were counted on the whole training text.
struct LearningRows: Encodable {
  struct Row: Encodable {
    var name: String
    var parameters: Int
    var steps: Int
    /// In rows as long as those of the training.
    var bitsPerByte: Double
    /// In rows four times as long.
    var longerBitsPerByte: Double
    /// In rows as long as those of the training, below the n-gram model that knows one byte before.
    var isBelow: Bool
    var seconds: Double
  }

  /// Bits a byte of n-gram models of orders 1 to 5.
  var ngram: [Double]
  var rows: [Row] = []

  static let (steps, batch, length, scored, longer) = (300, 16, 64, 16_384, 256)

  /// - Parameter wants: whether a row of that name is asked for.
  init(on device: any Device, wants: (String) -> Bool, progress: (String) -> Void) throws {
    let corpus = Corpus.embedded()
    let path = FileManager.default.temporaryDirectory.path
    let folder = RunFolder(path + "/gyre-learning-\(UInt64.random(in: 0 ... .max))")
    defer { try? FileManager.default.removeItem(atPath: folder.path) }
    try folder.createData(corpus: corpus, tokenizer: ByteTokenizer())
    let shards = try folder.shards()
    let held = shards.validation.tokens(0..<min(LearningRows.scored + 1, shards.validation.count))
    let model = NGramModel(
      shards.train.tokens(0..<shards.train.count), vocabulary: shards.train.vocabulary)
    ngram = model.bits(Array(held.dropFirst())).map { $0 / Double(held.count - 1) }
    for (name, configuration) in LearningRows.models where wants(name) {
      progress(name)
      var row = try measure(name, configuration, held, LearningRows.steps, folder, device)
      if !row.isBelow {
        row = try measure(name, configuration, held, 4 * LearningRows.steps, folder, device)
      }
      rows.append(row)
    }
    if rows.isEmpty { throw Failure("no mixer's name contains that") }
  }

  /// Every mixer with the gated block, and every feed-forward block with minGRU.
  private static var models: [(String, ModelConfiguration)] {
    var c = ModelConfiguration()
    (c.width, c.layers) = (64, 2)
    let mixers = MixerCatalog.mixers.map { type in
      var model = c
      model.pattern = [type.kind]
      model.feedForwardOptions = .object(["hidden": .integer(128)])
      return (type.kind, model)
    }
    let blocks = MixerCatalog.feedForwards.dropFirst().map { type in
      var model = c
      model.feedForward = type.kind
      return ("min_gru + \(type.kind)", model)
    }
    return mixers + blocks
  }

  private func measure(
    _ name: String, _ configuration: ModelConfiguration, _ held: [Int32], _ steps: Int,
    _ folder: RunFolder, _ device: any Device
  ) throws -> Row {
    try configuration.validate()
    var training = TrainingConfiguration()
    (training.steps, training.batch, training.length) = (
      steps, LearningRows.batch, LearningRows.length
    )
    training.data = .packed
    training.precision = ComputePrecision.current
    (training.evaluateEvery, training.checkpointEvery) = (0, 0)
    let model = try LanguageModel(
      configuration, source: RandomParameters(seed: training.seed, device: device), device: device)
    let own = RunFolder("\(folder.path)/\(name) \(steps)")
    try FileManager.default.createDirectory(atPath: own.path, withIntermediateDirectories: true)
    let data = LearningData(text: try TextData(try folder.shards(), training), held: held)
    let trainer = try Trainer(model: model, configuration: training, folder: own, data: data)
    let clock = ContinuousClock()
    let start = clock.now
    try trainer.run()
    let seconds = (clock.now - start).seconds
    guard let bits = trainer.history.last?.validationBitsPerByte else {
      throw Failure("\(name): the run was not scored")
    }
    return Row(
      name: name, parameters: model.parameterCount, steps: steps, bitsPerByte: bits,
      longerBitsPerByte: try data.bits(
        model, row: LearningRows.longer, precision: training.precision),
      isBelow: bits < ngram[1], seconds: seconds)
  }

  func print() {
    var table = Table([
      ("", .left), ("parameters", .right), ("steps", .right), ("bits/byte", .right),
      ("in rows of \(LearningRows.longer)", .right), ("", .left), ("", .right),
    ])
    for (i, bits) in ngram.enumerated() {
      table.add(["\(i + 1)-gram", "", "", Format.fixed(bits, 3), "", "", ""])
    }
    for row in rows {
      table.add([
        row.name, Format.grouped(row.parameters), "\(row.steps)",
        Format.fixed(row.bitsPerByte, 3), Format.fixed(row.longerBitsPerByte, 3),
        row.isBelow ? "below the 2-gram" : "above the 2-gram", Format.time(row.seconds),
      ])
    }
    table.print()
    let below = rows.count { $0.isBelow }
    Terminal.line("\(below) of \(rows.count) below the 2-gram model")
  }
}

/// The text to learn, and the bytes to be scored as rows that start from nothing.
private struct LearningData: TrainingData {
  let text: TextData
  let held: [Int32]
  var batches: any BatchSource { text.batches }
  var vocabulary: Int { text.vocabulary }
  var bytesPerToken: Double { 1 }

  func score(_ model: LanguageModel, precision: ComputePrecision) throws -> HeldOutScore {
    HeldOutScore(bitsPerByte: try bits(model, row: LearningRows.length, precision: precision))
  }

  /// Bits a byte in rows of that many bytes, each from an empty state.
  func bits(_ model: LanguageModel, row: Int, precision: ComputePrecision) throws -> Double {
    let batch = LearningRows.batch
    let count = (held.count - 1) / (row * batch)
    var nats = 0.0
    for part in 0..<count {
      let starts = (0..<batch).map { (part * batch + $0) * row }
      func tensor(_ offset: Int) -> Tensor {
        Tensor(
          starts.flatMap { held[$0 + offset..<$0 + offset + row] }, shape: [batch, row],
          on: model.device)
      }
      let loss = ComputePrecision.$current.withValue(precision) {
        var state = model.makeState(batch: batch)
        let hidden = model.hidden(tensor(0), state: &state)
        return model.crossEntropy(hidden, tensor(1))
      }
      nats += try loss.mean.item()
    }
    return nats / Double(max(count, 1)) / Functions.log(2)
  }
}
