/// When a training step is taken and how far its gradients are scaled down. The same arithmetic in
/// Double on the host and on devices, so that both decide alike.
public struct StepRule: Sendable, Hashable {
  /// Batches whose gradients are averaged.
  public var accumulation: Int
  /// Largest norm of all gradients together; nil for no clipping.
  public var clipNorm: Double?
  /// A loss of more than this times its running mean skips the step; nil never does.
  public var spikeFactor: Double?
  /// Skipped steps in a row after which no more is taken.
  public var maximumSkips: Int

  public init(accumulation: Int, clipNorm: Double?, spikeFactor: Double?, maximumSkips: Int) {
    (self.accumulation, self.clipNorm) = (accumulation, clipNorm)
    (self.spikeFactor, self.maximumSkips) = (spikeFactor, maximumSkips)
  }

  public enum Verdict: Int, Sendable {
    case taken, loss, norm, spike
    /// Too many were skipped before.
    case stopped
  }

  /// What is remembered from step to step.
  public struct Ledger: Sendable, Hashable {
    /// Running mean of the losses of the steps taken.
    public var meanLoss: Double?
    /// Steps taken: t of AdamW's bias correction.
    public var updates: Int
    /// Steps skipped in a row.
    public var skips: Int

    public init(meanLoss: Double? = nil, updates: Int = 0, skips: Int = 0) {
      (self.meanLoss, self.updates, self.skips) = (meanLoss, updates, skips)
    }

    /// As `StepDecision` keeps it.
    public var elements: [Double] {
      [meanLoss ?? 0, meanLoss == nil ? 0 : 1, Double(updates), Double(skips)]
    }
    package init(_ e: some Collection<Double>) {
      let e = Array(e)
      func count(_ x: Double) -> Int { Int(exactly: x) ?? 0 }
      self.init(meanLoss: e[1] != 0 ? e[0] : nil, updates: count(e[2]), skips: count(e[3]))
    }
  }

  /// Decides a step and writes it down.
  ///
  /// - Parameter watchesSpikes: false in the warm-up.
  public func decide(
    loss: Double, norm: Double, watchesSpikes: Bool, _ ledger: inout Ledger
  ) -> Verdict {
    var verdict = Verdict.taken
    if let factor = spikeFactor, let mean = ledger.meanLoss, watchesSpikes, loss > factor * mean {
      verdict = .spike
    }
    if !norm.isFinite { verdict = .norm }
    if !loss.isFinite { verdict = .loss }
    if ledger.skips >= maximumSkips { verdict = .stopped }
    guard verdict == .taken else {
      ledger.skips += 1
      return verdict
    }
    ledger.meanLoss = ledger.meanLoss.map { 0.98 * $0 + 0.02 * loss } ?? loss
    ledger.updates += 1
    ledger.skips = 0
    return verdict
  }

  /// What multiplies the sums of gradients.
  public func factor(norm: Double) -> Double {
    let clip = clipNorm.map { norm > $0 ? $0 / norm : 1 } ?? 1
    return clip / Double(accumulation)
  }
}

/// What updates read of a decision: four numbers in float64.
package struct StepControl: Sendable {
  package let isTaken: Bool
  /// Schedule's factor on learning rates.
  package let schedule: Double
  package let correction1, correction2: Double

  package init(_ e: some Collection<Double>) {
    let e = Array(e)
    (isTaken, schedule) = (e[0] != 0, e[1])
    (correction1, correction2) = (e[2], e[3])
  }

  /// In host memory; nil elsewhere.
  package init?(_ t: Tensor) {
    guard t.dtype == .float64, t.elementCount == 4,
      let p = t.hostAddress?.assumingMemoryBound(to: Double.self)
    else { return nil }
    self.init(UnsafeBufferPointer(start: p, count: 4))
  }

  package func rate(_ highest: Double, _ scale: Double) -> Double { highest * (schedule * scale) }

  /// A case of an update that is taken and one that is not.
  static func cases(_ make: (String, TestInput) -> OpCase) -> [OpCase] {
    [("taken", 1.0), ("skipped", 0)].map { label, taken in
      make(
        label,
        TestInput([4], .elements([taken, 0.25, 0.19, 0.0975]), differentiable: false)
          .stored(as: .float64))
    }
  }
}

/// `StepRule` where the gradients are, so that nobody waits for the host.
///
/// Inputs: Σ‖g‖² `[1]`; the host's numbers for this step in float64: the schedule's factor, whether spikes
/// are watched for, a count of updates u, and 1 − β₁ᵗ, 1 − β₂ᵗ for t = u + 1, u + 2, …; the ledger in
/// float64 `[4]`; the loss of each batch, `[1]`.
/// Outputs: the factor on gradients `[1]`; the control in float64 `[4]`: taken, schedule, 1 − β₁ᵗ,
/// 1 − β₂ᵗ; a record in float64 `[8]`: loss, norm, verdict, mean loss before (0 for none), the ledger; the
/// ledger, which may be the same tensor.
public struct StepDecision: Op {
  public static let name = "step_decision"
  public let rule: StepRule

  public init(_ rule: StepRule) { self.rule = rule }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(i.count == 3 + rule.accumulation, "step_decision: \(i.count - 3) losses")
    return [
      TensorSpec([1]), TensorSpec([4], .float64), TensorSpec([8], .float64),
      TensorSpec([4], .float64),
    ]
  }

  public func reference(_ a: inout HostArguments) {
    let (numbers, count) = (a.inputs[1], Double(rule.accumulation))
    var ledger = StepRule.Ledger(a.inputs[2])
    let loss = a.inputs[3...].reduce(0) { $0 + $1[0] } / count
    let norm = a.inputs[0][0].squareRoot() / count
    let before = ledger.meanLoss
    let verdict = rule.decide(
      loss: loss, norm: norm, watchesSpikes: numbers[1] != 0, &ledger)
    let last = (numbers.count - 3) / 2 - 1
    let place = 3 + 2 * min(max(ledger.updates - Int(numbers[2]) - 1, 0), last)
    a.outputs[0] = [rule.factor(norm: norm)]
    a.outputs[1] = [verdict == .taken ? 1 : 0, numbers[0], numbers[place], numbers[place + 1]]
    a.outputs[3] = ledger.elements
    a.outputs[2] = [loss, norm, Double(verdict.rawValue), before ?? 0] + ledger.elements
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }

  public static let cases: [OpCase] = [
    ("first", 1.0, [0.0, 0, 0, 2]), ("clipped", 40.0, [2.5, 1, 1, 0]),
    ("spike", 1.0, [0.5, 1, 1, 0]), ("stopped", 1.0, [2.5, 1, 1, 3]),
  ].map { label, squares, ledger in
    func input(_ values: [Double]) -> TestInput {
      TestInput([values.count], .elements(values), differentiable: false).stored(as: .float64)
    }
    return OpCase(
      label,
      StepDecision(
        StepRule(accumulation: 2, clipNorm: 1, spikeFactor: 3, maximumSkips: 3)),
      [
        TestInput([1], .constant(squares), differentiable: false),
        input([0.7, 1, 0, 0.1, 0.05, 0.19, 0.0975, 0.271, 0.142625]), input(ledger),
        TestInput([1], .constant(1.75), differentiable: false),
        TestInput([1], .constant(2.125), differentiable: false),
      ])
  }
}

/// Replaces tensors by new ones where a step is taken.
///
/// Inputs: `StepDecision`'s control, the old tensors, as many new ones. Outputs: the old ones' place.
public struct StateUpdate: Op {
  public static let name = "state_update"
  public init() {}

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] { Array(i[1..<(i.count + 1) / 2]) }

  public func reference(_ a: inout HostArguments) {
    let first = StepControl(a.inputs[0]).isTaken ? 1 + a.outputs.count : 1
    for i in a.outputs.indices { a.outputs[i] = a.inputs[first + i] }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }

  public static let cases = StepControl.cases { label, control in
    OpCase(
      label, StateUpdate(),
      [control]
        + [[3, 5, 7], [4096], [3, 5, 7], [4096]].map { TestInput($0, differentiable: false) })
  }
}
