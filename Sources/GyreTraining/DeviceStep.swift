import GyreLayers
import GyreModels
import GyreRecurrence
import GyreTensors

/// Training steps that a device takes by itself: it decides whether a step is taken and how far its
/// gradients are scaled down, and the host learns of it later. What repeats is recorded once for each
/// shape and queued as a whole from then on.
///
/// What changes from step to step lies in tensors of fixed places: tokens, what the schedule says, the
/// number of the step for dropout, the carried state. A step is recorded when it has queued the same ops
/// twice. One that reads on the host, runs ops there, asks for positions or carries state that grows
/// queues its ops every time, and so does a run of several ranks, whose gradients and losses are added up
/// before the decision, so that all decide alike.
public final class DeviceStep {
  /// How the last step went to the device.
  public enum Way: Sendable, Equatable, CustomStringConvertible {
    case recorded
    /// Op by op, and why; nil while it is not yet known to repeat.
    case ops(String?)

    public var description: String {
      switch self {
      case .recorded: "recorded"
      case .ops(let reason): "op by op" + (reason.map { ": \($0)" } ?? "")
      }
    }
  }

  /// A step that is queued.
  public struct Queued: Sendable {
    fileprivate let read: any PendingRead
    fileprivate let next: ModelState?
    fileprivate let tokens: Int
    /// Whether the state began anew.
    fileprivate let restarts: Bool
    /// More than 0 where a rank wants to stop; nil for a process on its own.
    fileprivate let stop: (any PendingRead)?
    let reports: NewtonReports
  }

  /// What became of a step.
  public struct Outcome: Sendable {
    /// Mean loss in nats, norm of all gradients together.
    public var loss, norm: Double
    public var verdict: StepRule.Verdict
    /// Whether any rank of several wanted to stop before the step.
    var wantsToStop: Bool
    /// Mean loss before the step.
    var meanLoss: Double?
    public var ledger: StepRule.Ledger
  }

  private struct Key: Hashable {
    var counts: [Int]
    var hasReset, isFresh: [Bool]
  }
  private struct Inputs {
    var tokens, targets: Tensor
    var reset: Tensor?
  }
  private final class Plan {
    let inputs: [Inputs]
    /// Whether the state starts anew before each batch.
    let isFresh: [Bool]
    /// What each batch's mean loss counts for among ranks; nil for a process on its own.
    var weights: [Double]?
    var trace: WorkTrace?
    /// Whether two steps left the same trace.
    var repeats = false
    var traces = 0
    var work: (any RecordedWork)?
    var reason: String?
    /// When the plan was last used.
    var age = 0

    init(inputs: [Inputs], isFresh: [Bool]) {
      (self.inputs, self.isFresh) = (inputs, isFresh)
    }
  }

  /// Steps that may be under way when the host asks for the oldest one's outcome.
  public static let lag = 8
  /// Losses that the device's decision takes.
  static let largestAccumulation = 256
  private static let mostTraces = 6
  private static let mostPlans = 8

  private let model: LanguageModel
  private let c: TrainingConfiguration
  private let optimizer: Optimizer
  private let rule: StepRule
  private let carries: Bool
  private let parallel: Parallelism?
  private let share: Share?
  /// Rows of this process's part of a batch.
  private var rows: Int { share?.rows.count ?? c.batch }
  private let ledger, numbers, record, counters: Tensor
  private var plans: [Key: Plan] = [:]
  private var queued = 0
  /// What the next step starts from. Entries of fixed sizes are in memory of their own.
  private(set) var state: ModelState
  /// Whether every entry of the state has a fixed size, so that the device replaces it by itself.
  private let isFixed: Bool
  private let positions = PositionReads()
  /// Whether steps have Newton solves to report on.
  private var hasReports = false
  public private(set) var way = Way.ops(nil)

  /// Whether the device takes such steps with that configuration.
  static func suits(_ device: any Device, _ c: TrainingConfiguration) -> Bool {
    device.repeatsWork && c.optimizer != .ntasgd && c.accumulation <= largestAccumulation
  }

  /// - Parameters:
  ///   - optimizer: of the model's parameters; no rule that averages.
  ///   - carries: whether rows go on where they ended.
  public convenience init(
    _ model: LanguageModel, _ c: TrainingConfiguration, _ optimizer: Optimizer, carries: Bool
  ) {
    self.init(model, c, optimizer, carries: carries, parallel: nil, share: nil)
  }

  /// - Parameters:
  ///   - parallel: the ranks that share rows; nil for a process on its own.
  ///   - share: this rank's.
  init(
    _ model: LanguageModel, _ c: TrainingConfiguration, _ optimizer: Optimizer, carries: Bool,
    parallel: Parallelism?, share: Share?
  ) {
    (self.model, self.c, self.optimizer, self.carries) = (model, c, optimizer, carries)
    (self.parallel, self.share) = (parallel, share)
    let device = model.device
    rule = StepRule(c)
    ledger = .zeros([4], .float64, on: device)
    numbers = .zeros([3 + 2 * (Self.lag + 2)], .float64, on: device)
    record = .zeros([8], .float64, on: device)
    counters = .zeros([c.accumulation], .int64, on: device)
    state = model.makeState(batch: share?.rows.count ?? c.batch)
    isFixed = model.stateSpecs.allSatisfy {
      $0.entries.allSatisfy { if case .cache = $0.kind { false } else { true } }
    }
    start(from: state, StepRule.Ledger())
  }

  /// Goes on from a state and what was remembered.
  func start(from state: ModelState, _ ledger: StepRule.Ledger) {
    plans = [:]
    self.ledger.write(ledger.elements)
    self.state = state
    guard carries else { return }
    for i in state.layers.indices {
      self.state.layers[i] = state.layers[i].owned(on: model.device)
    }
  }

  /// Whether the next step may be queued before this one's outcome is known.
  public var runsAhead: Bool { !hasReports && (!carries || isFixed && !positions.isAny) }

  /// Queues a step.
  ///
  /// - Parameters:
  ///   - step: its number, from 0.
  ///   - schedule: factor on the learning rates.
  ///   - updates: steps that are known to be taken.
  ///   - records: whether the step may be recorded; otherwise its ops are queued.
  ///   - wantsToStop: what the other ranks are told with the step.
  /// - Precondition: as many batches as are averaged; at most `lag` steps before it whose outcome was not
  ///   asked for.
  public func queue(
    _ batches: [Batch], step: Int, schedule: Double, updates: Int, records: Bool = true,
    wantsToStop: Bool = false
  ) -> Queued {
    let plan = plan(for: batches)
    func own(_ values: [Int32]) -> [Int32] { share?.cut(values) ?? values }
    for (batch, inputs) in zip(batches, plan.inputs) {
      inputs.tokens.write(own(batch.tokens))
      inputs.targets.write(own(batch.targets))
      if let reset = inputs.reset, let values = batch.reset { reset.write(own(values)) }
    }
    plan.weights = share.map { share in batches.map { share.weight(of: $0.targets) } }
    let stop = parallel.map { _ in
      Tensor([wantsToStop ? 1 : 0 as Float], shape: [1], on: model.device)
    }
    write(step: step, schedule, updates)
    let tokens = batches.reduce(0) { $0 + $1.tokens.count / c.batch }
    let reports = NewtonReports()
    var next: ModelState?
    if records, parallel == nil, replay(plan) {
      way = .recorded
    } else {
      next = runOps(plan, reports, stop)
      way = .ops(plan.reason)
    }
    hasReports = hasReports || !reports.isEmpty
    queued += 1
    return Queued(
      read: record.queueRead(), next: carries && !isFixed ? next : nil,
      tokens: carries ? tokens : 0, restarts: batches[0].startsAfresh, stop: stop?.queueRead(),
      reports: reports)
  }

  /// Waits for a step's outcome; outcomes are asked for in the order of the steps.
  ///
  /// - Throws: the device's first failure.
  public func outcome(of queued: Queued) throws -> Outcome {
    let values = ElementCoding.doubles(try queued.read.bytes())
    guard values.count == 8, let number = Int(exactly: values[2]),
      let verdict = StepRule.Verdict(rawValue: number)
    else {
      throw TrainingError.configuration("the device gave no record of a step")
    }
    let ledger = StepRule.Ledger(Array(values[4...]))
    let stops = try queued.stop.map { try $0.bytes().contains { $0 != 0 } } ?? false
    if verdict == .taken {
      if let next = queued.next {
        state = next
      } else {
        for i in state.layers.indices {
          if queued.restarts { state.layers[i].tokenCount = 0 }
          state.layers[i].advance(by: queued.tokens)
        }
      }
    }
    return Outcome(
      loss: values[0], norm: values[1], verdict: verdict, wantsToStop: stops,
      meanLoss: verdict == .spike ? values[3] : nil, ledger: ledger)
  }

  // MARK: - What changes from step to step

  private func write(step: Int, _ schedule: Double, _ updates: Int) {
    var values = [schedule, step > c.warmupSteps ? 1 : 0, Double(updates)]
    for t in 1...Self.lag + 2 {
      let (a, b) = optimizer.corrections(after: updates + t)
      values += [a, b]
    }
    numbers.write(values)
    counters.write((0..<c.accumulation).map { Int64(step * c.accumulation + $0) })
  }

  private func plan(for batches: [Batch]) -> Plan {
    let key = Key(
      counts: batches.map(\.tokens.count), hasReset: batches.map { $0.reset != nil },
      isFresh: batches.map { !carries || $0.startsAfresh })
    defer { plans[key]?.age = queued }
    if let known = plans[key] { return known }
    if plans.count == Self.mostPlans,
      let oldest = plans.min(by: { $0.value.age < $1.value.age })?.key
    {
      plans[oldest] = nil
    }
    let plan = Plan(
      inputs: batches.map { batch in
        let spec = TensorSpec([rows, batch.tokens.count / c.batch], .int32)
        func tensor() -> Tensor { Tensor(emptyWith: spec, on: model.device) }
        return Inputs(
          tokens: tensor(), targets: tensor(), reset: batch.reset == nil ? nil : tensor())
      }, isFresh: key.isFresh)
    plans[key] = plan
    return plan
  }

  // MARK: - Recording

  private func replay(_ plan: Plan) -> Bool {
    if let work = plan.work {
      if work.replay() { return true }
      // Its memory is in other hands: once op by op, then it is recorded again.
      plan.work = nil
      return false
    }
    guard plan.repeats, let trace = plan.trace else { return false }
    do throws(DeviceError) {
      let work = try model.device.record(repeating: trace) {
        _ = run(plan, NewtonReports(), nil)
      }
      if work.replay() {
        plan.work = work
        return true
      }
      plan.reason = "its memory is taken as soon as it is recorded"
    } catch { plan.reason = "\(error)" }
    plan.repeats = false
    return false
  }

  private func runOps(
    _ plan: Plan, _ reports: NewtonReports, _ stop: Tensor?
  ) -> ModelState {
    var next = state
    let ops = {
      next = PositionReads.$current.withValue(self.positions) { self.run(plan, reports, stop) }
    }
    if parallel != nil {
      plan.reason = "several ranks"
      ops()
      return next
    }
    guard !plan.repeats, plan.traces < Self.mostTraces else {
      ops()
      return next
    }
    plan.traces += 1
    let trace = model.device.trace(ops)
    plan.reason =
      trace.obstacle
      ?? (reports.isEmpty ? nil : "reports on Newton's method")
      ?? (carries && !isFixed ? "state that grows" : nil)
      ?? (carries && positions.isAny ? "positions in the carried sequence" : nil)
    if plan.reason != nil {
      plan.traces = Self.mostTraces
    } else if let last = plan.trace {
      plan.reason = trace.difference(from: last)
      plan.repeats = plan.reason == nil
    }
    plan.trace = trace
    return next
  }

  /// The step's ops: the same whether they run or are recorded. Returns the state after it.
  private func run(_ plan: Plan, _ reports: NewtonReports, _ stop: Tensor?) -> ModelState {
    var next = state
    var sums = GradientSums(count: model.parameters.count)
    var losses: [Tensor] = []
    let early = parallel.map { EarlySums($0.communicator) }
    for (part, inputs) in plan.inputs.enumerated() {
      if plan.isFresh[part] { next = model.makeState(batch: rows) }
      let counter = counters.aliased(as: [1], byteOffset: counters.byteOffset + 8 * part)
      let loss = NewtonReports.$current.withValue(reports) {
        model.loss(
          inputs.tokens, targets: inputs.targets, reset: inputs.reset, state: &next,
          keepsState: carries, dropout: DropoutNoise(seed: c.seed, step: counter),
          precision: c.precision,
          weight: plan.weights?[part], gradients: &sums,
          whenDone: part == plan.inputs.count - 1 ? early?.add : nil)
      }
      losses.append(loss)
    }
    let device = model.device
    var gradients = sums.tensors
    if let parallel, let early {
      early.finish()
      // Sums over ranks are float32; a device may give bfloat16.
      gradients = gradients.map { $0?.cast(to: .float32) }
      losses = losses.map { $0.cast(to: .float32) }
      let rest = gradients.enumerated().compactMap { early.places.contains($0) ? nil : $1 }
      parallel.communicator.sum(rest + losses + (stop.map { [$0] } ?? []))
    }
    let squares = apply(SumOfSquares(), gradients.compactMap(\.self))[0]
    let factor = Tensor(emptyWith: TensorSpec([1]), on: device)
    let control = Tensor(emptyWith: TensorSpec([4], .float64), on: device)
    device.launch(
      KernelCall(
        op: StepDecision(rule), inputs: [squares, numbers, ledger] + losses,
        outputs: [factor, control, record, ledger]))
    ComputePrecision.$current.withValue(c.precision) {
      optimizer.step(gradients, factor: factor, control: control)
    }
    if carries, isFixed { replace(by: next, control) }
    return next
  }

  /// The state becomes `next` where the step is taken.
  private func replace(by next: ModelState, _ control: Tensor) {
    var (old, new): ([Tensor], [Tensor]) = ([], [])
    for (layer, after) in zip(state.layers, next.layers) {
      for (name, tensor) in layer.tensors {
        old.append(tensor)
        new.append(after.value(name, on: model.device).cast(to: tensor.dtype))
      }
    }
    guard !old.isEmpty else { return }
    // All are replaced at once: what lies in another one's place is copied before.
    let places = Set(old.compactMap { $0.buffer.map(ObjectIdentifier.init) })
    for i in new.indices {
      guard let place = new[i].buffer.map(ObjectIdentifier.init), places.contains(place),
        old[i].buffer.map(ObjectIdentifier.init) != place
      else { continue }
      new[i] = new[i].affine(1)
    }
    model.device.launch(
      KernelCall(op: StateUpdate(), inputs: [control] + old + new, outputs: old))
  }
}

extension StepRule {
  init(_ c: TrainingConfiguration) {
    self.init(
      accumulation: c.accumulation, clipNorm: c.clipNorm, spikeFactor: c.spikeFactor,
      maximumSkips: c.maximumSkips)
  }
}
