import GyreTensors

/// Every op on every device against its definition.
///
/// For each case of an op: outputs on the device against the reference; gradients through the tape
/// against the reference device; the reference's derivative against central differences of the
/// definition in Double; and two runs of a kernel against each other, bit for bit.
enum CheckOp {
  static func cases(_ type: any Op.Type, _ tag: ConformanceCase.Tag) -> [ConformanceCase] {
    type.cases.map { item in
      let elements = item.inputs.reduce(0) { $0 + $1.spec.shape.elementCount }
      let tags: Set<ConformanceCase.Tag> = elements < 1 << 20 ? [tag, .small] : [tag]
      return ConformanceCase("\(tag) \(type.name) \(item.label)", tags) { check in
        try run(item, &check)
      }
    }
  }

  private static func run(_ item: OpCase, _ check: inout Check) throws {
    let host = ReferenceDevice()
    let values = item.inputs.enumerated().map { i, input in
      TestValues.make(
        input, CounterGenerator(seed: check.seed, name: "\(item.op.name) \(item.label) \(i)"))
    }
    let expected = Evaluation(item, values, on: host, check.seed)
    let actual = Evaluation(item, values, on: check.device, check.seed)
    let (outputs, references) = (
      try actual.outputs.map { try $0.doubles() }, try expected.outputs.map { try $0.doubles() }
    )
    let compared = item.comparedOutputs ?? outputs.count
    for (i, (y, r)) in zip(outputs, references).enumerated().prefix(compared) {
      check.compare("output \(i)", y, r, item.tolerance)
    }
    var gradients: [[Double]?] = []
    for (j, i) in expected.variables.enumerated() {
      guard let r = try expected.gradients[j]?.doubles() else {
        check.require("gradient \(i) exists", false)
        return
      }
      gradients.append(r)
      check.compare(
        "gradient \(i)", try actual.gradients[j]?.doubles() ?? [.nan], r, item.gradientTolerance)
    }
    if check.device.hasKernel(for: item.op) {
      let again = Evaluation(item, values, on: check.device, check.seed)
      for (i, y) in outputs.enumerated() {
        check.identical("output \(i) again", try again.outputs[i].doubles(), y)
      }
      for (j, i) in expected.variables.enumerated() {
        check.identical(
          "gradient \(i) again", try again.gradients[j]?.doubles() ?? [],
          try actual.gradients[j]?.doubles() ?? [])
      }
    }
    differences(item, expected, values, gradients.compactMap(\.self), &check)
  }

  /// ⟨gradient, d⟩ against (f(x + εd) − f(x − εd))/2ε for a random direction d of each input.
  private static func differences(
    _ item: OpCase, _ expected: Evaluation, _ values: [[Double]], _ gradients: [[Double]],
    _ check: inout Check
  ) {
    let step = 1e-6
    let specs = item.inputs.map(\.spec)
    func objective(_ inputs: [[Double]]) -> Double {
      var arguments = HostArguments(
        inputs: inputs, inputSpecs: specs, outputSpecs: item.op.infer(specs))
      item.op.reference(&arguments)
      var sum = 0.0
      for (i, c) in expected.cotangents {
        for (a, b) in zip(arguments.outputs[i], c) where b != 0 { sum += a * b }
      }
      return sum
    }
    for (j, i) in expected.variables.enumerated() {
      // An infinite input (a gate shut for good) has no neighbourhood.
      let d = zip(check.normals("direction \(i)", values[i].count).map(Double.init), values[i])
        .map { $1.isFinite ? $0 : 0 }
      func moved(_ sign: Double) -> [[Double]] {
        var inputs = values
        for k in d.indices where d[k] != 0 { inputs[i][k] += sign * step * d[k] }
        return inputs
      }
      let difference = (objective(moved(1)) - objective(moved(-1))) / (2 * step)
      var (slope, norm) = (0.0, 0.0)
      for (g, d) in zip(gradients[j], d) where d != 0 {
        slope += g * d
        norm += g * g
      }
      let scale = max(norm.squareRoot(), 1e-3)
      check.record("derivative \(i)", abs(difference - slope) / scale, item.differenceTolerance)
    }
  }
}

/// One evaluation of an op and its gradients on a device.
private struct Evaluation {
  /// Which inputs gradients are of.
  let variables: [Int]
  let outputs: [Tensor]
  let gradients: [Tensor?]
  /// Cotangents by output.
  let cotangents: [(Int, [Double])]

  init(_ item: OpCase, _ values: [[Double]], on device: any Device, _ seed: UInt64) {
    let inputs = zip(item.inputs, values).map { TestValues.tensor($1, $0.spec, on: device) }
    let variables = item.inputs.indices.filter { item.inputs[$0].isDifferentiable }
    let tape = Tape()
    tape.watch(variables.map { inputs[$0] })
    let op = item.op
    // Devices may run what nothing is differentiated of in other kernels.
    let outputs = variables.isEmpty ? apply(op, inputs) : tape.record { apply(op, inputs) }
    let carrying = item.differentiableOutputs ?? outputs.count
    cotangents = outputs.indices.filter { $0 < carrying && outputs[$0].dtype.isFloat }.map {
      let generator = CounterGenerator(seed: seed, name: "cotangent \($0)")
      return ($0, generator.normals(outputs[$0].elementCount).map(Double.init))
    }
    gradients =
      variables.isEmpty
      ? []
      : tape.gradients(
        of: cotangents.map { i, c in
          (outputs[i], TestValues.tensor(c, outputs[i].spec, on: device))
        }, for: variables.map { inputs[$0] })
    self.variables = variables
    self.outputs = outputs
  }
}

/// Test inputs as numbers and as tensors.
enum TestValues {
  /// The values of an input, exact in its element type.
  static func make(_ input: TestInput, _ generator: CounterGenerator) -> [Double] {
    let count = input.spec.shape.elementCount
    let values: [Double] =
      switch input.values {
      case .normal(let scale, let shift):
        generator.normals(count).map { shift + scale * Double($0) }
      case .uniform(let low, let high):
        generator.uniforms(count).map { low + (high - low) * Double($0) }
      case .integers(let low, let high):
        (0..<count).map { Double(low + generator.integer(UInt64($0), below: high - low)) }
      case .constant(let value): [Double](repeating: value, count: count)
      case .elements(let elements): elements
      }
    return rounded(values, input.spec.dtype)
  }

  /// The nearest values that the type has.
  static func rounded(_ values: [Double], _ dtype: DType) -> [Double] {
    withBytes(values, dtype) { bytes in
      bytes.baseAddress.map { ElementCoding.decode($0, dtype, values.count) } ?? []
    }
  }

  static func tensor(_ values: [Double], _ spec: TensorSpec, on device: any Device) -> Tensor {
    withBytes(values, spec.dtype) { Tensor(bytes: $0, spec: spec, on: device) }
  }

  private static func withBytes<R>(
    _ values: [Double], _ dtype: DType, _ body: (UnsafeRawBufferPointer) -> R
  ) -> R {
    let size = dtype.byteCount(of: values.count)
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: max(size, 1), alignment: 64)
    defer { memory.deallocate() }
    if let p = memory.baseAddress { ElementCoding.encode(values, to: p, dtype) }
    return body(UnsafeRawBufferPointer(rebasing: memory[..<size]))
  }
}
