import FoundationEssentials
import GyreCheckpoints
import GyreEvolution
import GyreInference
import GyreLayers
import GyreModels
import GyrePlatform
import GyreTensors
import GyreTokenizers
import GyreTraining

/// `gyre evolve` of float models and policies.
struct EvolveFloat {
  let texts: [String]
  let model: String?
  let environment: String?
  let options: EvolveOptions
  let float: FloatOptions
  let device: any Device
  let group: (any WorkerGroup)?
  private var isLeader: Bool { group?.isLeader ?? true }

  /// What `policy.json` of a run folder holds.
  private struct PolicyFile: Codable {
    var environment: String
    var kind: String
    var width: Int
  }

  func run() throws {
    let folder = RunFolder(
      try EvolutionWorkers.shared(group) { options.out ?? Files.nextRunFolder(runName) })
    let configuration = try EvolutionWorkers.prepared(
      group, { try options.resume ? stored(folder) : fresh(folder) },
      { try EvolutionConfiguration(json: try Files.read(folder.evolution)) })
    let task = try task(folder, configuration)
    let trainer = EvolutionTrainer(
      task: task, configuration: configuration, folder: folder, device: device, group: group,
      onFailure: options.onFailure, update: options.update)
    if isLeader { trainer.onSkip = { Terminal.note($0) } }
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
    let backprop = try comparison(folder, configuration)
    let count = task.parameters.reduce(0) { $0 + $1.shape.elementCount }
    if !options.json {
      Terminal.note(
        "\(Format.count(Double(count))) parameters, \(Format.grouped(configuration.population)) members of "
          + (configuration.rank == 0 ? "full rank" : "rank \(configuration.rank)")
          + ", reward: \(configuration.reward), \(Devices.detail(of: device))")
    }
    let isLoss = configuration.reward == LanguageTask.Reward.loss.rawValue
    var display = EvolutionProgress(
      total: configuration.generations, first: trainer.generation, quiet: options.json,
      fitness: isLoss ? "bits/byte" : "fitness", sign: isLoss ? -1 : 1)
    try trainer.run(shouldStop: { Interrupts.isRequested }) { m in
      if options.json { try JSONOutput.line(m) }
      display.update(m)
    }
    display.end()
    let gradients = try backprop.map { try compare($0, through: trainer.generation) }
    try report(trainer, isLoss ? -1 : 1, gradients)
    if options.json { return }
    if trainer.generation < configuration.generations {
      Terminal.note(
        "stopped at generation \(trainer.generation); gyre evolve --resume --out \(folder.path) goes on"
      )
    }
    if let last = trainer.history.last(where: { $0.heldOut != nil })?.heldOut {
      Terminal.line("held-out: \(Format.fixed(last, 3))" + (task.isBitsPerByte ? " bits/byte" : ""))
    }
    if let last = gradients?.last(where: { $0.heldOut != nil })?.heldOut {
      Terminal.line("held-out, trained with gradients: \(Format.fixed(last, 3)) bits/byte")
    }
    Terminal.line("\(folder.path): model.safetensors, metrics.jsonl, report.html")
  }

  /// What --compare backprop trains: made before the evolution, from the same start.
  private func comparison(
    _ folder: RunFolder, _ configuration: EvolutionConfiguration
  ) throws -> BackpropComparison? {
    guard float.compare != nil else { return nil }
    guard configuration.reward == LanguageTask.Reward.loss.rawValue, environment == nil else {
      throw Failure("--compare backprop needs a reward with gradients: --reward loss")
    }
    if options.resume { throw Failure("--compare backprop needs the start of a run, not --resume") }
    let model = try languageModel(folder, configuration)
    let task = try LanguageTask(
      model: model, reward: .loss, folder: folder, configuration: configuration)
    return BackpropComparison(model: model, task: task, configuration: configuration)
  }

  private func compare(
    _ comparison: BackpropComparison, through generations: Int
  ) throws -> [EvolutionMetrics] {
    var history: [EvolutionMetrics] = []
    try comparison.run(generations: generations, learningRate: float.compareLr) { m in
      history.append(m)
      return !Interrupts.isRequested
    }
    return history
  }

  private var runName: String {
    if let environment { return environment }
    let name = (model ?? "run").split(separator: "/").last.map(String.init) ?? "run"
    return "evolved-" + (name.hasSuffix(".json") ? "run" : name)
  }

  private func stored(_ folder: RunFolder) throws -> EvolutionConfiguration {
    var configuration: EvolutionConfiguration
    do {
      configuration = try EvolutionConfiguration(json: try Files.read(folder.evolution))
    } catch { throw Failure("\(folder.evolution): \(error)") }
    try change(&configuration)
    _ = try AtomicFile.write(try configuration.json(), to: folder.evolution)
    return configuration
  }

  private func fresh(_ folder: RunFolder) throws -> EvolutionConfiguration {
    if Files.kind(folder.evolution) != nil || Files.kind(folder.configuration) != nil {
      throw Failure(
        "'\(folder.path)' holds a run already; --resume goes on with it, or name another --out")
    }
    var c = EvolutionConfiguration()
    if let environment {
      c.reward = environment
      (c.population, c.generations, c.sigma, c.learningRate) = (256, 200, 0.1, 1)
      (c.shaping, c.rows, c.evaluateEvery, c.chunkRows) = (.centeredRank, 4, 10, 4096)
      c.optimizer = .adamw
      c.learningRate = 0.03
      switch environment {
      case Pendulum.name:
        (c.generations, c.sigmaDecay, c.learningRateDecay) = (240, 0.997, 0.995)
      case TMaze.name:
        // Both signs for every member; scores as they are, for most are exactly equal.
        (c.population, c.rows, c.sigma, c.shaping) = (512, 2, 0.2, .zScore)
        // AdamW moves as far on the plateau, where few members differ, as on the slope.
        (c.optimizer, c.learningRate) = (.sgd, 0.3)
        c.generations = 150
      default: break
      }
    }
    try change(&c)
    if let environment {
      try FileManager.default.createDirectory(
        atPath: folder.path, withIntermediateDirectories: true)
      let file = PolicyFile(
        environment: environment, kind: float.policy ?? "gru", width: float.policyWidth ?? 32)
      let encoder = JSONEncoder()
      encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
      _ = try AtomicFile.write(
        String(decoding: try encoder.encode(file), as: UTF8.self) + "\n",
        to: policyPath(folder))
    } else {
      try createModel(folder)
    }
    _ = try AtomicFile.write(try c.json(), to: folder.evolution)
    return c
  }

  private func policyPath(_ folder: RunFolder) -> String { folder.path + "/policy.json" }

  /// The folder of a language model: its configuration, tokenizer, texts and, where it was trained
  /// before, the weights it starts from.
  private func createModel(_ folder: RunFolder) throws {
    guard let model else { return }
    let corpus = texts.isEmpty ? Corpus.embedded() : try Corpus(paths: texts)
    let configuration: ModelConfiguration
    var tokenizer: any Tokenizer = ByteTokenizer()
    if Files.kind(model) == .folder {
      configuration = try StoredModel.configuration(folder: model)
      tokenizer = try StoredModel.tokenizer(folder: model)
    } else if model.hasSuffix(".json") {
      configuration = try ModelConfiguration(json: try Files.read(model))
    } else {
      configuration = try Presets.configuration(model, vocabulary: tokenizer.vocabularySize)
    }
    try folder.createData(corpus: corpus, tokenizer: tokenizer)
    _ = try AtomicFile.write(try configuration.json(), to: folder.configuration)
    if Files.kind(model) == .folder {
      let start = try StoredModel.load(folder: model, device: device)
      _ = try start.weights().write(to: folder.weights)
    }
  }

  private func task(
    _ folder: RunFolder, _ c: EvolutionConfiguration
  ) throws -> any EvolutionTask {
    if Files.kind(policyPath(folder)) != nil {
      let file = try JSONDecoder().decode(
        PolicyFile.self, from: Data(try Files.read(policyPath(folder))))
      guard let type = Environments.type(named: file.environment) else {
        throw Failure("\(policyPath(folder)): no environment is called '\(file.environment)'")
      }
      let policy = try Policy(
        file.kind, observations: type.observationSize, outputs: max(type.actionCount, 1),
        width: file.width, memory: type.memory,
        source: RandomParameters(seed: c.seed, device: device), device: device)
      return PolicyTask(policy: policy, environment: type, configuration: c, device: device)
    }
    let model = try languageModel(folder, c)
    if let reward = LanguageTask.Reward(rawValue: c.reward) {
      return try LanguageTask(model: model, reward: reward, folder: folder, configuration: c)
    }
    guard let prompts = float.prompts else {
      throw Failure("--reward '\(c.reward)' is a program: name --prompts, a file with one a line")
    }
    let lines = String(decoding: try Files.read(prompts), as: UTF8.self)
      .split(separator: "\n").map(String.init)
    return try CompletionTask(
      model: model, tokenizer: try StoredModel.tokenizer(folder: folder.path),
      program: RewardProgram(command: c.reward, timeout: float.timeout, retries: float.retries),
      prompts: lines, temperature: float.temperature, configuration: c)
  }

  /// The model of the folder as it is before the run.
  private func languageModel(
    _ folder: RunFolder, _ c: EvolutionConfiguration
  ) throws -> LanguageModel {
    let configuration = try folder.modelConfiguration()
    if Files.kind(folder.weights) != nil {
      let source = CheckpointParameters(
        try SafetensorsFile(path: folder.weights), device: device, copies: true)
      let model = try LanguageModel(configuration, source: source, device: device)
      try source.finish()
      return model
    }
    return try LanguageModel(
      configuration, source: RandomParameters(seed: c.seed, device: device), device: device)
  }

  private func change(_ c: inout EvolutionConfiguration) throws {
    switch float.strategy {
    case .openai: c.rank = 0
    case .mezo: (c.rank, c.population, c.shaping, c.learningRate) = (0, 2, .gradient, 1e-3)
    case .eggroll, nil: break
    }
    if let v = options.population { c.population = v }
    if let v = options.generations { c.generations = v }
    if let v = options.tokens { c.length = v }
    if let v = options.seed { c.seed = v }
    if let v = options.checkpointEvery { c.checkpointEvery = v }
    if let v = options.evalEvery { c.evaluateEvery = v }
    if let v = options.noiseReuse { c.noiseReuse = v }
    if let v = float.reward, environment == nil { c.reward = v }
    if let v = float.rank { c.rank = v }
    if let v = float.sigma { c.sigma = v }
    if let v = float.sigmaDecay { c.sigmaDecay = v }
    if let v = float.lr { c.learningRate = v }
    if let v = float.lrDecay { c.learningRateDecay = v }
    if let v = float.optimizer { c.optimizer = v }
    if let v = float.weightDecay { c.weightDecay = v }
    if let v = float.shaping { c.shaping = v }
    if let v = float.group { c.group = v }
    if let v = float.rows { c.rows = v }
    if let v = float.chunkRows { c.chunkRows = v }
    if float.freezeVectors { c.vectors = false }
    try c.validate()
  }

  private func report(
    _ trainer: EvolutionTrainer, _ sign: Double, _ gradients: [EvolutionMetrics]?
  ) throws {
    let c = trainer.configuration
    let metrics = trainer.history.map { m in
      Metrics(
        step: m.generation, tokens: m.tokens, trainBitsPerByte: sign * m.meanFitness,
        validationBitsPerByte: m.heldOut, learningRate: c.learningRate, gradientNorm: 0,
        tokensPerSecond: Double(m.tokens) / Double(max(m.generation, 1)) / max(m.seconds, 1e-9))
    }
    var report = Report(
      title: "Evolution \(trainer.folder.path)", metrics: metrics,
      settings: [
        ("reward", c.reward), ("population", "\(c.population) × \(c.rows) rows"),
        ("perturbation", (c.rank == 0 ? "full rank" : "rank \(c.rank)") + ", σ \(c.sigma)"),
        ("shaping", c.shaping.rawValue),
        ("optimiser", "\(c.optimizer.rawValue), learning rate \(c.learningRate)"),
        ("gradients", "none"), ("device", Devices.detail(of: device)), ("seed", "\(c.seed)"),
      ], samples: [])
    if let gradients {
      // A generation of evolution reads its texts once a member, a step of gradients some three times.
      report.curves = [
        Report.Curve(
          name: "gradients, held-out",
          points: gradients.compactMap { m in m.heldOut.map { (m.generation, $0) } }),
        Report.Curve(
          name: "gradients", points: gradients.map { ($0.generation, -$0.meanFitness) }),
      ]
      report.settings += [
        ("forward passes of a generation", "\(c.population) a row of text"),
        (
          "compared with gradients",
          "AdamW, learning rate \(float.compareLr), one step a generation"
        ),
      ]
      if let last = gradients.last(where: { $0.heldOut != nil })?.heldOut {
        report.settings.append(("held-out bits/byte with gradients", Format.fixed(last, 3)))
      }
    }
    try report.write(to: trainer.folder.report)
  }
}

extension EvolutionMetrics {
  /// The score of the model itself, whichever it is.
  var heldOut: Double? { validationBitsPerByte ?? validationReturn }
}
