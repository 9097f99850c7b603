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
  public private(set) var updateCount = 0

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

  /// One update.
  ///
  /// - Parameters:
  ///   - gradients: one a parameter; nil leaves the parameter alone.
  ///   - factor: `[1]`, multiplies all gradients (clipping).
  ///   - schedule: factor on the learning rates.
  public func step(_ gradients: [Tensor?], factor: Tensor, schedule: Double) {
    updateCount += 1
    for (slot, gradient) in zip(slots, gradients) {
      guard let gradient else { continue }
      let decay = slot.parameter.decay == .matrix ? configuration.weightDecay : 0
      let rate = schedule * slot.parameter.learningRateScale
      let moments = slot.moments.map(\.tensor)
      switch slot.rule {
      case .adamw: adamw(slot.parameter, gradient, factor, moments, rate, decay)
      case .sgd: sgd(slot.parameter, gradient, factor, moments, rate, decay)
      case .muon: muon(slot.parameter, gradient, factor, moments, rate, decay)
      case .averaged:
        let op = MomentumStep(
          learningRate: configuration.learningRate * rate, momentum: 0, weightDecay: decay,
          nesterov: false)
        update(op, gradient, factor, [slot.parameter.value, moments[0]])
      }
    }
    if averages.isOn { average() }
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
      let one = Tensor.full(1, [1], on: p.device)
      update(op, mean - p, one, [mean, .zeros(p.shape, on: p.device)])
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
    _ p: Parameter, _ gradient: Tensor, _ factor: Tensor, _ moments: [Tensor], _ rate: Double,
    _ decay: Double
  ) {
    let c = configuration
    let op = AdamWStep(
      learningRate: c.learningRate * rate, beta1: c.beta1, beta2: c.beta2, epsilon: c.epsilon,
      weightDecay: decay, correction1: 1 - Functions.pow(c.beta1, Double(updateCount)),
      correction2: 1 - Functions.pow(c.beta2, Double(updateCount)))
    update(op, gradient, factor, [p.value] + moments)
  }

  private func sgd(
    _ p: Parameter, _ gradient: Tensor, _ factor: Tensor, _ moments: [Tensor], _ rate: Double,
    _ decay: Double
  ) {
    let op = MomentumStep(
      learningRate: configuration.learningRate * rate, momentum: configuration.momentum,
      weightDecay: decay, nesterov: configuration.nesterov)
    update(op, gradient, factor, [p.value] + moments)
  }

  /// Momentum whose step is made orthogonal (Jordan and others, "Muon: an optimizer for hidden
  /// layers in neural networks", 2024): W ← W − η(λW + √max(1, rows/columns) · NS₅(g + μb)).
  private func muon(
    _ p: Parameter, _ gradient: Tensor, _ factor: Tensor, _ moments: [Tensor], _ rate: Double,
    _ decay: Double
  ) {
    let c = configuration
    let g = gradient * factor
    // The momentum op with a rate of zero is the buffer's update alone.
    let accumulate = MomentumStep(
      learningRate: 0, momentum: c.momentum, weightDecay: 0, nesterov: false)
    update(accumulate, gradient, factor, [p.value] + moments)
    let direction = c.nesterov ? g + moments[0] * c.momentum : moments[0]
    let (rows, columns) = (p.shape[0], p.shape[1])
    let scale = max(1, Double(rows) / Double(columns)).squareRoot()
    let step = Optimizer.orthogonalized(direction) * scale
    let apply = MomentumStep(
      learningRate: c.muonLearningRate * rate, momentum: 0, weightDecay: decay, nesterov: false)
    let one = Tensor.full(1, [1], on: step.device)
    update(apply, step, one, [p.value, .zeros(p.shape, on: step.device)])
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

  private func update(_ op: some Op, _ gradient: Tensor, _ factor: Tensor, _ values: [Tensor]) {
    gradient.device.launch(
      KernelCall(op: op, inputs: [gradient, factor] + values, outputs: values))
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
