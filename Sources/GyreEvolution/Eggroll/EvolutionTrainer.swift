import FoundationEssentials
import GyreCheckpoints
import GyreModels
import GyreTensors
import GyreTraining

/// Evolves the parameters of a task (EGGROLL). A run is a pure function of its configuration and its
/// task: a resumed run gives the bits of one that was not interrupted, whatever the chunks.
public final class EvolutionTrainer {
  public let task: any EvolutionTask
  public let configuration: EvolutionConfiguration
  public let folder: RunFolder
  private let optimizer: Optimizer
  private let device: any Device
  public private(set) var generation = 0
  private var tokens = 0
  public private(set) var history: [EvolutionMetrics] = []
  /// Generations in a row whose scores failed.
  private var failures = 0
  /// Told of a generation that was passed over.
  public var onSkip: (String) -> Void = { _ in }

  public init(
    task: any EvolutionTask, configuration: EvolutionConfiguration, folder: RunFolder,
    device: any Device
  ) {
    self.task = task
    self.configuration = configuration
    self.folder = folder
    self.device = device
    var training = TrainingConfiguration()
    training.optimizer = configuration.optimizer == .adamw ? .adamw : .sgd
    training.learningRate = configuration.learningRate
    training.momentum = configuration.optimizer == .momentum ? configuration.momentum : 0
    training.nesterov = false
    training.weightDecay = configuration.weightDecay
    optimizer = Optimizer(task.parameters, training)
  }

  /// Generations until the configured end or until `shouldStop`; saves at the end either way.
  ///
  /// A generation whose scores cannot be had is passed over; ten in a row end the run.
  public func run(
    shouldStop: () -> Bool = { false }, report: (EvolutionMetrics) throws -> Void = { _ in }
  ) throws {
    var lastSaved: Int?
    while generation < configuration.generations, !shouldStop() {
      var metrics: EvolutionMetrics
      do {
        metrics = try advance()
        failures = 0
      } catch let error as EvolutionError {
        failures += 1
        guard failures < 10 else { throw error }
        onSkip("generation \(generation + 1) is passed over: \(error)")
        generation += 1
        continue
      }
      let every = configuration.evaluateEvery
      if generation == configuration.generations || (every > 0 && generation % every == 0) {
        let value = try task.evaluate()
        if task.isBitsPerByte {
          metrics.validationBitsPerByte = value
        } else {
          metrics.validationReturn = value
        }
      }
      history.append(metrics)
      try folder.append(try metrics.line(), to: folder.metrics)
      try report(metrics)
      if configuration.checkpointEvery > 0, generation % configuration.checkpointEvery == 0 {
        try save()
        lastSaved = generation
      }
    }
    if lastSaved != generation { try save() }
    _ = try weights().write(to: folder.weights)
  }

  private func weights() throws -> SafetensorsWriter {
    var writer = SafetensorsWriter()
    for parameter in task.parameters { try writer.add(parameter.name, values: parameter.value) }
    return writer
  }

  /// Scores of the whole population, chunk after chunk.
  func population(_ generation: Int) throws -> (scores: [[Double]], used: Set<Int>, tokens: Int) {
    let c = configuration
    let strategy = c.strategy(at: generation)
    let each = max(1, c.chunkRows / max(task.rowsPerMember, 1))
    var scores: [[Double]] = []
    var used: Set<Int> = []
    var tokens = 0
    for first in stride(from: 0, to: c.population, by: each) {
      let members = first..<min(first + each, c.population)
      let rows = members.flatMap { [Int32](repeating: quiet($0), count: task.rowsPerMember) }
      let perturbation = Perturbation(
        strategy, epoch: c.epoch(generation), members: rows, parameters: task.parameters,
        on: device)
      let found = try Perturbation.$current.withValue(perturbation) {
        try task.scores(members: members, generation: generation)
      }
      scores += found.scores
      tokens += found.tokens
      used.formUnion(perturbation.used)
    }
    return (scores, used, tokens)
  }

  /// The member's number; −1 for those that the shaping `baseline` compares with.
  private func quiet(_ member: Int) -> Int32 {
    let size = configuration.group > 0 ? configuration.group : configuration.population
    return configuration.shaping == .baseline && member % size < 2 ? -1 : Int32(member)
  }

  private func advance() throws -> EvolutionMetrics {
    let c = configuration
    let clock = ContinuousClock()
    let start = clock.now
    _ = task.takeScoringSeconds()
    let (scores, used, spent) = try population(generation)
    let scored = clock.now
    let scoring = task.takeScoringSeconds()
    let sigma = c.sigma(at: generation)
    let weights = c.shaping.weights(scores, group: c.group, sigma: sigma)
    let gradients = Estimate.gradients(
      c.strategy(at: generation), epoch: c.epoch(generation), weights: weights,
      parameters: task.parameters, used: used, on: device)
    let one = Tensor.full(1, [1], on: device)
    optimizer.step(
      gradients, factor: one,
      schedule: Functions.pow(c.learningRateDecay, Double(generation)))
    try device.synchronize()
    let end = clock.now
    generation += 1
    tokens += spent
    let means = scores.map { $0.reduce(0, +) / Double(max($0.count, 1)) }
    return EvolutionMetrics(
      generation: generation, tokens: tokens,
      meanFitness: means.reduce(0, +) / Double(max(means.count, 1)),
      bestFitness: means.max() ?? 0, validationBitsPerByte: nil, seconds: seconds(end - start),
      forward: max(0, seconds(scored - start) - scoring), noise: 0,
      update: seconds(end - scored), scoring: scoring)
  }

  // MARK: - Checkpoints

  private struct Snapshot: Codable { var generation, tokens, updateCount: Int }

  /// Writes a checkpoint and drops the oldest.
  public func save() throws {
    let snapshot = Snapshot(
      generation: generation, tokens: tokens, updateCount: optimizer.updateCount)
    try folder.store.save(step: generation) { checkpoint in
      try checkpoint.write("model.safetensors", tensors: try weights())
      var writer = SafetensorsWriter()
      for (name, tensor) in optimizer.tensors { try writer.add(name, values: tensor) }
      try checkpoint.write("optimizer.safetensors", tensors: writer)
      let text = try JSONEncoder().encode(snapshot)
      try checkpoint.write("state.json", text: String(decoding: text, as: UTF8.self))
    }
    _ = try folder.store.keep(last: configuration.keptCheckpoints)
  }

  /// Goes on from the newest checkpoint that is whole; returns what was passed over.
  public func resume() throws -> [RejectedCheckpoint] {
    let (found, rejected) = try folder.store.latest()
    guard let found else {
      throw EvolutionError.file(
        path: folder.store.path, reason: "holds no checkpoint to resume from")
    }
    let snapshot: Snapshot
    do {
      snapshot = try JSONDecoder().decode(
        Snapshot.self, from: Data(try found.bytes(of: "state.json")))
    } catch let error as DecodingError {
      throw EvolutionError.file(path: found.path + "/state.json", reason: "\(error)")
    }
    let weights = try found.tensors("model.safetensors")
    for p in task.parameters {
      let info = try weights.info(p.name)
      guard info.shape == p.shape else {
        throw EvolutionError.file(
          path: found.path + "/model.safetensors",
          reason: "\(p.name) is \(info.shape), must be \(p.shape)")
      }
      p.value = Tensor(try weights.readFloat32(p.name), shape: p.shape, on: device)
    }
    let moments = try found.tensors("optimizer.safetensors")
    try optimizer.restore(updateCount: snapshot.updateCount) { name, shape in
      Tensor(try moments.readFloat32(name), shape: shape, on: device)
    }
    (generation, tokens) = (snapshot.generation, snapshot.tokens)
    history = EvolutionMetrics.read(folder.metrics, through: generation)
    _ = try AtomicFile.write(try history.map { try $0.line() }.joined(), to: folder.metrics)
    return rejected
  }
}
