/// RMSNorm, y = x / √(mean(x²) + ε) ∘ w, or LayerNorm, y = (x − mean) / √(var + ε) ∘ w + b, over
/// the last axis.
///
/// Zhang and Sennrich, "Root mean square layer normalization", 2019; Ba, Kiros and Hinton, "Layer
/// normalization", 2016.
///
/// Inputs: x `[…, N]`; optionally w, then b. Their length is N, or a multiple P·N: row r then takes
/// the slice r mod P (norms per head with a weight per head).
public struct Norm: Op, TakesOwnParameters {
  public static let name = "norm"
  public let epsilon: Double
  /// LayerNorm rather than RMSNorm.
  public let centers: Bool
  /// w and b are `[B] + shape`, of each sequence its own; B is the first extent of x.
  public private(set) var hasOwnWeights = false

  public init(epsilon: Double, centers: Bool = false) {
    self.epsilon = epsilon
    self.centers = centers
  }

  package func parameters(of count: Int) -> Range<Int> { 1..<count }
  package var mixesOwnAndShared: Bool { false }
  package var withOwnParameters: Self {
    var op = self
    op.hasOwnWeights = true
    return op
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    for w in i.dropFirst() {
      precondition(
        w.shape.elementCount % max(i[0].shape.last, 1) == 0
          && (!hasOwnWeights || w.shape[0] == i[0].shape[0]),
        "norm: weight \(w.shape) for \(i[0].shape)")
    }
    return [i[0]]
  }

  /// Elements of weight and bias for one sequence.
  public func period(_ x: Shape, _ weight: Shape) -> Int {
    max(weight.elementCount / (hasOwnWeights ? max(x[0], 1) : 1), 1)
  }

  public func reference(_ a: inout HostArguments) {
    let (x, n) = (a.inputSpecs[0].shape, a.inputSpecs[0].shape.last)
    func parameter(_ which: Int, _ i: Int) -> Double {
      let width = period(x, a.inputSpecs[which].shape)
      return a.inputs[which][place(a.inputs[which], width, i, of: x.elementCount, x[0])]
    }
    for r in 0..<x.rowCount {
      let (mean, scale) = statistics(a.inputs[0][r * n..<(r + 1) * n])
      for j in 0..<n {
        var y = (a.inputs[0][r * n + j] - mean) * scale
        if a.inputs.count > 1 { y *= parameter(1, r * n + j) }
        if a.inputs.count > 2 { y += parameter(2, r * n + j) }
        a.outputs[0][r * n + j] = y
      }
    }
  }

  func statistics(_ row: ArraySlice<Double>) -> (mean: Double, scale: Double) {
    let n = Double(row.count)
    let mean = centers ? row.reduce(0, +) / n : 0
    let square = row.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / n
    return (mean, 1 / (square + epsilon).squareRoot())
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let gradients = apply(
      NormBackward(norm: self, inputCount: c.inputs.count),
      [c.cotangent(0)] + c.inputs.prefix(2))
    return gradients.map { $0 }
  }
  public var saved: SavedValues { .only(inputs: [0, 1]) }

  public static let cases = [false, true].flatMap { centers -> [OpCase] in
    let op = Norm(epsilon: 1e-5, centers: centers)
    let name = centers ? "layer" : "rms"
    return [
      OpCase("\(name) plain", op, [TestInput([5, 37])]),
      OpCase("\(name) weight", op, [TestInput([2, 70, 64]), TestInput([64])]),
      OpCase("\(name) per head", op, [TestInput([5, 4, 24]), TestInput([4, 24])]),
      OpCase("\(name) bias", op, [TestInput([5, 37]), TestInput([37]), TestInput([37])]),
      // More than kernels leave to the caches; every second row begins within a line.
      OpCase(
        "\(name) large", op, [TestInput([1600, 1000]), TestInput([1000])]),
      OpCase(
        "\(name) own", op.withOwnParameters,
        [[5, 7, 40], [5, 40], [5, 40]].map { TestInput(Shape($0), differentiable: false) }),
      OpCase(
        "\(name) own per head", op.withOwnParameters,
        [[5, 3, 4, 24], [5, 4, 24]].map { TestInput(Shape($0), differentiable: false) }),
    ]
  }
}

/// Gradients of `Norm` to x, then to weight and bias where the forward had them.
/// Inputs: dy, x, optionally w.
public struct NormBackward: Op {
  public static let name = "norm_backward"
  public let norm: Norm
  /// Inputs of the forward.
  public let inputCount: Int

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    [i[1]] + (1..<max(inputCount, 1)).map { _ in i[2] }
  }
  public func reference(_ a: inout HostArguments) {
    let n = a.inputSpecs[1].shape.last
    let period = a.inputs.count > 2 ? a.inputs[2].count : n
    for r in 0..<a.inputSpecs[1].shape.rowCount {
      let row = a.inputs[1][r * n..<(r + 1) * n]
      let (mean, scale) = norm.statistics(row)
      var (sum, dot) = (0.0, 0.0)
      for j in 0..<n {
        let i = r * n + j
        let xhat = (a.inputs[1][i] - mean) * scale
        let g = a.inputs[0][i] * (a.inputs.count > 2 ? a.inputs[2][i % period] : 1)
        sum += g
        dot += g * xhat
        if inputCount > 1 { a.outputs[1][i % period] += a.inputs[0][i] * xhat }
        if inputCount > 2 { a.outputs[2][i % period] += a.inputs[0][i] }
      }
      for j in 0..<n {
        let i = r * n + j
        let xhat = (a.inputs[1][i] - mean) * scale
        let g = a.inputs[0][i] * (a.inputs.count > 2 ? a.inputs[2][i % period] : 1)
        let centered = norm.centers ? sum / Double(n) : 0
        a.outputs[0][i] = scale * (g - centered - xhat * dot / Double(n))
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}

/// RMSNorm with an output gate: norm(x)·w ∘ act(z), or norm(x ∘ act(z))·w (Mamba-2's order).
///
/// Inputs: x `[…, N]`, z alike, w `[N]` or a multiple of N as in `Norm`.
public struct GatedNorm: Op {
  public enum Gate: Int, Sendable, Hashable, Codable { case silu, sigmoid }
  public static let name = "gated_norm"
  public let epsilon: Double
  public let gatesFirst: Bool
  public let gate: Gate

  public init(epsilon: Double, gatesFirst: Bool = false, gate: Gate = .silu) {
    self.epsilon = epsilon
    self.gatesFirst = gatesFirst
    self.gate = gate
  }

  private func value(_ z: Double) -> Double {
    gate == .silu ? z * Functions.sigmoid(z) : Functions.sigmoid(z)
  }
  private func slope(_ z: Double) -> Double {
    let s = Functions.sigmoid(z)
    return gate == .silu ? s * (1 + z * (1 - s)) : s * (1 - s)
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(i[0].shape == i[1].shape, "gated_norm: x \(i[0].shape), z \(i[1].shape)")
    return [i[0]]
  }
  public func reference(_ a: inout HostArguments) {
    let n = a.inputSpecs[0].shape.last
    for r in 0..<a.inputSpecs[0].shape.rowCount {
      let gates = (0..<n).map { value(a.inputs[1][r * n + $0]) }
      let x = (0..<n).map { a.inputs[0][r * n + $0] * (gatesFirst ? gates[$0] : 1) }
      let scale = 1 / (x.reduce(0) { $0 + $1 * $1 } / Double(n) + epsilon).squareRoot()
      for j in 0..<n {
        let w = a.inputs[2][(r * n + j) % a.inputs[2].count]
        a.outputs[0][r * n + j] = x[j] * scale * w * (gatesFirst ? 1 : gates[j])
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    apply(Backward(op: self), [c.cotangent(0)] + c.inputs).map { $0 }
  }
  public var saved: SavedValues { .inputs }

  /// Gradients to x, z and w from dy, x, z, w.
  public struct Backward: Op {
    public static let name = "gated_norm_backward"
    public let op: GatedNorm
    public func infer(_ i: [TensorSpec]) -> [TensorSpec] { [i[1], i[2], i[3]] }
    public func reference(_ a: inout HostArguments) {
      let n = a.inputSpecs[1].shape.last
      for r in 0..<a.inputSpecs[1].shape.rowCount {
        var (x, d, dot, square) = ([Double](), [Double](), 0.0, 0.0)
        for j in 0..<n {
          let i = r * n + j
          let g = op.value(a.inputs[2][i])
          let w = a.inputs[3][i % a.inputs[3].count]
          x.append(a.inputs[1][i] * (op.gatesFirst ? g : 1))
          d.append(a.inputs[0][i] * w * (op.gatesFirst ? 1 : g))
          square += x[j] * x[j]
          dot += x[j] * d[j]
        }
        let scale = 1 / (square / Double(n) + op.epsilon).squareRoot()
        for j in 0..<n {
          let i = r * n + j
          let (z, dy) = (a.inputs[2][i], a.inputs[0][i])
          let g = op.value(z)
          let w = a.inputs[3][i % a.inputs[3].count]
          let dx = scale * (d[j] - x[j] * scale * scale * dot / Double(n))
          a.outputs[0][i] = dx * (op.gatesFirst ? g : 1)
          a.outputs[1][i] =
            (op.gatesFirst ? dx * a.inputs[1][i] : dy * x[j] * scale * w) * op.slope(z)
          a.outputs[2][i % a.inputs[3].count] += dy * x[j] * scale * (op.gatesFirst ? 1 : g)
        }
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  public static let cases =
    [
      OpCase(
        "norm first", GatedNorm(epsilon: 1e-5),
        [TestInput([5, 3, 24]), TestInput([5, 3, 24]), TestInput([24])]),
      OpCase(
        "gate first", GatedNorm(epsilon: 1e-5, gatesFirst: true),
        [TestInput([70, 64]), TestInput([70, 64]), TestInput([64])]),
      OpCase(
        "large", GatedNorm(epsilon: 1e-5),
        [TestInput([1600, 1000]), TestInput([1600, 1000]), TestInput([1000])]),
      OpCase(
        "gate first, large", GatedNorm(epsilon: 1e-5, gatesFirst: true),
        [TestInput([1600, 1000]), TestInput([1600, 1000]), TestInput([1000])]),
      OpCase(
        "sigmoid", GatedNorm(epsilon: 1e-6, gate: .sigmoid),
        [TestInput([7, 4, 20]), TestInput([7, 4, 20]), TestInput([80])]),
    ]
    + [(true, Gate.silu), (false, .silu), (false, .sigmoid)].flatMap { first, gate in
      [(70, 80), (3, 35)].map { rows, columns in
        OpCase(
          "bfloat16 \(gate) \(first ? "first " : "")\(columns)",
          GatedNorm(epsilon: 1e-5, gatesFirst: first, gate: gate),
          [
            TestInput([rows, columns]).stored(as: .bfloat16),
            TestInput([rows, columns]).stored(as: .bfloat16), TestInput([columns]),
          ], tolerance: 6e-3, gradientTolerance: 1e-2, differenceTolerance: 1e-2)
      }
    }
}

/// x / √(Σx² + ε) over the last axis.
public struct L2Normalize: Op {
  public static let name = "l2_normalize"
  public let epsilon: Double
  public init(epsilon: Double) { self.epsilon = epsilon }
  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { inputs }
  public func reference(_ a: inout HostArguments) {
    let n = a.inputSpecs[0].shape.last
    for r in 0..<a.inputSpecs[0].shape.rowCount {
      let scale =
        1 / (a.inputs[0][r * n..<(r + 1) * n].reduce(0) { $0 + $1 * $1 } + epsilon).squareRoot()
      for i in r * n..<(r + 1) * n { a.outputs[0][i] = a.inputs[0][i] * scale }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    [apply(Backward(epsilon: epsilon), [c.cotangent(0), c.inputs[0]])[0]]
  }
  public var saved: SavedValues { .inputs }
  public struct Backward: Op {
    public static let name = "l2_normalize_backward"
    public let epsilon: Double
    public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { [inputs[1]] }
    public func reference(_ a: inout HostArguments) {
      let n = a.inputSpecs[1].shape.last
      for r in 0..<a.inputSpecs[1].shape.rowCount {
        var (square, dot) = (epsilon, 0.0)
        for i in r * n..<(r + 1) * n {
          square += a.inputs[1][i] * a.inputs[1][i]
          dot += a.inputs[1][i] * a.inputs[0][i]
        }
        let scale = 1 / square.squareRoot()
        for i in r * n..<(r + 1) * n {
          a.outputs[0][i] = scale * (a.inputs[0][i] - a.inputs[1][i] * dot / square)
        }
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { [nil, nil] }
    public static let cases: [OpCase] = []
  }
  public static let cases = [OpCase("l2", L2Normalize(epsilon: 1e-6), [TestInput([5, 3, 40])])]
}

extension Tensor {
  public func rmsNormalized(weight: Tensor? = nil, epsilon: Double) -> Tensor {
    if let weight, !device.fuses(Norm(epsilon: epsilon)),
      let scale = Perturbation.current?.vector(weight, like: self)
    {
      return apply(Norm(epsilon: epsilon), [self])[0] * scale
    }
    return mapRows { x in apply(Norm(epsilon: epsilon), weight.map { [x, $0] } ?? [x])[0] }
  }
  public func layerNormalized(weight: Tensor, bias: Tensor? = nil, epsilon: Double) -> Tensor {
    if let population = Perturbation.current, !device.fuses(Norm(epsilon: epsilon)),
      let scale = population.vector(weight, like: self)
    {
      let one = Tensor.full(1, weight.shape, on: device)
      let y = apply(Norm(epsilon: epsilon, centers: true), [self, one])[0] * scale
      return bias.map { y + $0 } ?? y
    }
    return mapRows { x in
      apply(Norm(epsilon: epsilon, centers: true), bias.map { [x, weight, $0] } ?? [x, weight])[0]
    }
  }
  public func l2Normalized(epsilon: Double = 1e-6) -> Tensor {
    apply(L2Normalize(epsilon: epsilon), [self])[0]
  }
}
