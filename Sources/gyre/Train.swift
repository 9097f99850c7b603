import ArgumentParser
import GyreCheckpoints
import GyreDistributed
import GyreInference
import GyreLayers
import GyreModels
import GyrePlatform
import GyreRecurrence
import GyreTasks
import GyreTensors
import GyreTokenizers
import GyreTraining

/// What `gyre train` does when it is told nothing: measured to learn most in three minutes on two
/// cores.
enum DemoDefaults {
  static let preset = "tiny"
  static func apply(to c: inout TrainingConfiguration) {
    c.steps = 1240
    c.batch = 16
    c.length = 128
    c.optimizer = .muon
    c.learningRate = 5e-3
    c.schedule = .linear
    c.warmupSteps = 40
    c.finalFraction = 0.02
    c.beta2 = 0.99
    c.evaluateEvery = 600
    c.checkpointEvery = 300
  }
}

struct Train: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Train a model on text or on a task.",
    discussion: """
      Without arguments: the preset "tiny" on the built-in text, about three minutes on two cores.

        gyre train
        gyre train book.txt --model mingru-10m --steps 5000 --dtype bf16
        gyre train book.txt --tokenizer bpe:4096
        gyre train corpus/ notes.jsonl --model config.json --batch 8 --length 512 --out runs/mine
        gyre train --resume --out runs/mine --steps 20000
        gyre train corpus/ --model rwkv7-350m --device cuda:0 --devices 2
        gyre train --model awd-lstm-10m --optimizer ntasgd --eval-every 100
        gyre train --task lorenz63 --form almost_linear
        gyre train --task parity --model delta_net-negative
        gyre train --task dyck:kinds=3,depth=6 --model lstm --length 64 --curriculum 500

      Texts are files, folders (walked in order) or JSON lines with a field "text". The run folder
      holds config.json, training.json, the tokenizer, model.safetensors, metrics.jsonl and
      report.html. Ctrl-C saves a checkpoint and ends; --resume goes on bit for bit.
      On NVIDIA cards steps are recorded and queued ahead: what is reported is up to eight steps old.
      """)

  @Argument(help: "Text files, folders, .jsonl files; none: the built-in text.")
  var texts: [String] = []
  @Option(
    help: ArgumentHelp(
      "A preset or a config.json.", discussion: Presets.names.joined(separator: ", ")))
  var model: String?
  @Option(
    help: """
      A tokenizer.json, an RWKV vocabulary, a folder with one, or bpe:N: N byte-level pieces learnt from \
      the text; none: bytes.
      """)
  var tokenizer: String?
  @Option(
    help: ArgumentHelp(
      "A task that is not text; gyre tasks lists them, lorenz63 beside them.",
      discussion: "With a task --model is one of its tables' models too: lstm, recall/gla-64."))
  var task: String?
  @Option(
    help:
      "With --task: tokens of the shortest rows; batches have any length from there to --length.")
  var shortest: Int?
  @Option(help: "With --task: instead, batches over which rows grow from the shortest to --length.")
  var curriculum: Int?
  @Option(help: "With --task: the network, shallow, almost_linear or standard.")
  var form: PiecewiseLinear.Form?
  @Option(help: "Steps to train.") var steps: Int?
  @Option(help: "Tokens to train on, in place of --steps.") var tokens: Int?
  @Option(help: "Rows of a batch.") var batch: Int?
  @Option(help: "Tokens of a row.") var length: Int?
  @Option(help: "Batches a step.") var accumulate: Int?
  @Option(help: "Highest learning rate.") var lr: Double?
  @Option(help: "constant, linear, cosine or wsd.") var schedule: Schedule.Kind?
  @Option(help: "adamw, sgd, muon or ntasgd.") var optimizer: TrainingConfiguration.OptimizerKind?
  @Option(
    help: """
      stream (carried state) or packed (shuffled windows, the default where attention would carry all it \
      has read).
      """)
  var data: TrainingConfiguration.Data?
  @Option(help: "Precision of matrix products: f32 or bf16. Without texts: the faster one.")
  var dtype: Precision?
  @Option(help: "Seed of parameters and data order.") var seed: UInt64?
  @Option(help: "The run folder; by default the next free runs/NAME-N.") var out: String?
  @Option(help: "gyre, or hf: the weights also in the public layout, in OUT/hf.")
  var layout = TargetLayout.gyre
  @Option(help: "Steps between checkpoints.") var checkpointEvery: Int?
  @Option(help: "Steps between evaluations.") var evalEvery: Int?
  @Flag(help: "Recompute activations in the backward pass: less memory, a third more time.")
  var rematerialize = false
  @Flag(help: "Go on from the last checkpoint of --out.") var resume = false
  @Flag(help: "One JSON object a step on standard output.") var json = false
  @OptionGroup var device: DeviceOptions
  @OptionGroup var parallel: ParallelOptions

  func validate() throws {
    if task != nil, !texts.isEmpty || tokenizer != nil || resume {
      throw ValidationError("--task takes neither texts, --tokenizer nor --resume")
    }
    if task == DynamicsRun.name, model != nil {
      throw ValidationError("--task \(DynamicsRun.name) takes no --model; see --form")
    }
    if form != nil, task != DynamicsRun.name {
      throw ValidationError("--form needs --task \(DynamicsRun.name)")
    }
    if shortest != nil || curriculum != nil, task == nil || task == DynamicsRun.name {
      throw ValidationError("--shortest and --curriculum need --task")
    }
    if parallel.devices != nil, task != nil {
      throw ValidationError("--task trains on one device; leave out --devices")
    }
    if steps != nil, tokens != nil {
      throw ValidationError("--steps and --tokens exclude each other")
    }
    if resume, out == nil {
      throw ValidationError("--resume needs --out, the run folder to go on with")
    }
    if resume, !texts.isEmpty || model != nil || tokenizer != nil {
      throw ValidationError("--resume takes texts, model and tokenizer from the run folder")
    }
  }

  func run() throws {
    if task == DynamicsRun.name { return try runDynamics(try device.open()) }
    if task != nil || resume && TaskFolder(RunFolder(out ?? "")).exists {
      return try runTask(task, try device.open())
    }
    if try parallel.launch() { return }
    let (device, ranks) = try parallel.open(device)
    let isLead = ranks?.parallel.isLead ?? true
    let (folder, configuration, training) = try open(device, ranks)
    if layout == .hf { _ = try PublicLayout(of: configuration) }
    var model = try LanguageModel(
      configuration, source: RandomParameters(seed: training.seed, device: device), device: device)
    model.rematerializes = training.rematerializes
    let trainer = try Trainer(
      model: model, configuration: training, folder: folder, parallel: ranks?.parallel)
    if resume {
      for rejected in try trainer.resume() where isLead { Terminal.note("passed over \(rejected)") }
    }
    Interrupts.install()
    // Who ends early looks lost to the others: all wait until the first has written everything.
    if let ranks, !isLead {
      try trainer.run(shouldStop: { Interrupts.isRequested })
      return try ranks.group.barrier()
    }
    note(
      "\(Format.count(Double(model.parameterCount))) parameters, \(configuration.pattern.joined(separator: " ")) × \(configuration.layers), "
        + "\(training.precision == .bfloat16 ? "bf16" : "f32") on \(ranks.map { "\($0.group.count) × " } ?? "")\(Devices.detail(of: device)), text: \(folder.source)"
    )
    var progress = Progress(total: training.steps, first: trainer.step, quiet: json)
    var held: Double?
    try trainer.run(shouldStop: { Interrupts.isRequested }) { m in
      held = m.validationBitsPerByte ?? held
      if json { try JSONOutput.line(m) }
      let score = held.map { "held-out \(Format.fixed($0, 3))  " } ?? ""
      progress.update(
        m.step,
        "\(Format.fixed(m.trainBitsPerByte, 3)) bits/byte  \(score)\(Format.count(m.tokensPerSecond)) tokens/s"
          + (m.newton.map { "  \(Train.summary($0))" } ?? "")
          + (m.skipped.map { "  skipped: \($0)" } ?? ""))
    }
    progress.end()
    if layout == .hf {
      try ModelFolder(path: folder.path).convert(to: folder.path + "/hf", layout: .hf)
    }
    let sample = try sample(trainer.model, folder)
    try report(trainer, folder, sample, device)
    if trainer.step < training.steps {
      note("stopped at step \(trainer.step); gyre train --resume --out \(folder.path) goes on")
    }
    if !json {
      if let held { Terminal.line("held-out: \(Format.fixed(held, 3)) bits/byte") }
      Terminal.line("\n" + sample + "\n")
      Terminal.line("\(folder.path): model.safetensors, metrics.jsonl, report.html")
    }
    try ranks?.group.barrier()
  }

  private func runDynamics(_ device: any Device) throws {
    var c = Reconstruction.Configuration()
    if let form { c.form = form }
    if c.form != .shallow { c.units = 20 }
    if let steps { c.steps = steps }
    if let batch { c.batch = batch }
    if let length { c.length = length }
    if let lr { c.learningRate = lr }
    if let seed { c.seed = seed }
    try DynamicsRun.run(
      c, device: device, out: out ?? Files.nextRunFolder(DynamicsRun.name), json: json)
  }

  /// Iterations of the layers that solve for all tokens at once, and what ran token by token.
  private static func summary(_ reports: [NewtonReport]) -> String {
    let most = reports.map(\.iterations).max() ?? 0
    let part = reports.map(\.fallback).max() ?? 0
    return "newton \(Format.fixed(most, 0)) iterations"
      + (part > 0 ? ", \(Format.fixed(part * 100, 1)) % by token" : "")
  }

  func note(_ text: String) { if !json { Terminal.note(text) } }

  private var runName: String {
    let name = model ?? DemoDefaults.preset
    return name.hasSuffix(".json") ? "run" : name
  }

  /// The run folder and what it holds. Of several ranks the first makes it and the others read it.
  private func open(
    _ device: any Device, _ ranks: Ranks?
  ) throws -> (RunFolder, ModelConfiguration, TrainingConfiguration) {
    func open(_ path: String) throws -> (RunFolder, ModelConfiguration, TrainingConfiguration) {
      let folder = RunFolder(path)
      let (configuration, training) = try resume ? stored(folder) : fresh(folder, device)
      return (folder, configuration, training)
    }
    guard let ranks else { return try open(out ?? Files.nextRunFolder(runName)) }
    guard ranks.parallel.isLead else {
      let folder = RunFolder(String(decoding: try ranks.group.broadcast([]), as: UTF8.self))
      return (folder, try folder.modelConfiguration(), try folder.trainingConfiguration())
    }
    let found = try open(out ?? Files.nextRunFolder(runName))
    _ = try ranks.group.broadcast(Array(found.0.path.utf8))
    return found
  }

  /// The configurations of a run folder, with what the command line changes.
  private func stored(_ folder: RunFolder) throws -> (ModelConfiguration, TrainingConfiguration) {
    var training = try folder.trainingConfiguration()
    try change(&training)
    try AtomicFile.write(try training.json(), to: folder.training)
    return (try folder.modelConfiguration(), training)
  }

  /// New configurations, written to a new run folder with the texts.
  private func fresh(
    _ folder: RunFolder, _ device: any Device
  ) throws -> (ModelConfiguration, TrainingConfiguration) {
    if Files.kind(folder.configuration) != nil {
      throw Failure(
        "'\(folder.path)' holds a run already; --resume goes on with it, or name another --out")
    }
    let corpus = texts.isEmpty ? Corpus.embedded() : try Corpus(paths: texts)
    let encoder = try TokenizerChoice.make(tokenizer, corpus: corpus)
    var configuration: ModelConfiguration
    if let model, model.hasSuffix(".json") {
      do throws(ConfigurationError) {
        configuration = try ModelConfiguration(json: try read(model))
      } catch { throw Failure("\(model): \(error)") }
    } else {
      configuration = try Presets.configuration(
        model ?? DemoDefaults.preset, vocabulary: encoder.vocabularySize)
    }
    var training = TrainingConfiguration()
    if model == nil || model == DemoDefaults.preset { DemoDefaults.apply(to: &training) }
    if optimizer == .ntasgd { training.setAveraging() }
    if dtype == nil, texts.isEmpty, Devices.hasFastBFloat16(device) {
      training.precision = .bfloat16
    }
    // Whoever keeps everything it reads would take longer at every step.
    if try LanguageModel(outline: configuration).hasUnboundedState { training.data = .packed }
    try change(&training)
    try folder.create(
      corpus: corpus, tokenizer: encoder, model: configuration, training: training)
    return (configuration, training)
  }

  private func read(_ path: String) throws(ConfigurationError) -> [UInt8] {
    do { return try Files.read(path) } catch { throw ConfigurationError("", "\(error)") }
  }

  func change(_ c: inout TrainingConfiguration) throws {
    if let batch { c.batch = batch }
    if let length { c.length = length }
    if let accumulate { c.accumulation = accumulate }
    if let lr { c.learningRate = lr }
    if let schedule { c.schedule = schedule }
    if let optimizer { c.optimizer = optimizer }
    if let data { c.data = data }
    if let dtype { c.precision = dtype.compute }
    if let seed { c.seed = seed }
    if let checkpointEvery { c.checkpointEvery = checkpointEvery }
    if let evalEvery { c.evaluateEvery = evalEvery }
    if rematerialize { c.rematerializes = true }
    try c.validate()
    if let steps { c.steps = steps }
    if let tokens {
      let each = c.batch * c.length * c.accumulation
      c.steps = max(1, (tokens + each - 1) / each)
    }
    try c.validate()
  }

  private func sample(_ model: LanguageModel, _ folder: RunFolder) throws -> String {
    let generator = try Generator(
      model: model, tokenizer: try StoredModel.tokenizer(folder: folder.path))
    var options = GenerationOptions()
    options.maximumTokens = 300
    options.sampling.temperature = 0.8
    options.sampling.seed = 1
    var text = ""
    try generator.generate(after: generator.tokens(prompt: "\n"), options) { piece in
      text += piece
      return true
    }
    return text
  }

  private func report(
    _ trainer: Trainer, _ folder: RunFolder, _ sample: String, _ device: any Device
  ) throws {
    let (c, t) = (trainer.model.configuration, trainer.configuration)
    var report = Report(
      title: "Gyre run \(folder.path)", metrics: trainer.history,
      settings: [
        ("model", "\(c.pattern.joined(separator: ", ")), width \(c.width), \(c.layers) layers"),
        ("parameters", Format.grouped(trainer.model.parameterCount)), ("text", folder.source),
        ("batch × length", "\(t.batch) × \(t.length)"),
        (
          "optimiser",
          "\(t.optimizer.rawValue), \(t.schedule.rawValue), learning rate \(t.learningRate)"
        ),
        ("precision", t.precision.rawValue), ("device", Devices.detail(of: device)),
        ("seed", "\(t.seed)"),
      ], samples: [sample])
    let shards = try folder.shards()
    if shards.train.count <= 4_000_000 {
      report.baseline = try Baseline.bitsPerByte(shards.train, shards.validation)
    }
    try report.write(to: folder.report)
  }
}

extension Schedule.Kind: ExpressibleByArgument {}
extension TrainingConfiguration.OptimizerKind: ExpressibleByArgument {}
extension TrainingConfiguration.Data: ExpressibleByArgument {}

/// The n-gram models that a run is compared with.
enum Baseline {
  /// Bits a byte of orders 1 to 5, trained on one shard and scored on another.
  static func bitsPerByte(_ train: TokenShard, _ text: TokenShard) throws -> [Double] {
    let model = NGramModel(train.tokens(0..<train.count), vocabulary: train.vocabulary)
    return model.bits(text.tokens(0..<text.count)).map { $0 / Double(max(text.byteCount, 1)) }
  }
}

extension PiecewiseLinear.Form: ExpressibleByArgument {}
