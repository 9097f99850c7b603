/// A sum and its `Norm` in one pass: s = x + y, z = norm(s).
///
/// What every sublayer of a residual stack begins with. Inputs: x, y `[…, N]`; w, then perhaps b, as in
/// `Norm`. Outputs: s, z.
public struct NormedSum: Op, SumsCotangents, SavesPasses {
  public static let name = "normed_sum"
  public let norm: Norm

  public init(_ norm: Norm) { self.norm = norm }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[0].shape == i[1].shape && i.count > 2, "normed_sum: x \(i[0].shape), y \(i[1].shape)")
    return [i[0]] + norm.infer([i[0]] + i[2...])
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
    centers, width -> [OpCase] in
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
    ]
  }
}
