import GyreLayers
import GyreModels
import GyreTensors
import GyreTraining

/// Training steps that a device takes by itself: recorded ones give the bits of ops queued one by one,
/// and a step that must not be taken changes nothing.
enum CheckTraining {
  private struct Subject: Sendable {
    var name: String
    var pattern: [String]
    var change: @Sendable (inout ModelConfiguration, inout TrainingConfiguration) -> Void = {
      _, _ in
    }
    var carries = true
  }

  private static let subjects = [
    Subject(
      name: "delta rule and dropout", pattern: ["gated_delta_net", "min_gru"],
      change: { model, training in
        model.embeddingDropout = 0.2
        training.accumulation = 2
      }),
    Subject(name: "RWKV-7", pattern: ["rwkv7"]),
    Subject(
      name: "Mamba-2 by Muon", pattern: ["mamba2"], change: { $1.optimizer = .muon }),
    Subject(
      name: "attention", pattern: ["softmax_attention"], change: { $1.optimizer = .sgd },
      carries: false),
  ]

  static func cases() -> [ConformanceCase] {
    subjects.flatMap { subject in
      [ComputePrecision.float32, .bfloat16].map { precision in
        ConformanceCase(
          "training step \(subject.name) \(precision.rawValue)", [.model, .small]
        ) { check in
          try steps(subject, precision, &check)
        }
      }
    } + [
      ConformanceCase("training step skipped", [.model, .small]) { check in
        try skipping(&check)
      }
    ]
  }

  private static func configurations(
    _ subject: Subject, _ precision: ComputePrecision
  ) -> (ModelConfiguration, TrainingConfiguration) {
    var model = ModelConfiguration()
    (model.vocabulary, model.width, model.layers) = (64, 32, 2)
    model.pattern = subject.pattern
    let heads: [String: [String: JSONValue]] = [
      "gated_delta_net": ["headSize": .integer(16), "heads": .integer(2)],
      "mamba2": ["headSize": .integer(16), "stateSize": .integer(16)],
      "rwkv7": ["headSize": .integer(16)],
    ]
    for kind in subject.pattern { model.mixers[kind] = heads[kind].map { .object($0) } }
    var training = TrainingConfiguration()
    (training.batch, training.length, training.steps) = (2, 24, 10)
    (training.warmupSteps, training.precision) = (3, precision)
    subject.change(&model, &training)
    return (model, training)
  }

  private static func makeStep(
    _ subject: Subject, _ precision: ComputePrecision, _ check: Check
  ) throws -> (DeviceStep, LanguageModel, TrainingConfiguration) {
    let (c, training) = configurations(subject, precision)
    let model = try LanguageModel(
      c, source: PerturbedParameters(seed: check.seed, device: check.device), device: check.device
    )
    let optimizer = Optimizer(model.parameters, training)
    return (
      DeviceStep(model, training, optimizer, carries: subject.carries), model, training
    )
  }

  /// Batches of step `n`, the third with documents that begin inside.
  private static func batches(
    _ n: Int, _ c: TrainingConfiguration, _ check: Check
  ) -> [Batch] {
    (0..<c.accumulation).map { part in
      let count = c.batch * c.length
      let generator = CounterGenerator(seed: check.seed, name: "batch \(n) \(part)")
      let drawn = (0...UInt64(count)).map { Int32(generator.integer($0, below: 64)) }
      var batch = Batch(
        tokens: Array(drawn[..<count]), targets: Array(drawn[1...]), startsAfresh: n == 0)
      if n % 4 == 2 { batch.reset = (0..<count).map { $0 % c.length == 7 ? 1 : 0 } }
      return batch
    }
  }

  private static func steps(
    _ subject: Subject, _ precision: ComputePrecision, _ check: inout Check
  ) throws {
    func run(records: Bool) throws -> (found: [Double], parameters: [[Double]], step: DeviceStep) {
      let (step, model, c) = try makeStep(subject, precision, check)
      let schedule = Schedule(c)
      var found: [Double] = []
      var waiting: [DeviceStep.Queued] = []
      var updates = 0
      for n in 0..<2 * c.steps {
        waiting.append(
          step.queue(
            batches(n, c, check), step: n, schedule: schedule.factor(n), updates: updates,
            records: records))
        while waiting.count > (n == 2 * c.steps - 1 ? 0 : DeviceStep.lag) {
          let outcome = try step.outcome(of: waiting.removeFirst())
          updates = outcome.ledger.updates
          found += [outcome.loss, outcome.norm, Double(outcome.verdict.rawValue)]
        }
      }
      return (found, try model.parameters.map { try $0.value.doubles() }, step)
    }
    let (queued, recorded) = (try run(records: false), try run(records: true))
    check.finite("losses and norms", queued.found)
    check.identical("losses and norms", recorded.found, queued.found)
    check.identical(
      "parameters", Array(recorded.parameters.joined()), Array(queued.parameters.joined()))
    guard check.device.repeatsWork else { return }
    check.require("\(recorded.step.way)", recorded.step.way == .recorded)
  }

  /// A loss that is not a number leaves parameters alone, ten times, and the next step is taken.
  private static func skipping(_ check: inout Check) throws {
    let (step, model, c) = try makeStep(Self.subjects[1], .float32, check)
    func queue(_ n: Int, _ updates: Int) throws -> DeviceStep.Outcome {
      try step.outcome(
        of: step.queue(batches(n, c, check), step: n, schedule: 1, updates: updates))
    }
    func values() throws -> [[Double]] { try model.parameters.map { try $0.value.doubles() } }
    for n in 0..<6 { check.require("step \(n)", try queue(n, n).verdict == .taken) }
    let before = try values()
    let bad = model.parameters[0].value
    let kept = bad.affine(1)
    bad.fill(.nan)
    for n in 6..<9 { check.require("step \(n)", try queue(n, 6).verdict == .loss) }
    bad.assign(kept)
    check.identical(
      "parameters after", Array(try values().joined()), Array(before.joined()))
    let after = try queue(9, 6)
    check.require("a step again", after.verdict == .taken)
    check.require("seven updates", after.ledger.updates == 7 && after.ledger.skips == 0)
  }
}
