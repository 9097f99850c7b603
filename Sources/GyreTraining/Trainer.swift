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
  private let train: any BatchSource
  /// The texts as tokens, checked against the run folder's manifest.
  public let shards: (train: TokenShard, validation: TokenShard)
  private let optimizer: Optimizer
  private let schedule: Schedule
  private var state: ModelState
  /// Steps done.
  public private(set) var step = 0
  /// Running mean of the loss in nats, for spikes.
  private var meanLoss: Double?
  private var skips = 0
  public private(set) var history: [Metrics] = []

  /// - Parameter model: with parameters of its own memory: they are updated in place.
  public init(
    model: LanguageModel, configuration: TrainingConfiguration, folder: RunFolder
  ) throws {
    self.model = model
    self.configuration = configuration
    self.folder = folder
    shards = try folder.shards()
    guard shards.train.vocabulary <= model.configuration.vocabulary else {
      throw TrainingError.configuration(
        "vocabulary: the tokenizer has \(shards.train.vocabulary) tokens, the model \(model.configuration.vocabulary)"
      )
    }
    let (batch, length) = (configuration.batch, configuration.length)
    train =
      switch configuration.data {
      case .stream:
        try StreamBatches(shards.train, batch: batch, length: length, seed: configuration.seed)
      case .packed:
        try PackedBatches(shards.train, batch: batch, length: length, seed: configuration.seed)
      }
    optimizer = Optimizer(model.parameters, configuration)
    schedule = Schedule(configuration)
    state = model.makeState(batch: batch)
  }

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
    while step < configuration.steps, !shouldStop() {
      let clock = ContinuousClock()
      let start = clock.now
      var metrics = try advance()
      metrics.tokensPerSecond =
        Double(configuration.batch * configuration.length * configuration.accumulation)
        / ((clock.now - start) / .seconds(1))
      let every = configuration.evaluateEvery
      if step == configuration.steps || (every > 0 && step % every == 0) {
        let bits = try evaluate().bitsPerByte
        metrics.validationBitsPerByte = bits
        optimizer.observe(validation: bits)
      }
      history.append(metrics)
      try folder.append(try metrics.line(), to: folder.metrics)
      try report(metrics)
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
    try optimizer.withAverages {
      do throws(CheckpointError) { try model.weights().write(to: folder.weights) } catch {
        throw TrainingError.checkpoint(error)
      }
    }
  }

  /// Scores the held-out text, with the averaged parameters where the optimiser averages.
  public func evaluate() throws -> Evaluation {
    try optimizer.withAverages {
      try Evaluation(model, shards.validation, precision: configuration.precision)
    }
  }

  /// One optimiser step.
  private func advance() throws -> Metrics {
    let c = configuration
    let variables = model.parameters.map(\.value)
    var sums = [Tensor?](repeating: nil, count: variables.count)
    var loss = 0.0
    var next = state
    let reports = NewtonReports()
    for part in 0..<c.accumulation {
      let batch = train.batch(step * c.accumulation + part)
      if batch.startsAfresh { next = model.makeState(batch: c.batch) }
      _ = try reports.take()
      let (mean, gradients) = NewtonReports.$current.withValue(reports) {
        differentiate(batch, &next, variables, part: step * c.accumulation + part)
      }
      loss += try mean.item() / Double(c.accumulation)
      for (i, gradient) in gradients.enumerated() {
        guard let gradient else { continue }
        sums[i] = sums[i].map { $0 + gradient } ?? gradient
      }
    }
    let present = sums.compactMap(\.self)
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
      step: step, tokens: tokens, trainBitsPerByte: bits / shards.train.bytesPerToken,
      validationBitsPerByte: nil, learningRate: c.learningRate * rate, gradientNorm: norm,
      tokensPerSecond: 0, skipped: problem)
    if !newton.isEmpty { metrics.newton = newton }
    return metrics
  }

  private func differentiate(
    _ batch: Batch, _ state: inout ModelState, _ variables: [Tensor], part: Int
  ) -> (loss: Tensor, gradients: [Tensor?]) {
    let device = model.device
    let shape: Shape = [configuration.batch, configuration.length]
    let tokens = Tensor(batch.tokens, shape: shape, on: device)
    let targets = Tensor(batch.targets, shape: shape, on: device)
    let reset = batch.reset.map { Tensor($0, shape: shape, on: device) }
    let tape = Tape()
    tape.watch(variables)
    var carried = state.detached()
    let loss = ComputePrecision.$current.withValue(configuration.precision) {
      tape.record {
        model.loss(
          tokens, targets: targets, state: &carried, reset: reset,
          dropout: DropoutNoise(seed: configuration.seed, step: UInt64(part))
        ).mean
      }
    }
    let gradients = ComputePrecision.$current.withValue(configuration.precision) {
      tape.gradients(of: loss, for: variables)
    }
    state = train.carriesState ? carried.detached() : model.makeState(batch: configuration.batch)
    return (loss, gradients)
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
  public func save() throws {
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
        let info = try moments.info(name)
        state.layers[i][entry.name] = Tensor(
          try moments.readFloat32(name), shape: info.shape, on: device)
      }
    }
    (step, skips, meanLoss) = (snapshot.step, snapshot.skips, snapshot.meanLoss)
    history = Metrics.read(folder.metrics, through: step)
    do throws(CheckpointError) {
      var text = ""
      for m in history { text += (try? m.line()) ?? "" }
      try AtomicFile.write(text, to: folder.metrics)
    } catch { throw TrainingError.checkpoint(error) }
    return rejected
  }
}
