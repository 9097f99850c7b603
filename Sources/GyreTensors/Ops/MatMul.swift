/// y = x Wᵀ + b over the last axis.
///
/// Inputs: x `[…, K]`, W `[N, K]`, optionally b `[N]`. Output `[…, N]`.
/// Products are multiplied in `precision` and summed in float32. 2·rows·N·K flops.
public struct LinearMap: Op {
  public static let name = "linear"
  public let precision: ComputePrecision
  /// Element type of the output.
  public let output: DType

  init(precision: ComputePrecision, output: DType = .float32) {
    self.precision = precision
    self.output = output
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[1].shape.rank == 2 && i[0].shape.last == i[1].shape.last,
      "linear: x \(i[0].shape) · w \(i[1].shape)ᵀ: last axes differ")
    precondition(
      i.count < 3 || i[2].shape.elementCount == i[1].shape[0],
      "linear: bias \(i.last?.shape ?? []) for \(i[1].shape[0]) outputs")
    var shape = i[0].shape
    shape[-1] = i[1].shape[0]
    return [TensorSpec(shape, output)]
  }

  public func reference(_ a: inout HostArguments) {
    let (n, k) = (a.inputSpecs[1].shape[0], a.inputSpecs[1].shape[1])
    for r in 0..<a.inputSpecs[0].shape.rowCount {
      for j in 0..<n {
        var sum = a.inputs.count > 2 ? a.inputs[2][j] : 0
        for l in 0..<k { sum += a.inputs[0][r * k + l] * a.inputs[1][j * k + l] }
        a.outputs[0][r * n + j] = sum
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let (x, w) = (c.inputs[0], c.inputs[1])
    let dy = c.cotangent(0).aliasedRows()
    let dx =
      c.needs[0]
      ? dy.matmul(w, precision: precision, output: x.dtype).aliased(as: x.shape) : nil
    let dw =
      c.needs[1]
      ? dy.matmul(
        x.aliasedRows(), transposingLeft: true, precision: precision, addingTo: c.sums[1]) : nil
    guard c.inputs.count > 2 else { return [dx, dw] }
    guard c.needs[2] else { return [dx, dw, nil] }
    let db = dy.summed(to: c.inputs[2].shape)
    // Devices that store activations in bfloat16 add it to sums as it is.
    return [dx, dw, db.device.storesBFloat16 ? db : db.cast(to: c.inputs[2].dtype)]
  }
  public var saved: SavedValues { .only(inputs: [0, 1]) }

  public static let cases =
    [
      OpCase(
        "no bias", LinearMap(precision: .float32), [TestInput([2, 9, 33]), TestInput([17, 33])]),
      OpCase(
        "bias", LinearMap(precision: .float32),
        [TestInput([70, 65]), TestInput([130, 65]), TestInput([130])]),
      OpCase(
        "one row", LinearMap(precision: .float32), [TestInput([1, 300]), TestInput([77, 300])]),
      OpCase(
        "no rows", LinearMap(precision: .float32), [TestInput([0, 30]), TestInput([7, 30])]),
      OpCase(
        "bfloat16", LinearMap(precision: .bfloat16), [TestInput([40, 96]), TestInput([50, 96])],
        tolerance: 6e-3, gradientTolerance: 6e-3),
      OpCase(
        "bfloat16 output", LinearMap(precision: .bfloat16, output: .bfloat16),
        [TestInput([40, 96]), TestInput([50, 96]), TestInput([50])], tolerance: 9e-3,
        gradientTolerance: 9e-3, differenceTolerance: 1e-2),
    ] + storedCases

  /// Weights in the types of checkpoints. Kernels may round each run of 32 values of x to int8: the
  /// first inputs are such integers, so that nothing but float32 sums is left; the last are not, and
  /// each is off by at most 1/254 of the largest of its run.
  private static let storedCases: [OpCase] = {
    func integers(_ shape: Shape) -> TestInput {
      let values = (0..<shape.elementCount).map { (i: Int) -> Double in
        let spread = (i * 37 + i / 32 * 11) % 255 - 127
        return i % 32 == 5 ? -127 : Double(spread)
      }
      return TestInput(shape, .elements(values), differentiable: false)
    }
    func weight(_ n: Int, _ k: Int, _ type: DType) -> TestInput {
      TestInput([n, k], differentiable: false).stored(as: type)
    }
    let op = LinearMap(precision: .float32)
    var cases: [OpCase] = []
    for type in DType.allCases where type.isQuantized || type == .bfloat16 || type == .float16 {
      let name = type.rawValue
      let bias = TestInput([70], differentiable: false)
      let rows = TestInput([9, 256], differentiable: false)
      cases.append(OpCase("\(name) one row", op, [integers([1, 512]), weight(37, 512, type)]))
      cases.append(
        OpCase("\(name) few rows", op, [integers([7, 256]), weight(70, 256, type), bias]))
      cases.append(
        OpCase("\(name) many rows", op, [integers([2, 21, 256]), weight(45, 256, type)]))
      cases.append(OpCase("\(name) rounded", op, [rows, weight(33, 256, type)], tolerance: 1e-2))
    }
    return cases
  }()
}

/// C = op(A) op(B), batched over equal leading axes; B may have none and is then shared.
public struct MatMul: Op {
  public static let name = "matmul"
  public let transposesLeft: Bool
  public let transposesRight: Bool
  public let precision: ComputePrecision
  /// Element type of the output.
  public var output = DType.float32
  /// Whether the product is added to a third input, which may be the output's own storage.
  public var adds = false

  /// (batch, M, N, K) of a product.
  public func extents(_ a: Shape, _ b: Shape) -> (batch: Int, m: Int, n: Int, k: Int) {
    precondition(
      a.rank >= 2 && b.rank >= 2
        && (b.rank == 2 || a.dimensions.dropLast(2) == b.dimensions.dropLast(2)),
      "matmul: \(a) and \(b) have different leading axes")
    let (m, k) = transposesLeft ? (a[-1], a[-2]) : (a[-2], a[-1])
    let (k2, n) = transposesRight ? (b[-1], b[-2]) : (b[-2], b[-1])
    precondition(k == k2, "matmul: \(a) and \(b): inner extents \(k) and \(k2) differ")
    return (a.dimensions.dropLast(2).reduce(1, *), m, n, k)
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let e = extents(i[0].shape, i[1].shape)
    return [TensorSpec(Shape(i[0].shape.dimensions.dropLast(2) + [e.m, e.n]), output)]
  }

  public func reference(_ a: inout HostArguments) {
    let e = extents(a.inputSpecs[0].shape, a.inputSpecs[1].shape)
    let sharesRight = a.inputSpecs[1].shape.rank == 2
    for b in 0..<e.batch {
      let left = b * e.m * e.k
      let right = sharesRight ? 0 : b * e.n * e.k
      for i in 0..<e.m {
        for j in 0..<e.n {
          var sum = adds ? a.inputs[2][(b * e.m + i) * e.n + j] : 0
          for l in 0..<e.k {
            let x = a.inputs[0][left + (transposesLeft ? l * e.m + i : i * e.k + l)]
            let y = a.inputs[1][right + (transposesRight ? j * e.k + l : l * e.n + j)]
            sum += x * y
          }
          a.outputs[0][(b * e.m + i) * e.n + j] = sum
        }
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let (a, b, d) = (c.inputs[0], c.inputs[1], c.cotangent(0))
    let p = precision
    var da: Tensor?
    var db: Tensor?
    if c.needs[0] {
      da =
        transposesLeft
        ? b.rank == 2 && a.rank > 2
          ? b.broadcastMatrix(like: a).matmul(
            d, transposingLeft: transposesRight, transposingRight: true, precision: p,
            output: a.dtype)
          : b.matmul(
            d, transposingLeft: transposesRight, transposingRight: true, precision: p,
            output: a.dtype)
        : d.matmul(b, transposingRight: !transposesRight, precision: p, output: a.dtype)
    }
    if c.needs[1] {
      let full =
        transposesRight
        ? d.matmul(a, transposingLeft: true, transposingRight: transposesLeft, precision: p)
        : a.matmul(d, transposingLeft: !transposesLeft, precision: p)
      db = full.shape == b.shape ? full : full.summed(to: b.shape)
    }
    return [da, db]
  }
  public var saved: SavedValues { .inputs }

  public static let cases: [OpCase] = [(false, false), (false, true), (true, false), (true, true)]
    .flatMap { left, right -> [OpCase] in
      func a(_ m: Int, _ k: Int) -> [Int] { left ? [k, m] : [m, k] }
      func b(_ k: Int, _ n: Int) -> [Int] { right ? [n, k] : [k, n] }
      let op = MatMul(transposesLeft: left, transposesRight: right, precision: .float32)
      let tag = (left ? "T" : "N") + (right ? "T" : "N")
      var adding = op
      adding.adds = true
      return [
        OpCase(
          "\(tag) onto a sum", adding,
          [
            TestInput(Shape(a(37, 65))), TestInput(Shape(b(65, 50))),
            TestInput([37, 50], differentiable: false),
          ]),
        OpCase("\(tag) plain", op, [TestInput(Shape(a(37, 65))), TestInput(Shape(b(65, 50)))]),
        OpCase(
          "\(tag) batched", op,
          [TestInput(Shape([2, 3] + a(17, 9))), TestInput(Shape([2, 3] + b(9, 21)))]),
        OpCase(
          "\(tag) shared", op, [TestInput(Shape([4] + a(17, 9))), TestInput(Shape(b(9, 21)))]),
      ]
    }
}

extension Tensor {
  public var rank: Int { shape.rank }

  /// x Wᵀ + b.
  ///
  /// - Parameter output: element type of the result; that of activations if nil.
  public func linear(_ weight: Tensor, bias: Tensor? = nil, output: DType? = nil) -> Tensor {
    let inputs = bias.map { [weight, $0] } ?? [weight]
    let op = LinearMap(
      precision: ComputePrecision.current,
      output: output ?? ComputePrecision.activations(on: device))
    if let population = Perturbation.current {
      return population.linear(op, self, weight, bias)
    }
    return mapRows { x in apply(op, [x] + inputs)[0] }
  }

  /// op(self) op(other); see `MatMul`.
  public func matmul(
    _ other: Tensor, transposingLeft: Bool = false, transposingRight: Bool = false,
    precision: ComputePrecision = .current, output: DType = .float32
  ) -> Tensor {
    apply(
      MatMul(
        transposesLeft: transposingLeft, transposesRight: transposingRight, precision: precision,
        output: output),
      [self, other])[0]
  }

  /// The product, added to `sum` in place where there is one and the device gains by it.
  package func matmul(
    _ other: Tensor, transposingLeft: Bool, precision: ComputePrecision, addingTo sum: Tensor?
  ) -> Tensor {
    var op = MatMul(
      transposesLeft: transposingLeft, transposesRight: false, precision: precision)
    op.adds = true
    guard let sum, device.fuses(op) else {
      return matmul(other, transposingLeft: transposingLeft, precision: precision)
    }
    device.launch(KernelCall(op: op, inputs: [self, other, sum], outputs: [sum]))
    return sum
  }

  /// All axes but the last as one, not seen by the tape.
  package func aliasedRows() -> Tensor { aliased(as: [shape.rowCount, shape.last]) }

  fileprivate func broadcastMatrix(like other: Tensor) -> Tensor {
    let shape = Shape(other.shape.dimensions.dropLast(2) + self.shape.dimensions)
    return Tensor.zeros(shape, on: device) + self
  }
}
