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
  private var state: ModelState
  /// Steps done.
  public private(set) var step = 0
  /// Running mean of the loss in nats, for spikes.
  private var meanLoss: Double?
  private var skips = 0
  public private(set) var history: [Metrics] = []

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
    state = model.makeState(batch: share?.rows.count ?? batch)
  }

  /// Whether this process writes the run's files.
  private var isLead: Bool { parallel?.isLead ?? true }

  /// Steps until the configured end or until `shouldStop` says so; saves at the end either way.
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
      let clock = ContinuousClock()
      let start = clock.now
      var metrics: Metrics
      // All ranks end at the same step: whoever is asked to tells the others with its loss.
      (metrics, isEnding) = try advance(wantsToStop: parallel != nil && shouldStop())
      metrics.tokensPerSecond =
        Double(configuration.batch * configuration.length * configuration.accumulation)
        / ((clock.now - start) / .seconds(1))
      let every = configuration.evaluateEvery
      // Whoever averages must know when all begin to.
      let isScoring = isLead || configuration.optimizer == .ntasgd
      if isScoring, step == configuration.steps || (every > 0 && step % every == 0) {
        let score = try evaluate()
        metrics.validationBitsPerByte = score.bitsPerByte
        metrics.accuracy = score.accuracy
        optimizer.observe(validation: score.bitsPerByte)
      }
      history.append(metrics)
      if isLead { try folder.append(try metrics.line(), to: folder.metrics) }
      try report(metrics)
      if parallel == nil { isEnding = shouldStop() }
      if metrics.skipped != nil {
        skips += 1
        if skips >= configuration.maximumSkips {
          throw TrainingError.diverged(
            step: step,
            reason: "\(skips) steps in a row were skipped, the last for \(metrics.skipped ?? "")")
        }
      } else {
        skips = 0
      }
      if configuration.checkpointEvery > 0, step % configuration.checkpointEvery == 0 {
        try save()
        lastSaved = step
      }
    }
    if lastSaved != step { try save() }
    guard isLead else { return }
    try optimizer.withAverages {
      do throws(CheckpointError) { try model.weights().write(to: folder.weights) } catch {
        throw TrainingError.checkpoint(error)
      }
    }
  }

  /// Scores what is held out, with the averaged parameters where the optimiser averages.
  public func evaluate() throws -> HeldOutScore {
    try optimizer.withAverages {
      try data.score(model, precision: configuration.precision)
    }
  }

  /// One optimiser step.
  private func advance(wantsToStop: Bool) throws -> (Metrics, isEnding: Bool) {
    let c = configuration
    let variables = model.parameters.map(\.value)
    var gradients = GradientSums(count: variables.count)
    var losses: [Tensor] = []
    var next = state
    let reports = NewtonReports()
    for part in 0..<c.accumulation {
      let batch = train.batch(step * c.accumulation + part)
      if batch.startsAfresh { next = model.makeState(batch: share?.rows.count ?? c.batch) }
      _ = try reports.take()
      NewtonReports.$current.withValue(reports) {
        losses.append(
          differentiate(
            batch, &next, variables, part: step * c.accumulation + part, &gradients))
      }
    }
    // Sums over ranks are float32; a device may give bfloat16.
    let sums = gradients.tensors.map { parallel == nil ? $0 : $0?.cast(to: .float32) }
    let present = sums.compactMap(\.self)
    let (loss, isEnding) = try together(losses, present, wantsToStop)
    let norm =
      try apply(SumOfSquares(), present)[0].item().squareRoot() / Double(c.accumulation)
    let rate = schedule.factor(step)
    let problem = problem(loss, norm)
    if problem == nil {
      let clip = c.clipNorm.map { norm > $0 ? $0 / norm : 1 } ?? 1
      let factor = Tensor(
        [Float(clip / Double(c.accumulation))], shape: [1], on: model.device)
      // Muon's products round as the model's do; AdamW and SGD have none.
      ComputePrecision.$current.withValue(c.precision) {
        optimizer.step(sums, factor: factor, schedule: rate)
      }
      meanLoss = meanLoss.map { 0.98 * $0 + 0.02 * loss } ?? loss
      state = next
    }
    step += 1
    let newton = try reports.take()
    let bits: Double = loss / 0.693_147_180_559_945_3
    let tokens: Int = step * c.batch * c.length * c.accumulation
    var metrics = Metrics(
      step: step, tokens: tokens, trainBitsPerByte: bits / data.bytesPerToken,
      validationBitsPerByte: nil, learningRate: c.learningRate * rate, gradientNorm: norm,
      tokensPerSecond: 0, skipped: problem)
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
    _ batch: Batch, _ state: inout ModelState, _ variables: [Tensor], part: Int,
    _ sums: inout GradientSums
  ) -> Tensor {
    let device = model.device
    let shape = share?.shape ?? [configuration.batch, batch.tokens.count / configuration.batch]
    func tensor(_ values: [Int32]) -> Tensor {
      Tensor(share?.cut(values) ?? values, shape: shape, on: device)
    }
    let (tokens, targets) = (tensor(batch.tokens), tensor(batch.targets))
    let reset = batch.reset.map(tensor)
    let relay = parallel.flatMap { $0.parts > 1 ? SequenceRelay(parallel: $0) : nil }
    var model = model
    model.relay = relay
    let weight = share?.weight(of: batch.targets) ?? 1
    let tape = Tape()
    tape.watch(variables)
    var carried = state.detached()
    let loss = ComputePrecision.$current.withValue(configuration.precision) {
      tape.record {
        let mean = model.loss(
          tokens, targets: targets, state: &carried, reset: reset,
          dropout: DropoutNoise(seed: configuration.seed, step: UInt64(part))
        ).mean
        return parallel == nil ? mean : mean * weight
      }
    }
    ComputePrecision.$current.withValue(configuration.precision) {
      tape.gradients(of: loss, for: variables, addingTo: &sums)
    }
    state = train.carriesState ? carried.detached() : model.makeState(batch: shape[0])
    if let relay, train.carriesState { state = relay.wrap(state, on: device) }
    return loss
  }

  /// Why a step must not be taken.
  private func problem(_ loss: Double, _ norm: Double) -> String? {
    if !loss.isFinite { return "a loss of \(loss)" }
    if !norm.isFinite { return "a gradient norm of \(norm)" }
    if let factor = configuration.spikeFactor, let meanLoss, step > configuration.warmupSteps,
      loss > factor * meanLoss
    {
      return "a loss of \(loss) after a mean of \(meanLoss)"
    }
    return nil
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
    let state =
      parallel.map { SequenceRelay(parallel: $0).gathered(self.state, on: model.device) }
      ?? self.state
    guard isLead else { return }
    try model.device.synchronize()
    let snapshot = Snapshot(
      step: step, updateCount: optimizer.updateCount, skips: skips, meanLoss: meanLoss,
      tokenCounts: state.layers.map(\.tokenCount), averages: optimizer.averages)
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
    (step, skips, meanLoss) = (snapshot.step, snapshot.skips, snapshot.meanLoss)
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
