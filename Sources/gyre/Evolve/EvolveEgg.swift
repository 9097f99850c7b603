import GyreCheckpoints
import GyreEvolution
import GyreInference
import GyrePlatform
import GyreRecurrence
import GyreTensors
import GyreTokenizers
import GyreTraining

/// `gyre evolve --model egg`.
struct EvolveEgg {
  let texts: [String]
  let options: EvolveOptions
  let egg: EggOptions
  let device: any Device
  let group: (any WorkerGroup)?
  private var isLeader: Bool { group?.isLeader ?? true }

  func run() throws {
    let folder = RunFolder(
      try EvolutionWorkers.shared(group) { options.out ?? Files.nextRunFolder("egg") })
    let configuration = try EvolutionWorkers.prepared(
      group, { try options.resume ? stored(folder) : fresh(folder) },
      { try EggConfiguration(json: try Files.read(folder.evolution)) })
    let model = EggModel(
      configuration.shape, deviation: configuration.deviation, seed: configuration.seed,
      device: device)
    if !options.resume, isLeader {
      _ = try AtomicFile.write(try model.configurationJSON(), to: folder.configuration)
    }
    let trainer = try EggTrainer(
      model: model, configuration: configuration, folder: folder, group: group,
      onFailure: options.onFailure)
    if isLeader { trainer.onLoss = { Terminal.note($0) } }
    if options.resume {
      for rejected in try trainer.resume() where isLeader {
        Terminal.note("passed over \(rejected)")
      }
    }
    Interrupts.install()
    guard isLeader else {
      try trainer.run()
      return
    }
    if !options.json {
      Terminal.note(
        "\(Format.count(Double(configuration.shape.parameterCount))) weights of 8 bits, "
          + "\(Format.grouped(configuration.population)) members × \(configuration.tokens) bytes, "
          + "\(Devices.detail(of: device)), text: \(folder.source)")
    }
    var display = EvolutionProgress(
      total: configuration.generations, first: trainer.generation, quiet: options.json,
      fitness: "bits/byte", sign: -1)
    try trainer.run(shouldStop: { Interrupts.isRequested }) { m in
      if options.json { try JSONOutput.line(m) }
      display.update(m)
    }
    display.end()
    let sample = try sample(trainer.model)
    try report(trainer, sample)
    if trainer.generation < configuration.generations, !options.json {
      Terminal.note(
        "stopped at generation \(trainer.generation); gyre evolve --resume --out \(folder.path) goes on"
      )
    }
    if options.json { return }
    if let held = trainer.history.last(where: { $0.validationBitsPerByte != nil })?
      .validationBitsPerByte
    {
      Terminal.line("held-out: \(Format.fixed(held, 3)) bits/byte")
    }
    Terminal.line("\n" + sample + "\n")
    Terminal.line("\(folder.path): model.safetensors, metrics.jsonl, report.html")
  }

  private func stored(_ folder: RunFolder) throws -> EggConfiguration {
    guard try EggModel.shape(folder: folder.path) != nil else {
      throw Failure("'\(folder.path)' holds no run of EGG to go on with")
    }
    var configuration: EggConfiguration
    do {
      configuration = try EggConfiguration(json: try Files.read(folder.evolution))
    } catch { throw Failure("\(folder.evolution): \(error)") }
    try change(&configuration)
    _ = try AtomicFile.write(try configuration.json(), to: folder.evolution)
    return configuration
  }

  private func fresh(_ folder: RunFolder) throws -> EggConfiguration {
    if Files.kind(folder.configuration) != nil {
      throw Failure(
        "'\(folder.path)' holds a run already; --resume goes on with it, or name another --out")
    }
    var configuration = EggConfiguration()
    try change(&configuration)
    let corpus = texts.isEmpty ? Corpus.embedded() : try Corpus(paths: texts)
    try folder.createData(corpus: corpus, tokenizer: ByteTokenizer())
    _ = try AtomicFile.write(try configuration.json(), to: folder.evolution)
    return configuration
  }

  private func change(_ c: inout EggConfiguration) throws {
    if let population = options.population {
      c.population = population
      // As many streams as divide the pairs, at most the default.
      c.streams = min(c.streams, max(population / 2, 1))
      while c.streams > 1, population / 2 % c.streams != 0 { c.streams -= 1 }
    }
    if let generations = options.generations { c.generations = generations }
    if let tokens = options.tokens { c.tokens = tokens }
    if let seed = options.seed { c.seed = seed }
    if let every = options.checkpointEvery { c.checkpointEvery = every }
    if let every = options.evalEvery { c.evaluateEvery = every }
    if let reuse = options.noiseReuse { c.noiseReuse = reuse }
    if let width = egg.width { c.width = width }
    if let layers = egg.layers { c.layers = layers }
    if let deviation = egg.deviation { c.deviation = deviation }
    if let streams = egg.streams { c.streams = streams }
    if let shift = egg.sigmaShift { c.sigmaShift = shift }
    if let alpha = egg.alpha { c.alpha = alpha }
    if let alpha = egg.finalAlpha { c.finalAlpha = alpha }
    c.finalAlpha = egg.finalAlpha ?? min(c.finalAlpha, c.alpha)
    if let schedule = egg.alphaSchedule { c.schedule = schedule }
    if let votes = egg.votes { c.votes = votes }
    try c.validate()
  }

  private func sample(_ model: EggModel) throws -> String {
    var reader = EggReader(model)
    var options = GenerationOptions()
    options.maximumTokens = 300
    options.sampling.temperature = 0.8
    options.sampling.seed = 1
    var text = ""
    let tokenizer = ByteTokenizer()
    _ = try reader.generate(after: tokenizer.promptTokens("\n"), tokenizer, options) { piece in
      text += piece
      return true
    }
    return text
  }

  private func report(_ trainer: EggTrainer, _ sample: String) throws {
    let c = trainer.configuration
    let metrics = trainer.history.map { m in
      Metrics(
        step: m.generation, tokens: m.tokens, trainBitsPerByte: -m.meanFitness,
        validationBitsPerByte: m.validationBitsPerByte, learningRate: c.alpha(at: m.generation - 1),
        gradientNorm: 0, tokensPerSecond: Double(c.population * c.tokens) / max(m.seconds, 1e-9))
    }
    var report = Report(
      title: "EGG, evolved: \(trainer.folder.path)", metrics: metrics,
      settings: [
        ("model", "EGG, width \(c.width), \(c.layers) layers, weights and activations of 8 bits"),
        ("weights", Format.grouped(c.shape.parameterCount)), ("text", trainer.folder.source),
        ("population × bytes", "\(c.population) × \(c.tokens), \(c.streams) streams"),
        ("σ shift", "\(c.sigmaShift)"),
        ("α", "\(c.schedule.rawValue), \(c.alpha) to \(c.finalAlpha)"),
        ("gradients", "none"), ("device", Devices.detail(of: device)), ("seed", "\(c.seed)"),
      ], samples: [sample])
    let shards = try trainer.folder.shards()
    if shards.train.count <= 4_000_000 {
      report.baseline = Array(
        try Baseline.bitsPerByte(shards.train, shards.validation).prefix(2))
    }
    try report.write(to: trainer.folder.report)
  }
}

/// The line of an evolution while it runs.
struct EvolutionProgress {
  private var progress: Progress
  private let fitness: String
  private let sign: Double
  private var held: Double?

  init(total: Int, first: Int, quiet: Bool, fitness: String, sign: Double) {
    progress = Progress(total: total, first: first, unit: "generation", quiet: quiet)
    self.fitness = fitness
    self.sign = sign
  }

  mutating func update(_ m: EvolutionMetrics) {
    held = m.heldOut ?? held
    let score = held.map { "held-out \(Format.fixed($0, 3))  " } ?? ""
    func share(_ part: Double) -> String {
      Format.fixed(100 * part / max(m.seconds, 1e-9), 0) + "%"
    }
    let shares = [
      ("forward", m.forward), ("noise", m.noise), ("update", m.update), ("scoring", m.scoring),
    ].filter { $0.1 > 0 }.map { "\($0.0) \(share($0.1))" }.joined(separator: " ")
    progress.update(
      m.generation,
      "\(fitness) \(Format.fixed(sign * m.meanFitness, 3)) best \(Format.fixed(sign * m.bestFitness, 3))  "
        + score + "\(Format.fixed(1 / max(m.seconds, 1e-9), 1)) generations/s  \(shares)")
  }

  func end() { progress.end() }
}

extension RunFolder {
  /// The configuration of an evolution.
  var evolution: String { path + "/evolution.json" }
}
