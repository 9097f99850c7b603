/// Rows of a table: y = E[token]. Inputs: table `[V, D]`, tokens int32 `[…]`; output `[…, D]`.
///
/// A token outside [0, V) is a mistake of the caller; callers check data where they read it.
public struct EmbeddingLookup: Op {
  public static let name = "embedding"
  /// Element type of the output.
  public let output: DType
  public init(output: DType = .float32) { self.output = output }
  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    [TensorSpec(Shape(i[1].shape.dimensions + [i[0].shape[1]]), output)]
  }
  public func reference(_ a: inout HostArguments) {
    let d = a.inputSpecs[0].shape[1]
    for (t, token) in a.inputs[1].enumerated() {
      for j in 0..<d { a.outputs[0][t * d + j] = a.inputs[0][Int(token) * d + j] }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = Backward(vocabulary: c.inputs[0].shape[0])
    return [c.needs[0] ? apply(op, [c.cotangent(0), c.inputs[1]])[0] : nil, nil]
  }
  public var saved: SavedValues { .only(inputs: [1]) }

  /// dE[v] = Σ of dy over the positions that hold token v.
  public struct Backward: Op {
    public static let name = "embedding_backward"
    public let vocabulary: Int
    public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
      [TensorSpec([vocabulary, i[0].shape.last], .float32)]
    }
    public func reference(_ a: inout HostArguments) {
      let d = a.inputSpecs[0].shape.last
      for (t, token) in a.inputs[1].enumerated() {
        for j in 0..<d { a.outputs[0][Int(token) * d + j] += a.inputs[0][t * d + j] }
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { [nil, nil] }
    public static let cases: [OpCase] = []
  }
  public static let cases =
    [
      OpCase("lookup", EmbeddingLookup(), [TestInput([11, 24]), .integers([3, 17], 0, 11)]),
      OpCase(
        "lookup in bfloat16", EmbeddingLookup(output: .bfloat16),
        [TestInput([11, 25]).stored(as: .bfloat16), .integers([3, 17], 0, 11)], tolerance: 0,
        gradientTolerance: 5e-3, differenceTolerance: 1e-2),
    ]
    + [DType.bfloat16, .float16, .q4_1, .q6_K, .q8_0].map {
      OpCase(
        "lookup \($0.rawValue)", EmbeddingLookup(),
        [TestInput([11, 256], differentiable: false).stored(as: $0), .integers([3, 17], 0, 11)])
    }
}

/// Rows added to a table: y = x, and y[v] = x[v] + Σ of r over the positions that hold token v; the sum of a
/// row's r first. Inputs: x `[V, D]`, r `[…, D]`, tokens int32 `[…]`; output `[V, D]`, which may be x itself:
/// then only the rows that are named are touched.
public struct RowsAdded: Op {
  public static let name = "add_rows"
  public init() {}
  public func infer(_ i: [TensorSpec]) -> [TensorSpec] { [i[0]] }
  public func reference(_ a: inout HostArguments) {
    let d = a.inputSpecs[0].shape[1]
    a.outputs[0] = a.inputs[0]
    for (t, token) in a.inputs[2].enumerated() {
      for j in 0..<d { a.outputs[0][Int(token) * d + j] += a.inputs[1][t * d + j] }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let dy = c.cotangent(0)
    return [
      c.needs[0] ? dy : nil,
      c.needs[1] ? apply(EmbeddingLookup(), [dy, c.inputs[2]])[0] : nil, nil,
    ]
  }
  public var saved: SavedValues { .only(inputs: [2]) }
  public static let cases = [
    OpCase(
      "rows", RowsAdded(),
      [TestInput([300, 24]), TestInput([3, 17, 24]), .integers([3, 17], 0, 300)]),
    OpCase(
      "repeated rows", RowsAdded(),
      [TestInput([5, 67]), TestInput([2, 40, 67]), .integers([2, 40], 0, 5)]),
    OpCase(
      "bfloat16 rows", RowsAdded(),
      [
        TestInput([5, 67]), TestInput([2, 40, 67]).stored(as: .bfloat16), .integers([2, 40], 0, 5),
      ], differenceTolerance: 1e-2),
  ]
}

extension Tensor {
  /// The rows that int32 `tokens` name.
  public func rows(_ tokens: Tensor, output: DType = .float32) -> Tensor {
    if let population = Perturbation.current {
      return population.rows(self, tokens, output: output)
    }
    return apply(EmbeddingLookup(output: output), [self, tokens])[0].looked(up: tokens, in: self)
  }
  /// The same as activations, in bfloat16 where the device keeps those so.
  public func embedded(_ tokens: Tensor) -> Tensor {
    let type = ComputePrecision.activations(on: device)
    if type == .float32 || Perturbation.current != nil { return rows(tokens, output: type) }
    return apply(EmbeddingLookup(output: type), [self, tokens])[0]
  }
}
