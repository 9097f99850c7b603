import GyreLayers
import GyreTensors

/// Updates parameters in place from their gradients and keeps what the update rule remembers.
///
/// One rule a parameter: AdamW, SGD with momentum, or Muon for the matrices of hidden layers with
/// AdamW for all others; or SGD whose parameters are averaged once it stops getting better (NT-ASGD).
/// Weight decay reaches parameters with `WeightDecay.matrix` only.
public final class Optimizer {
  enum Rule: Sendable { case adamw, sgd, muon, averaged }
  private struct Slot {
    var parameter: Parameter
    var rule: Rule
    /// Moments by name, made at the first step.
    var moments: [(name: String, tensor: Tensor)]
  }
  private let configuration: TrainingConfiguration
  private var slots: [Slot]
  /// Updates done: t of AdamW's bias correction.
  public internal(set) var updateCount = 0

  public init(_ parameters: [Parameter], _ configuration: TrainingConfiguration) {
    self.configuration = configuration
    slots = parameters.map { parameter in
      let rule = Optimizer.rule(parameter, configuration.optimizer)
      let names =
        switch rule {
        case .adamw: ["m", "v"]
        case .sgd, .muon: ["momentum"]
        case .averaged: ["gradient", "average"]
        }
      return Slot(
        parameter: parameter, rule: rule,
        moments: names.map { ($0, .zeros(parameter.shape, on: parameter.value.device)) })
    }
  }

  private static func rule(
    _ parameter: Parameter, _ kind: TrainingConfiguration.OptimizerKind
  ) -> Rule {
    switch kind {
    case .adamw: return .adamw
    case .sgd: return .sgd
    case .ntasgd: return .averaged
    case .muon:
      let isHidden =
        parameter.shape.rank == 2 && parameter.decay == .matrix
        && parameter.name.hasPrefix("layers.")
      return isHidden ? .muon : .adamw
    }
  }

  /// What an update goes by: the factor on gradients and learning rates, from the host or, with a
  /// control, from `StepDecision`.
  private struct Pace {
    /// `[1]`, multiplies all gradients (clipping).
    var factor: Tensor
    /// Of the schedule; 1 with a control.
    var schedule = 1.0
    var control: Tensor?

    /// The learning rate for the op and what a control multiplies it by.
    func rate(_ highest: Double, _ scale: Double) -> (rate: Double, scale: Double) {
      control == nil ? (highest * (schedule * scale), 1) : (highest, scale)
    }
  }

  /// One update.
  ///
  /// - Parameters:
  ///   - gradients: one a parameter; nil leaves the parameter alone.
  ///   - factor: `[1]`, multiplies all gradients (clipping).
  ///   - schedule: factor on the learning rates.
  public func step(_ gradients: [Tensor?], factor: Tensor, schedule: Double) {
    updateCount += 1
    step(gradients, Pace(factor: factor, schedule: schedule))
    if averages.isOn { average() }
  }

  /// One update if the device finds that the step is taken. `updateCount` is for the caller to follow.
  ///
  /// - Precondition: the rule is none that averages.
  func step(_ gradients: [Tensor?], factor: Tensor, control: Tensor) {
    step(gradients, Pace(factor: factor, control: control))
  }

  private func step(_ gradients: [Tensor?], _ pace: Pace) {
    for (slot, gradient) in zip(slots, gradients) {
      guard let gradient else { continue }
      let decay = slot.parameter.decay == .matrix ? configuration.weightDecay : 0
      let moments = slot.moments.map(\.tensor)
      switch slot.rule {
      case .adamw: adamw(slot.parameter, gradient, pace, moments, decay)
      case .sgd: sgd(slot.parameter, gradient, pace, moments, decay)
      case .muon: muon(slot.parameter, gradient, pace, moments, decay)
      case .averaged:
        let op = MomentumStep(
          learningRate: pace.rate(
            configuration.learningRate, slot.parameter.learningRateScale
          ).rate, momentum: 0, weightDecay: decay, nesterov: false)
        update(op, gradient, pace, [slot.parameter.value, moments[0]])
      }
    }
  }

  /// 1 − β₁ᵗ and 1 − β₂ᵗ of AdamW's update t.
  func corrections(after t: Int) -> (Double, Double) {
    let c = configuration
    return (1 - Functions.pow(c.beta1, Double(t)), 1 - Functions.pow(c.beta2, Double(t)))
  }

  // MARK: - Averages

  /// Where averaging stands.
  public struct Averages: Codable, Sendable, Hashable {
    /// Parameters in the average so far; nil while nothing is averaged.
    public var count: Int?
    /// Held-out scores so far.
    public var scores: [Double] = []
    var isOn: Bool { count != nil }
  }
  public internal(set) var averages = Averages()

  /// Non-monotonically triggered averaging (Merity, Keskar and Socher, 2017): starts when a held-out
  /// score is worse than the best of those at least `averagingPatience` evaluations ago.
  public func observe(validation score: Double) {
    guard configuration.optimizer == .ntasgd else { return }
    let old = averages.scores.dropLast(configuration.averagingPatience)
    if !averages.isOn, let best = old.min(), score > best { averages.count = 0 }
    averages.scores.append(score)
  }

  /// Adds the parameters to their mean: a ← a + (p − a) / n.
  private func average() {
    let n = (averages.count ?? 0) + 1
    averages.count = n
    for slot in slots where slot.rule == .averaged {
      let (p, mean) = (slot.parameter.value, slot.moments[1].tensor)
      let op = MomentumStep(
        learningRate: 1 / Double(n), momentum: 0, weightDecay: 0, nesterov: false)
      let pace = Pace(factor: .full(1, [1], on: p.device))
      update(op, mean - p, pace, [mean, .zeros(p.shape, on: p.device)])
    }
  }

  /// Runs `body` while the parameters are their averages, where there are any.
  public func withAverages<R>(_ body: () throws -> R) rethrows -> R {
    guard let count = averages.count, count > 0 else { return try body() }
    let raw = slots.map(\.parameter.value)
    for slot in slots where slot.rule == .averaged { slot.parameter.value = slot.moments[1].tensor }
    defer { for (slot, value) in zip(slots, raw) { slot.parameter.value = value } }
    return try body()
  }

  private func adamw(
    _ p: Parameter, _ gradient: Tensor, _ pace: Pace, _ moments: [Tensor], _ decay: Double
  ) {
    let c = configuration
    let (rate, scale) = pace.rate(c.learningRate, p.learningRateScale)
    let (first, second) = pace.control == nil ? corrections(after: updateCount) : (1, 1)
    var op = AdamWStep(
      learningRate: rate, beta1: c.beta1, beta2: c.beta2, epsilon: c.epsilon, weightDecay: decay,
      correction1: first, correction2: second)
    op.rateScale = scale
    update(op, gradient, pace, [p.value] + moments)
  }

  private func sgd(
    _ p: Parameter, _ gradient: Tensor, _ pace: Pace, _ moments: [Tensor], _ decay: Double
  ) {
    let (rate, scale) = pace.rate(configuration.learningRate, p.learningRateScale)
    var op = MomentumStep(
      learningRate: rate, momentum: configuration.momentum, weightDecay: decay,
      nesterov: configuration.nesterov)
    op.rateScale = scale
    update(op, gradient, pace, [p.value] + moments)
  }

  /// Momentum whose step is made orthogonal (Jordan and others, "Muon: an optimizer for hidden
  /// layers in neural networks", 2024): W ← W − η(λW + √max(1, rows/columns) · NS₅(g + μb)).
  private func muon(
    _ p: Parameter, _ gradient: Tensor, _ pace: Pace, _ moments: [Tensor], _ decay: Double
  ) {
    let c = configuration
    let g = gradient * pace.factor
    // The momentum op with a rate of zero is the buffer's update alone.
    let accumulate = MomentumStep(
      learningRate: 0, momentum: c.momentum, weightDecay: 0, nesterov: false)
    update(accumulate, gradient, pace, [p.value] + moments)
    let direction = c.nesterov ? g + moments[0] * c.momentum : moments[0]
    let (rows, columns) = (p.shape[0], p.shape[1])
    let shape = max(1, Double(rows) / Double(columns)).squareRoot()
    let step = Optimizer.orthogonalized(direction) * shape
    let (rate, scale) = pace.rate(c.muonLearningRate, p.learningRateScale)
    var apply = MomentumStep(
      learningRate: rate, momentum: 0, weightDecay: decay, nesterov: false)
    apply.rateScale = scale
    var whole = pace
    whole.factor = .full(1, [1], on: step.device)
    update(apply, step, whole, [p.value, .zeros(p.shape, on: step.device)])
  }

  /// Five steps of the Newton–Schulz iteration X ← aX + (bA + cA²)X, A = XXᵀ, which drives the
  /// singular values of X/‖X‖ to about one.
  static func orthogonalized(_ matrix: Tensor) -> Tensor {
    let (a, b, c) = (3.4445, -4.7750, 2.0315)
    let isTall = matrix.shape[0] > matrix.shape[1]
    var x = isTall ? matrix.permuted([1, 0]) : matrix
    let norm = apply(SumOfSquares(), [x])[0].unary(.sqrt) + 1e-7
    x = x / norm
    for _ in 0..<5 {
      let gram = x.matmul(x, transposingRight: true)
      let polynomial = gram * b + gram.matmul(gram) * c
      x = x * a + polynomial.matmul(x)
    }
    return isTall ? x.permuted([1, 0]) : x
  }

  private func update(_ op: some Op, _ gradient: Tensor, _ pace: Pace, _ values: [Tensor]) {
    gradient.device.launch(
      KernelCall(
        op: op, inputs: [gradient, pace.factor] + values + (pace.control.map { [$0] } ?? []),
        outputs: values))
  }

  // MARK: - Snapshot

  /// All moments under `parameter#moment`.
  public var tensors: [(name: String, tensor: Tensor)] {
    slots.flatMap { slot in slot.moments.map { (slot.parameter.name + "#" + $0.name, $0.tensor) } }
  }

  /// Puts back what `tensors` and `updateCount` gave.
  public func restore(updateCount: Int, _ value: (String, Shape) throws -> Tensor) rethrows {
    self.updateCount = updateCount
    for i in slots.indices {
      for j in slots[i].moments.indices {
        let name = slots[i].parameter.name + "#" + slots[i].moments[j].name
        slots[i].moments[j].tensor = try value(name, slots[i].parameter.shape)
      }
    }
  }
}
