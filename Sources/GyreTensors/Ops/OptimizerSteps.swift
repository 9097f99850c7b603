/// AdamW in one pass, in place (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019):
///
///     m ← β₁m + (1−β₁)g    v ← β₂v + (1−β₂)g²    p ← p − η(λp + m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε))
///
/// with g multiplied by the one element of the second input (the clipping factor).
/// Inputs: gradient, factor `[1]`, p, m, v and perhaps `StepDecision`'s control, which then says whether
/// anything changes, what multiplies η and what 1 − βᵗ is. Outputs: p, m, v, the same tensors.
public struct AdamWStep: Op {
  public static let name = "adamw"
  public var learningRate, beta1, beta2, epsilon, weightDecay: Double
  /// 1 − β₁ᵗ and 1 − β₂ᵗ; unused with a control.
  public var correction1, correction2: Double
  /// With a control: a factor on η beside the control's.
  public var rateScale = 1.0

  public init(
    learningRate: Double, beta1: Double, beta2: Double, epsilon: Double, weightDecay: Double,
    correction1: Double, correction2: Double
  ) {
    self.learningRate = learningRate
    self.beta1 = beta1
    self.beta2 = beta2
    self.epsilon = epsilon
    self.weightDecay = weightDecay
    self.correction1 = correction1
    self.correction2 = correction2
  }

  /// The same with what a control says put in.
  package func controlled(by control: StepControl) -> AdamWStep {
    var op = self
    op.learningRate = control.rate(learningRate, rateScale)
    (op.correction1, op.correction2) = (control.correction1, control.correction2)
    return op
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] { [i[2], i[3], i[4]] }
  public func reference(_ a: inout HostArguments) {
    guard a.inputs.count == 6 else { return update(&a) }
    let control = StepControl(a.inputs[5])
    if control.isTaken { return controlled(by: control).update(&a) }
    for i in 0..<3 { a.outputs[i] = a.inputs[2 + i] }
  }

  private func update(_ a: inout HostArguments) {
    for i in a.inputs[0].indices {
      let g = a.inputs[0][i] * a.inputs[1][0]
      let m = beta1 * a.inputs[3][i] + (1 - beta1) * g
      let v = beta2 * a.inputs[4][i] + (1 - beta2) * g * g
      let p = a.inputs[2][i]
      let step = m / correction1 / ((v / correction2).squareRoot() + epsilon)
      a.outputs[0][i] = p - learningRate * (weightDecay * p + step)
      a.outputs[1][i] = m
      a.outputs[2][i] = v
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases =
    [
      OpCase(
        "adamw",
        AdamWStep(
          learningRate: 0.01, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1,
          correction1: 0.1, correction2: 0.05),
        [
          TestInput([7, 41], differentiable: false),
          TestInput([1], .constant(0.5), differentiable: false),
          TestInput([7, 41], differentiable: false), TestInput([7, 41], differentiable: false),
          TestInput([7, 41], .uniform(0, 1), differentiable: false),
        ])
    ]
    + StepControl.cases { label, control in
      OpCase(
        label,
        AdamWStep(
          learningRate: 0.01, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1,
          correction1: 1, correction2: 1),
        [
          TestInput([9000], differentiable: false),
          TestInput([1], .constant(0.5), differentiable: false),
          TestInput([9000], differentiable: false), TestInput([9000], differentiable: false),
          TestInput([9000], .uniform(0, 1), differentiable: false), control,
        ])
    }
}

/// SGD with momentum in place: g ← factor·g + λp, b ← μb + g, p ← p − ηb, or with Nesterov
/// p − η(g + μb). Inputs: gradient, factor `[1]`, p, b and perhaps `StepDecision`'s control, which then
/// says whether anything changes and what multiplies η. Outputs: p, b. Momentum 0 leaves b = g.
public struct MomentumStep: Op {
  public static let name = "momentum"
  public var learningRate, momentum, weightDecay: Double
  public var nesterov: Bool
  /// With a control: a factor on η beside the control's.
  public var rateScale = 1.0

  public init(learningRate: Double, momentum: Double, weightDecay: Double, nesterov: Bool) {
    self.learningRate = learningRate
    self.momentum = momentum
    self.weightDecay = weightDecay
    self.nesterov = nesterov
  }
  /// The same with what a control says put in.
  package func controlled(by control: StepControl) -> MomentumStep {
    var op = self
    op.learningRate = control.rate(learningRate, rateScale)
    return op
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] { [i[2], i[3]] }
  public func reference(_ a: inout HostArguments) {
    guard a.inputs.count == 5 else { return update(&a) }
    let control = StepControl(a.inputs[4])
    if control.isTaken { return controlled(by: control).update(&a) }
    for i in 0..<2 { a.outputs[i] = a.inputs[2 + i] }
  }

  private func update(_ a: inout HostArguments) {
    for i in a.inputs[0].indices {
      let p = a.inputs[2][i]
      let g = a.inputs[0][i] * a.inputs[1][0] + weightDecay * p
      let b = momentum * a.inputs[3][i] + g
      let step = nesterov ? g + momentum * b : b
      a.outputs[0][i] = p - learningRate * step
      a.outputs[1][i] = b
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases =
    [
      OpCase(
        "nesterov",
        MomentumStep(learningRate: 0.01, momentum: 0.9, weightDecay: 0.1, nesterov: true),
        [
          TestInput([7, 41], differentiable: false),
          TestInput([1], .constant(0.5), differentiable: false),
          TestInput([7, 41], differentiable: false), TestInput([7, 41], differentiable: false),
        ])
    ]
    + StepControl.cases { label, control in
      OpCase(
        label, MomentumStep(learningRate: 0.01, momentum: 0.9, weightDecay: 0.1, nesterov: true),
        [
          TestInput([7, 41], differentiable: false),
          TestInput([1], .constant(0.5), differentiable: false),
          TestInput([7, 41], differentiable: false), TestInput([7, 41], differentiable: false),
          control,
        ])
    }
}
