/// Cross-entropy of the next token straight from hidden states: logits = h Wᵀ are made in chunks of
/// rows and never stored whole, and the gradients are made in the same pass.
///
/// Inputs: h `[…, D]`, W `[V, D]`, targets int32 `[…]` (negative: ignored).
/// Outputs: mean loss over the targets that count, in nats, `[1]`; the loss of each row; and when
/// `computesGradients`, dh and dW of the mean.
/// 2·rows·V·D flops, three times that with gradients.
public struct LinearCrossEntropy: Op {
  public static let name = "linear_cross_entropy"
  public let computesGradients: Bool
  public let precision: ComputePrecision

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[0].shape.last == i[1].shape.last && i[0].shape.rowCount == i[2].shape.elementCount,
      "linear_cross_entropy: hidden \(i[0].shape), weight \(i[1].shape), targets \(i[2].shape)")
    return [TensorSpec([1]), TensorSpec(i[2].shape)]
      + (computesGradients ? [i[0], TensorSpec(i[1].shape)] : [])
  }
  public func reference(_ a: inout HostArguments) {
    let (v, d) = (a.inputSpecs[1].shape[0], a.inputSpecs[1].shape[1])
    let counted = Double(max(a.inputs[2].reduce(0) { $0 + ($1 >= 0 ? 1 : 0) }, 1))
    for r in 0..<a.inputs[2].count where a.inputs[2][r] >= 0 {
      let h = a.inputs[0][r * d..<(r + 1) * d]
      let logits = (0..<v).map { w in
        zip(h, a.inputs[1][w * d..<(w + 1) * d]).reduce(0) { $0 + $1.0 * $1.1 }
      }
      let (loss, gradient) = CrossEntropy.row(logits, target: Int(a.inputs[2][r]))
      a.outputs[1][r] = loss
      a.outputs[0][0] += loss / counted
      guard computesGradients else { continue }
      for w in 0..<v {
        let g = gradient[w] / counted
        for j in 0..<d {
          a.outputs[2][r * d + j] += g * a.inputs[1][w * d + j]
          a.outputs[3][w * d + j] += g * a.inputs[0][r * d + j]
        }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    guard computesGradients, let d = c.cotangents[0] else { return [nil, nil, nil] }
    return [
      c.needs[0] ? c.outputs[2] * d : nil, c.needs[1] ? c.outputs[3] * d : nil, nil,
    ]
  }
  public var saved: SavedValues { .only(outputs: [2, 3]) }
  public static let cases =
    [
      OpCase(
        "gradients", LinearCrossEntropy(computesGradients: true, precision: .float32),
        [TestInput([2, 35, 24]), TestInput([67, 24]), .integers([2, 35], -1, 67)],
        differentiableOutputs: 1),
      OpCase(
        "loss only", LinearCrossEntropy(computesGradients: false, precision: .float32),
        [
          TestInput([70, 24], differentiable: false), TestInput([67, 24], differentiable: false),
          .integers([70], 0, 67),
        ]),
    ]
    + [DType.bfloat16, .q8_0].map {
      OpCase(
        "loss only, \($0.rawValue)",
        LinearCrossEntropy(computesGradients: false, precision: .float32),
        [
          TestInput([70, 32], differentiable: false),
          TestInput([67, 32], differentiable: false).stored(as: $0), .integers([70], 0, 67),
        ], tolerance: $0 == .bfloat16 ? 2e-6 : 5e-3)
    }
}

/// Cross-entropy of logits. Inputs: logits `[…, V]`, targets int32 `[…]` (negative: ignored).
/// Outputs: mean loss in nats `[1]`, the loss of each row.
public struct CrossEntropy: Op {
  public static let name = "cross_entropy"
  public init() {}

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[0].shape.rowCount == i[1].shape.elementCount,
      "cross_entropy: logits \(i[0].shape), targets \(i[1].shape)")
    return [TensorSpec([1]), TensorSpec(i[1].shape)]
  }
  public func reference(_ a: inout HostArguments) {
    let v = a.inputSpecs[0].shape.last
    let counted = Double(max(a.inputs[1].reduce(0) { $0 + ($1 >= 0 ? 1 : 0) }, 1))
    for (r, target) in a.inputs[1].enumerated() where target >= 0 {
      let loss = CrossEntropy.row(Array(a.inputs[0][r * v..<(r + 1) * v]), target: Int(target)).loss
      a.outputs[1][r] = loss
      a.outputs[0][0] += loss / counted
    }
  }
  static func row(_ logits: [Double], target: Int) -> (loss: Double, gradient: [Double]) {
    let top = logits.max() ?? 0
    let total = logits.reduce(0) { $0 + Functions.exp($1 - top) }
    var gradient = logits.map { Functions.exp($0 - top) / total }
    gradient[target] -= 1
    return (Functions.log(total) + top - logits[target], gradient)
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    guard let d = c.cotangents[0] else { return [nil, nil] }
    return [apply(Backward(), [d, c.inputs[0], c.inputs[1]])[0], nil]
  }
  public var saved: SavedValues { .inputs }

  /// (softmax − one-hot)·d/count.
  public struct Backward: Op {
    public static let name = "cross_entropy_backward"
    public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { [inputs[1]] }
    public func reference(_ a: inout HostArguments) {
      let v = a.inputSpecs[1].shape.last
      let counted = Double(max(a.inputs[2].reduce(0) { $0 + ($1 >= 0 ? 1 : 0) }, 1))
      for (r, target) in a.inputs[2].enumerated() where target >= 0 {
        let g = CrossEntropy.row(Array(a.inputs[1][r * v..<(r + 1) * v]), target: Int(target))
          .gradient
        for j in 0..<v { a.outputs[0][r * v + j] = g[j] * a.inputs[0][0] / counted }
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { [nil, nil, nil] }
    public static let cases: [OpCase] = []
  }
  public static let cases = [
    OpCase(
      "rows", CrossEntropy(), [TestInput([4, 9, 33]), .integers([4, 9], -1, 33)],
      differentiableOutputs: 1)
  ]
}

extension Tensor {
  /// Mean cross-entropy in nats of logits against int32 targets, and the loss of each row.
  public func crossEntropy(_ targets: Tensor) -> (mean: Tensor, rows: Tensor) {
    let outputs = apply(CrossEntropy(), [self, targets])
    return (outputs[0], outputs[1])
  }
  /// The same for logits = self · headᵀ, which are never stored.
  public func crossEntropy(head: Tensor, _ targets: Tensor) -> (mean: Tensor, rows: Tensor) {
    if let population = Perturbation.current, population.perturbs(head, shape) {
      // Logits in float32, as those that are never stored.
      let map = LinearMap(precision: ComputePrecision.current)
      return population.linear(map, self, head, nil).crossEntropy(targets)
    }
    let op = LinearCrossEntropy(
      computesGradients: Tape.current != nil, precision: ComputePrecision.current)
    let outputs = apply(op, [self, head, targets])
    return (outputs[0], outputs[1])
  }
}
