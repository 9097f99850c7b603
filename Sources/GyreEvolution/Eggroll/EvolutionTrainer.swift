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
  /// Told of a generation that was passed over, or of a worker that was lost.
  public var onSkip: (String) -> Void = { _ in }
  private let group: (any WorkerGroup)?
  private let onFailure: WorkerFailure
  /// The leader's: whether the next estimate is shared out.
  private var trial: UpdateTrial
  private var isLeader: Bool { group?.isLeader ?? true }

  /// - Parameters:
  ///   - group: processes that score the population together; nil: this one alone.
  ///   - onFailure: what happens when one of them ends.
  ///   - update: which of them compute the estimate.
  public init(
    task: any EvolutionTask, configuration: EvolutionConfiguration, folder: RunFolder,
    device: any Device, group: (any WorkerGroup)? = nil, onFailure: WorkerFailure = .stop,
    update: UpdateWork = .auto
  ) {
    self.group = group
    self.onFailure = onFailure
    trial = UpdateTrial(update)
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
    var stops = false
    while generation < configuration.generations, !stops {
      // All ranks stop after the same generation, the one in which the leader was asked to.
      if group == nil, shouldStop() { break }
      var metrics: EvolutionMetrics
      do {
        (metrics, stops) = try advance(stops: isLeader && group != nil && shouldStop())
        failures = 0
      } catch let error as EvolutionError {
        if case .worker = error {
          if isLeader, lastSaved != generation { try save() }
          throw error
        }
        failures += 1
        guard failures < 10 else { throw error }
        onSkip("generation \(generation + 1) is passed over: \(error)")
        generation += 1
        continue
      }
      guard isLeader else { continue }
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
    guard isLeader else { return }
    if lastSaved != generation { try save() }
    _ = try weights().write(to: folder.weights)
  }

  private func weights() throws -> SafetensorsWriter {
    var writer = SafetensorsWriter()
    for parameter in task.parameters { try writer.add(parameter.name, values: parameter.value) }
    return writer
  }

  /// What scoring some members gave.
  struct Scored {
    var scores: [[Double]] = []
    /// The parameters that took part.
    var used: Set<Int> = []
    var tokens = 0
  }

  /// What the leader decides for all ranks.
  struct Decision {
    /// The run ends with this generation.
    var stops = false
    /// The estimate is shared out.
    var shares = false
  }

  /// Scores of the whole population: by this process, or by all of the group, each of its slice.
  private func scored(stops: Bool) throws -> (Scored, Decision) {
    guard let group else {
      return (
        try population(0..<configuration.population, generation), Decision(stops: stops)
      )
    }
    while true {
      var message = WorkerMessage()
      do {
        let mine = try population(slice(group), generation)
        let bytes = 4 * mine.used.reduce(0) { $0 + task.parameters[$1].shape.elementCount }
        let shares = trial.shares(
          ranks: group.ranks.count, bytes: bytes, rate: group.bytesPerSecond)
        message = mine.message(Decision(stops: stops, shares: shares))
      } catch let error as EvolutionError {
        // The others must know, or they would wait.
        message.write(1)
        message.write(Array("\(error)".utf8))
      }
      do throws(EvolutionError) {
        var all = Scored()
        var leader = Decision()
        for (rank, part) in try group.gather(message.bytes).enumerated() {
          let decision = try all.add(WorkerMessage(part))
          if rank == 0 { leader = decision }
        }
        return (all, leader)
      } catch { try drop(error, of: group) }
    }
  }

  /// Goes on without the ranks that an error names.
  ///
  /// - Throws: the error, where that cannot be.
  private func drop(
    _ error: EvolutionError, of group: any WorkerGroup
  ) throws(EvolutionError) {
    guard case .worker(let lost, _) = error, onFailure == .drop, !lost.isEmpty, !lost.contains(0)
    else { throw error }
    trial.forget()
    onSkip("\(error): \(group.ranks.count) go on")
  }

  /// The estimate: by this process, or each rank some parameters of it.
  private func estimate(
    _ weights: [Double], used: Set<Int>, isShared: Bool
  ) throws(EvolutionError) -> [Tensor?] {
    let c = configuration
    func own(_ leaves: Set<Int>) -> [Tensor?] {
      Estimate.gradients(
        c.strategy(at: generation), epoch: c.epoch(generation), weights: weights,
        parameters: task.parameters, used: leaves, on: device)
    }
    guard let group, isShared else { return own(used) }
    while true {
      let shared = SharedEstimate(used, task.parameters, ranks: group.ranks.count)
      let place = group.ranks.firstIndex(of: group.rank) ?? 0
      do throws(EvolutionError) {
        return try shared.exchange(own(Set(shared.leaves[place])), in: group, on: device)
      } catch { try drop(error, of: group) }
    }
  }

  /// Members that are scored at once.
  private var chunkMembers: Int { max(1, configuration.chunkRows / max(task.rowsPerMember, 1)) }

  /// The members that this rank scores: whole chunks where each rank has one, so that products have the rows
  /// that they have in one process, on which their bits may depend; pairs otherwise.
  private func slice(_ group: any WorkerGroup) -> Range<Int> {
    let size = configuration.population
    let chunks = (size + chunkMembers - 1) / chunkMembers
    let unit = chunks >= group.ranks.count ? chunkMembers : 2
    let part = group.slice(of: (size + unit - 1) / unit)
    return min(part.lowerBound * unit, size)..<min(part.upperBound * unit, size)
  }

  /// Scores of some members, chunk after chunk.
  func population(_ range: Range<Int>, _ generation: Int) throws -> Scored {
    let c = configuration
    let strategy = c.strategy(at: generation)
    let each = chunkMembers
    var all = Scored()
    for first in stride(from: range.lowerBound, to: range.upperBound, by: each) {
      let members = first..<min(first + each, range.upperBound)
      let rows = members.flatMap { [Int32](repeating: quiet($0), count: task.rowsPerMember) }
      let perturbation = Perturbation(
        strategy, epoch: c.epoch(generation), members: rows, parameters: task.parameters,
        on: device)
      let found = try Perturbation.$current.withValue(perturbation) {
        try task.scores(members: members, generation: generation)
      }
      all.scores += found.scores
      all.tokens += found.tokens
      all.used.formUnion(perturbation.used)
    }
    return all
  }

  /// The member's number; −1 for those that the shaping `baseline` compares with.
  private func quiet(_ member: Int) -> Int32 {
    let size = configuration.group > 0 ? configuration.group : configuration.population
    return configuration.shaping == .baseline && member % size < 2 ? -1 : Int32(member)
  }

  private func advance(stops: Bool) throws -> (EvolutionMetrics, stops: Bool) {
    let c = configuration
    let clock = ContinuousClock()
    let start = clock.now
    _ = task.takeScoringSeconds()
    let (all, decision) = try scored(stops: stops)
    let scores = all.scores
    let scored = clock.now
    let scoring = task.takeScoringSeconds()
    let sigma = c.sigma(at: generation)
    let weights = c.shaping.weights(scores, group: c.group, sigma: sigma)
    let gradients = try estimate(weights, used: all.used, isShared: decision.shares)
    let one = Tensor.full(1, [1], on: device)
    optimizer.step(
      gradients, factor: one,
      schedule: Functions.pow(c.learningRateDecay, Double(generation)))
    try device.synchronize()
    let end = clock.now
    trial.took(seconds(end - scored), shared: decision.shares)
    generation += 1
    tokens += all.tokens
    let means = scores.map { $0.reduce(0, +) / Double(max($0.count, 1)) }
    let metrics = EvolutionMetrics(
      generation: generation, tokens: tokens,
      meanFitness: means.reduce(0, +) / Double(max(means.count, 1)),
      bestFitness: means.max() ?? 0, validationBitsPerByte: nil, seconds: seconds(end - start),
      forward: max(0, seconds(scored - start) - scoring), noise: 0,
      update: seconds(end - scored), scoring: scoring)
    return (metrics, decision.stops)
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
    guard isLeader else { return rejected }
    _ = try AtomicFile.write(try history.map { try $0.line() }.joined(), to: folder.metrics)
    return rejected
  }
}

extension EvolutionTrainer.Scored {
  /// As a rank sends it: 0, what the leader decides, tokens, parameters, then each member's scores.
  func message(_ decision: EvolutionTrainer.Decision) -> WorkerMessage {
    var message = WorkerMessage()
    message.write(0)
    message.write(decision.stops ? 1 : 0)
    message.write(decision.shares ? 1 : 0)
    message.write(tokens)
    message.write(used.count)
    for leaf in used.sorted() { message.write(leaf) }
    message.write(scores.count)
    for row in scores {
      message.write(row.count)
      for score in row { message.write(score) }
    }
    return message
  }

  /// Adds what a rank sent; what it decides.
  ///
  /// - Throws: `reward` with the reason where its scores failed.
  mutating func add(_ message: WorkerMessage) throws(EvolutionError) -> EvolutionTrainer.Decision {
    var message = message
    guard try message.readInteger() == 0 else {
      throw .reward(String(decoding: try message.readBytes(), as: UTF8.self))
    }
    let stops = try message.readInteger() != 0
    let shares = try message.readInteger() != 0
    tokens += try message.readInteger()
    for _ in 0..<(try message.readInteger()) { used.insert(try message.readInteger()) }
    for _ in 0..<(try message.readInteger()) {
      var row: [Double] = []
      for _ in 0..<(try message.readInteger()) { row.append(try message.readReal()) }
      scores.append(row)
    }
    return EvolutionTrainer.Decision(stops: stops, shares: shares)
  }
}
