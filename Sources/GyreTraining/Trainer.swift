import FoundationEssentials
import GyreCheckpoints
import GyreLayers
import GyreModels
import GyreRecurrence
import GyreTensors

/// Trains a model in a run folder: steps, evaluation, checkpoints, metrics.
///
/// A run is a pure function of its configuration and step number, so that a resumed run gives the
/// bits of one that was not interrupted.
public final class Trainer {
  public let model: LanguageModel
  public let configuration: TrainingConfiguration
  public let folder: RunFolder
  /// What it learns and is scored on.
  public let data: any TrainingData
  private let train: any BatchSource
  private let optimizer: Optimizer
  private let schedule: Schedule
  private let parallel: Parallelism?
  private let share: Share?
  /// What a step starts from, where the host decides on steps.
  private var hostState: ModelState
  private var state: ModelState { deviceStep?.state ?? hostState }
  /// Steps done or, where the device decides on them, queued.
  public private(set) var step = 0
  private let rule: StepRule
  private var ledger = StepRule.Ledger()
  public private(set) var history: [Metrics] = []

  /// Where the device decides on steps by itself.
  private let deviceStep: DeviceStep?
  private struct Pending {
    var step: Int
    var schedule: Double
    var queued: DeviceStep.Queued
  }
  /// Steps whose outcome is not known yet.
  private var pending: [Pending] = []
  /// Steps whose outcome has come and was not reported, with the skips in a row that they end.
  private var arrived: [(metrics: Metrics, skips: Int)] = []
  /// Whether any rank of several wants to stop.
  private var ranksEnd = false
  /// When the last outcome came.
  private var stepClock = StepClock()
  /// How steps go to the device; nil where the host decides on each.
  public var deviceWay: DeviceStep.Way? { deviceStep?.way }

  /// On the texts of the run folder, checked against its manifest.
  ///
  /// - Parameters:
  ///   - model: with parameters of its own memory: they are updated in place.
  ///   - parallel: this process's part of a run of several; nil on its own.
  public convenience init(
    model: LanguageModel, configuration: TrainingConfiguration, folder: RunFolder,
    parallel: Parallelism? = nil
  ) throws {
    try self.init(
      model: model, configuration: configuration, folder: folder,
      data: try TextData(try folder.shards(), configuration), parallel: parallel)
  }

  /// - Parameters:
  ///   - model: with parameters of its own memory: they are updated in place.
  ///   - data: what it learns and is scored on.
  ///   - parallel: this process's part of a run of several; nil on its own.
  public init(
    model: LanguageModel, configuration: TrainingConfiguration, folder: RunFolder,
    data: any TrainingData, parallel: Parallelism? = nil
  ) throws {
    self.model = model
    self.parallel = parallel
    self.configuration = configuration
    self.folder = folder
    self.data = data
    train = data.batches
    guard data.vocabulary <= model.configuration.vocabulary else {
      throw TrainingError.configuration(
        "vocabulary: the tokenizer has \(data.vocabulary) tokens, the model \(model.configuration.vocabulary)"
      )
    }
    let (batch, length) = (configuration.batch, configuration.length)
    share = try parallel.map { (p) throws(TrainingError) in
      try Share(p, batch: batch, length: length)
    }
    optimizer = Optimizer(model.parameters, configuration)
    schedule = Schedule(configuration)
    hostState = model.makeState(batch: share?.rows.count ?? batch)
    rule = StepRule(configuration)
    deviceStep =
      (parallel?.parts ?? 1) == 1 && DeviceStep.suits(model.device, configuration)
      ? DeviceStep(
        model, configuration, optimizer, carries: train.carriesState, parallel: parallel,
        share: share) : nil
  }

  /// Whether this process writes the run's files.
  private var isLead: Bool { parallel?.isLead ?? true }

  /// Steps until the configured end or until `shouldStop` says so; saves at the end either way.
  ///
  /// Where the device decides on steps, reports come up to eight steps late and a run goes on for as
  /// many after `shouldStop`; evaluations and checkpoints wait for all before them. Ranks that share rows
  /// learn with a step's outcome whether any of them wants to stop, all at the same step.
  ///
  /// - Parameters:
  ///   - shouldStop: asked after each step.
  ///   - report: called after each step.
  /// - Throws: `diverged` after too many skipped steps; what a device or the disk threw.
  public func run(
    shouldStop: () -> Bool = { false }, report: (Metrics) throws -> Void = { _ in }
  ) throws {
    var lastSaved: Int?
    var isEnding = parallel == nil && shouldStop()
    while step < configuration.steps, !isEnding {
      if let deviceStep {
        queueStep(deviceStep, wantsToStop: parallel != nil && shouldStop())
        let waits =
          !deviceStep.runsAhead || isScoringDue || isCheckpointDue || step == configuration.steps
        try absorb(keeping: waits ? 0 : DeviceStep.lag)
        isEnding = isEnding || ranksEnd
        try reportArrived(report) {
          if parallel == nil { isEnding = isEnding || shouldStop() }
        }
      } else {
        let clock = ContinuousClock()
        let start = clock.now
        var metrics: Metrics
        // All ranks end at the same step: whoever is asked to tells the others with its loss.
        (metrics, isEnding) = try advance(wantsToStop: parallel != nil && shouldStop())
        metrics.tokensPerSecond = tokensPerSecond(clock.now - start)
        arrived.append((metrics, ledger.skips))
        try reportArrived(report) { if parallel == nil { isEnding = shouldStop() } }
      }
      if isCheckpointDue {
        try save()
        lastSaved = step
      }
    }
    try absorb(keeping: 0)
    try reportArrived(report) {}
    if lastSaved != step { try save() }
    guard isLead else { return }
    try optimizer.withAverages {
      do throws(CheckpointError) { try model.weights().write(to: folder.weights) } catch {
        throw TrainingError.checkpoint(error)
      }
    }
  }

  private var isScoringDue: Bool {
    let every = configuration.evaluateEvery
    return step == configuration.steps || (every > 0 && step % every == 0)
  }

  private var isCheckpointDue: Bool {
    configuration.checkpointEvery > 0 && step % configuration.checkpointEvery == 0
  }

  private func tokensPerSecond(_ time: Duration) -> Double {
    Double(configuration.batch * configuration.length * configuration.accumulation)
      / max(time / .seconds(1), 1e-9)
  }

  /// Scores where that is due, writes down and reports the steps that have come.
  private func reportArrived(
    _ report: (Metrics) throws -> Void, _ afterEach: () -> Void
  ) throws {
    while !arrived.isEmpty {
      var (metrics, skips) = arrived.removeFirst()
      // Whoever averages must know when all begin to.
      let isScoring = isLead || configuration.optimizer == .ntasgd
      if isScoring, metrics.step == step, isScoringDue {
        let score = try evaluate()
        metrics.validationBitsPerByte = score.bitsPerByte
        metrics.accuracy = score.accuracy
        optimizer.observe(validation: score.bitsPerByte)
      }
      history.append(metrics)
      if isLead { try folder.append(try metrics.line(), to: folder.metrics) }
      try report(metrics)
      afterEach()
      if let reason = metrics.skipped, skips >= configuration.maximumSkips {
        throw TrainingError.diverged(
          step: metrics.step, reason: "\(skips) steps in a row were skipped, the last for \(reason)"
        )
      }
    }
  }

  /// Scores what is held out, with the averaged parameters where the optimiser averages.
  public func evaluate() throws -> HeldOutScore {
    try optimizer.withAverages {
      try data.score(model, precision: configuration.precision)
    }
  }

  // MARK: - Steps that the device decides on

  private func queueStep(_ deviceStep: DeviceStep, wantsToStop: Bool) {
    let count = configuration.accumulation
    let batches = (0..<count).map { train.batch(step * count + $0) }
    let factor = schedule.factor(step)
    stepClock.queue(at: ContinuousClock().now)
    let queued = deviceStep.queue(
      batches, step: step, schedule: factor, updates: ledger.updates, wantsToStop: wantsToStop)
    pending.append(Pending(step: step, schedule: factor, queued: queued))
    step += 1
  }

  /// Waits for the outcome of all queued steps but the last few.
  private func absorb(keeping count: Int) throws {
    guard let deviceStep else { return }
    while pending.count > count {
      let item = pending.removeFirst()
      let outcome = try deviceStep.outcome(of: item.queued)
      ledger = outcome.ledger
      ranksEnd = ranksEnd || outcome.wantsToStop
      optimizer.updateCount = ledger.updates
      var metrics = metrics(
        after: item.step, outcome.loss, outcome.norm, item.schedule,
        problem(outcome.verdict, outcome.loss, outcome.norm, outcome.meanLoss))
      let newton = try item.queued.reports.take()
      if !newton.isEmpty { metrics.newton = newton }
      metrics.tokensPerSecond = tokensPerSecond(stepClock.arrive(at: ContinuousClock().now))
      arrived.append((metrics, ledger.skips))
    }
  }

  // MARK: - Steps that the host decides on

  /// One optimiser step.
  private func advance(wantsToStop: Bool) throws -> (Metrics, isEnding: Bool) {
    let c = configuration
    var gradients = GradientSums(count: model.parameters.count)
    var losses: [Tensor] = []
    var next = hostState
    let reports = NewtonReports()
    for part in 0..<c.accumulation {
      let batch = train.batch(step * c.accumulation + part)
      if batch.startsAfresh { next = model.makeState(batch: share?.rows.count ?? c.batch) }
      _ = try reports.take()
      NewtonReports.$current.withValue(reports) {
        losses.append(
          differentiate(batch, &next, part: step * c.accumulation + part, &gradients))
      }
    }
    // Sums over ranks are float32; a device may give bfloat16.
    let sums = gradients.tensors.map { parallel == nil ? $0 : $0?.cast(to: .float32) }
    let present = sums.compactMap(\.self)
    let (loss, isEnding) = try together(losses, present, wantsToStop)
    let norm =
      try apply(SumOfSquares(), present)[0].item().squareRoot() / Double(c.accumulation)
    let rate = schedule.factor(step)
    let mean = ledger.meanLoss
    let verdict = rule.decide(
      loss: loss, norm: norm, watchesSpikes: step > c.warmupSteps, &ledger)
    if verdict == .taken {
      let factor = Tensor([Float(rule.factor(norm: norm))], shape: [1], on: model.device)
      // Muon's products round as the model's do; AdamW and SGD have none.
      ComputePrecision.$current.withValue(c.precision) {
        optimizer.step(sums, factor: factor, schedule: rate)
      }
      hostState = next
    }
    step += 1
    let newton = try reports.take()
    var metrics = metrics(after: step - 1, loss, norm, rate, problem(verdict, loss, norm, mean))
    if !newton.isEmpty { metrics.newton = newton }
    return (metrics, isEnding)
  }

  /// The mean loss, after gradients and losses of all ranks were added up; whether any wants to stop.
  private func together(
    _ losses: [Tensor], _ gradients: [Tensor], _ wantsToStop: Bool
  ) throws -> (loss: Double, isEnding: Bool) {
    guard let parallel else {
      return (
        try losses.reduce(0) { $0 + (try $1.item()) } / Double(configuration.accumulation), false
      )
    }
    let stop = Tensor([wantsToStop ? 1 : 0 as Float], shape: [1], on: model.device)
    let sum = losses.dropFirst().reduce(losses[0]) { $0 + $1 }.cast(to: .float32)
    parallel.communicator.sum(gradients + [sum, stop])
    return (try sum.item() / Double(configuration.accumulation), try stop.item() > 0)
  }

  /// Adds the gradients of a batch; its mean loss.
  private func differentiate(
    _ batch: Batch, _ state: inout ModelState, part: Int, _ sums: inout GradientSums
  ) -> Tensor {
    let device = model.device
    let shape = share?.shape ?? [configuration.batch, batch.tokens.count / configuration.batch]
    func tensor(_ values: [Int32]) -> Tensor {
      Tensor(share?.cut(values) ?? values, shape: shape, on: device)
    }
    let relay = parallel.flatMap { $0.parts > 1 ? SequenceRelay(parallel: $0) : nil }
    var model = model
    model.relay = relay
    let loss = model.loss(
      tensor(batch.tokens), targets: tensor(batch.targets), reset: batch.reset.map(tensor),
      state: &state, keepsState: train.carriesState || relay != nil,
      dropout: DropoutNoise(seed: configuration.seed, step: UInt64(part)),
      precision: configuration.precision,
      weight: parallel == nil ? nil : share?.weight(of: batch.targets) ?? 1, gradients: &sums)
    if !train.carriesState { state = model.makeState(batch: shape[0]) }
    if let relay, train.carriesState { state = relay.wrap(state, on: device) }
    return loss
  }

  // MARK: - What is written down

  private func metrics(
    after index: Int, _ loss: Double, _ norm: Double, _ schedule: Double, _ problem: String?
  ) -> Metrics {
    let c = configuration
    let bits: Double = loss / 0.693_147_180_559_945_3
    let tokens: Int = (index + 1) * c.batch * c.length * c.accumulation
    return Metrics(
      step: index + 1, tokens: tokens, trainBitsPerByte: bits / data.bytesPerToken,
      validationBitsPerByte: nil, learningRate: c.learningRate * schedule, gradientNorm: norm,
      tokensPerSecond: 0, skipped: problem)
  }

  /// Why a step was not taken.
  private func problem(
    _ verdict: StepRule.Verdict, _ loss: Double, _ norm: Double, _ meanLoss: Double?
  ) -> String? {
    switch verdict {
    case .taken: nil
    case .loss: "a loss of \(loss)"
    case .norm: "a gradient norm of \(norm)"
    case .spike: "a loss of \(loss) after a mean of \(meanLoss ?? 0)"
    case .stopped: "too many skipped steps before it"
    }
  }

  // MARK: - Checkpoints

  private struct Snapshot: Codable {
    var step: Int
    var updateCount: Int
    var skips: Int
    var meanLoss: Double?
    var tokenCounts: [Int]
    /// Of an optimiser that averages.
    var averages: Optimizer.Averages?
  }

  /// Writes a checkpoint and drops the oldest.
  ///
  /// Of several processes the first writes; all must call.
  public func save() throws {
    try absorb(keeping: 0)
    let state =
      parallel.map { SequenceRelay(parallel: $0).gathered(self.state, on: model.device) }
      ?? self.state
    guard isLead else { return }
    try model.device.synchronize()
    let snapshot = Snapshot(
      step: step, updateCount: optimizer.updateCount, skips: ledger.skips,
      meanLoss: ledger.meanLoss, tokenCounts: state.layers.map(\.tokenCount),
      averages: optimizer.averages)
    let store = folder.store
    do {
      try store.save(step: step) { checkpoint in
        try checkpoint.write("model.safetensors", tensors: try model.weights())
        var writer = SafetensorsWriter()
        for (name, tensor) in optimizer.tensors { try writer.add(name, values: tensor) }
        for (i, layer) in state.layers.enumerated() {
          for (name, tensor) in layer.tensors {
            try writer.add("state.\(i).\(name)", values: tensor)
          }
        }
        try checkpoint.write("optimizer.safetensors", tensors: writer)
        try checkpoint.write(
          "state.json", text: String(decoding: try JSONEncoder().encode(snapshot), as: UTF8.self))
      }
      try store.keep(last: configuration.keptCheckpoints)
    } catch { throw TrainingError.checkpoint(error) }
  }

  /// Goes on from the newest checkpoint that is whole; returns what was passed over.
  public func resume() throws -> [RejectedCheckpoint] {
    let (found, rejected) = try folder.store.latest()
    guard let found else {
      throw TrainingError.data(
        path: folder.store.path,
        reason: "holds no checkpoint to resume from"
          + (rejected.isEmpty ? "" : "; \(rejected.map(\.description).joined(separator: "; "))"))
    }
    let snapshot: Snapshot
    do {
      snapshot = try JSONDecoder().decode(
        Snapshot.self, from: Data(try found.bytes(of: "state.json")))
    } catch let error as DecodingError {
      throw TrainingError.data(path: found.path + "/state.json", reason: "\(error)")
    }
    let weights = try found.tensors("model.safetensors")
    let parameters = CheckpointParameters(weights, device: model.device, copies: true)
    for p in model.parameters {
      if let value = parameters.value(name: p.name, shape: p.shape, initializer: .zeros) {
        p.value = value
      }
    }
    try parameters.finish()
    let moments = try found.tensors("optimizer.safetensors")
    let device = model.device
    try optimizer.restore(updateCount: snapshot.updateCount) { name, shape in
      Tensor(try moments.readFloat32(name), shape: shape, on: device)
    }
    optimizer.averages = snapshot.averages ?? Optimizer.Averages()
    var state = model.makeState(batch: share?.rows.count ?? configuration.batch)
    guard snapshot.tokenCounts.count == state.layers.count else {
      throw TrainingError.data(
        path: found.path + "/state.json", reason: "\(snapshot.tokenCounts.count) layers of state")
    }
    for i in state.layers.indices {
      state.layers[i].tokenCount = snapshot.tokenCounts[i]
      for entry in state.layers[i].spec.entries {
        let name = "state.\(i).\(entry.name)"
        guard moments.contains(name) else { continue }
        // The file holds all rows; this process may work on some.
        let extents = try moments.info(name).shape.dimensions
        guard extents.first == configuration.batch else {
          throw TrainingError.data(
            path: found.path + "/optimizer.safetensors",
            reason: "\(name) is \(extents) where \(configuration.batch) rows belong")
        }
        let values = try moments.readFloat32(name)
        let row = values.count / configuration.batch
        let rows = share?.rows ?? 0..<configuration.batch
        state.layers[i][entry.name] = Tensor(
          Array(values[rows.lowerBound * row..<rows.upperBound * row]),
          shape: Shape([rows.count] + extents.dropFirst()), on: device)
      }
    }
    step = snapshot.step
    // A run that goes on may skip at least one more.
    ledger = StepRule.Ledger(
      meanLoss: snapshot.meanLoss, updates: snapshot.updateCount,
      skips: min(snapshot.skips, configuration.maximumSkips - 1))
    hostState = state
    deviceStep?.start(from: state, ledger)
    history = Metrics.read(folder.metrics, through: step)
    guard isLead else { return rejected }
    do throws(CheckpointError) {
      var text = ""
      for m in history { text += (try? m.line()) ?? "" }
      try AtomicFile.write(text, to: folder.metrics)
    } catch { throw TrainingError.checkpoint(error) }
    return rejected
  }
}
