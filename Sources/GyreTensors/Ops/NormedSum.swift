/// A sum and its `Norm` in one pass: s = x + y, z = norm(s).
///
/// What every sublayer of a residual stack begins with. Inputs: x, y `[…, N]`; w, then perhaps b, as in
/// `Norm`. Outputs: s of x's element type, z of `output`'s.
public struct NormedSum: Op, SumsCotangents, SavesPasses {
  public static let name = "normed_sum"
  public let norm: Norm
  /// The element type of z; nil: that of x.
  public let output: DType?

  public init(_ norm: Norm, output: DType? = nil) {
    self.norm = norm
    self.output = output
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[0].shape == i[1].shape && i.count > 2, "normed_sum: x \(i[0].shape), y \(i[1].shape)")
    let z = norm.infer([i[0]] + i[2...])
    return [i[0]] + z.map { TensorSpec($0.shape, output ?? $0.dtype) }
  }
  package func sums(output: Int) -> Bool { output == 1 }

  public func reference(_ a: inout HostArguments) {
    a.outputs[0] = zip(a.inputs[0], a.inputs[1]).map { $0 + $1 }
    var inner = HostArguments(
      inputs: [a.outputs[0]] + a.inputs[2...],
      inputSpecs: [a.inputSpecs[0]] + a.inputSpecs[2...], outputSpecs: [a.outputSpecs[1]])
    norm.reference(&inner)
    a.outputs[1] = inner.outputs[0]
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    guard let dz = c.cotangents[1] else {
      return [c.cotangents[0], c.cotangents[0]] + c.inputs.dropFirst(2).map { _ -> Tensor? in nil }
    }
    let op = Backward(
      norm: NormBackward(norm: norm, inputCount: c.inputs.count - 1),
      hasSecond: c.more[1] != nil, hasSum: c.cotangents[0] != nil)
    let g = applyPresent(op, [dz, c.outputs[0], c.inputs[2], c.more[1], c.cotangents[0]])
    return [g[0], g[0]] + g.dropFirst().map { $0 }
  }
  public var saved: SavedValues { .only(inputs: [2], outputs: [0]) }

  /// Inputs: dz, s, w, where present a second term of dz, then ds. Outputs: the gradient of x and y, then of
  /// w and b.
  public struct Backward: Op {
    public static let name = "normed_sum_backward"
    public let norm: NormBackward
    public let hasSecond, hasSum: Bool

    public func infer(_ i: [TensorSpec]) -> [TensorSpec] { norm.infer(Array(i[..<3])) }
    public func reference(_ a: inout HostArguments) {
      var dz = a.inputs[0]
      if hasSecond { dz = zip(dz, a.inputs[3]).map { $0 + $1 } }
      var inner = HostArguments(
        inputs: [dz] + a.inputs[1..<3], inputSpecs: Array(a.inputSpecs[..<3]),
        outputSpecs: a.outputSpecs)
      norm.reference(&inner)
      a.outputs = inner.outputs
      guard hasSum, let ds = a.inputs.last else { return }
      for i in ds.indices { a.outputs[0][i] += ds[i] }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  public static let cases = [(true, 64), (false, 1024), (false, 37), (true, 2056)].flatMap {
    examples(centers: $0, width: $1)
  }
  private static func examples(centers: Bool, width: Int) -> [OpCase] {
    let op = NormedSum(Norm(epsilon: 1e-5, centers: centers))
    let (x, w) = (Shape([3, 5, width]), Shape([width]))
    let backward = Backward(
      norm: NormBackward(norm: op.norm, inputCount: 3), hasSecond: true, hasSum: true)
    return [
      OpCase(
        "\(centers ? "layer" : "rms") \(width)", op,
        [x, x, w].map { TestInput($0) } + (centers ? [TestInput(w)] : [])),
      OpCase(
        "\(centers ? "layer" : "rms") \(width), two cotangents", backward,
        [x, x, w, x, x].map { TestInput($0, differentiable: false) }, tolerance: 1e-5),
      // A stream in float32 between products of bfloat16.
      OpCase(
        "\(centers ? "layer" : "rms") \(width), rounded",
        NormedSum(op.norm, output: .bfloat16),
        [TestInput(x), TestInput(x).stored(as: .bfloat16), TestInput(w)]
          + (centers ? [TestInput(w)] : []),
        tolerance: 3e-3, gradientTolerance: 6e-3, differenceTolerance: 1e-2),
    ]
  }
}
