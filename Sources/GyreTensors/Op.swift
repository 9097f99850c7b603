/// The definition of one operation: shapes, meaning, derivative, test cases. One file an op.
///
/// `reference` is the definition. A backend may have a faster kernel for the type; where it has
/// none the reference runs.
public protocol Op: Sendable {
  /// The name in reports and in CUDA sources: `"rms_norm"`.
  static var name: String { get }
  /// Output shapes and types.
  ///
  /// - Precondition: input shapes agree; the message names the op, the shapes and the rule.
  func infer(_ inputs: [TensorSpec]) -> [TensorSpec]
  /// Plain loops in Double.
  func reference(_ arguments: inout HostArguments)
  /// Cotangents of the inputs, nil where there is none or `context.needs` says that nobody asks.
  func vjp(_ context: VJPContext) -> [Tensor?]
  /// Which values `vjp` reads; the tape keeps only their storage.
  var saved: SavedValues { get }
  /// Examples that every device is checked on.
  static var cases: [OpCase] { get }
}

extension Op {
  public var saved: SavedValues { .all }
  public var name: String { Self.name }
}

/// Which inputs and outputs of an op its derivative reads.
public struct SavedValues: Sendable {
  let keepsInput: @Sendable (Int) -> Bool
  let keepsOutput: @Sendable (Int) -> Bool

  public init(
    keepsInput: @escaping @Sendable (Int) -> Bool, keepsOutput: @escaping @Sendable (Int) -> Bool
  ) {
    self.keepsInput = keepsInput
    self.keepsOutput = keepsOutput
  }

  public static let all = SavedValues(keepsInput: { _ in true }, keepsOutput: { _ in true })
  public static let none = SavedValues(keepsInput: { _ in false }, keepsOutput: { _ in false })
  public static let inputs = SavedValues(keepsInput: { _ in true }, keepsOutput: { _ in false })
  public static let outputs = SavedValues(keepsInput: { _ in false }, keepsOutput: { _ in true })
  public static func only(inputs: Set<Int> = [], outputs: Set<Int> = []) -> SavedValues {
    SavedValues(keepsInput: { inputs.contains($0) }, keepsOutput: { outputs.contains($0) })
  }
}

/// What an op's derivative may look at.
public struct VJPContext: Sendable {
  public let inputs: [Tensor]
  public let outputs: [Tensor]
  /// One an output; nil where nothing depends on the output.
  public let cotangents: [Tensor?]
  /// Whether somebody wants the cotangent of input i.
  public let needs: [Bool]
  /// A float32 sum of gradients of input i, in memory of its own, to which the op may add in place; it
  /// then gives the sum for its cotangent. Nil where there is none.
  package let sums: [Tensor?]
  /// A second term of the cotangent of each output, of ops that are `SumsCotangents`.
  package let more: [Tensor?]
  /// The gradient of each input so far, of ops that are `AddsGradients`, which give it with theirs added.
  package let before: [Tensor?]

  /// The cotangent of output `i`, zeros where nothing depends on it.
  public func cotangent(_ i: Int) -> Tensor {
    cotangents[i] ?? .zeros(outputs[i].shape, on: outputs[i].device)
  }
}

/// An op whose derivative reads cotangents that are sums of two terms as they are, which saves a pass that
/// adds them. The terms are bfloat16.
package protocol SumsCotangents: Op {
  /// Outputs that may have two terms at once.
  var mostSums: Int { get }
  func sums(output: Int) -> Bool
}

extension SumsCotangents {
  package var mostSums: Int { .max }
}

/// An op whose derivative adds the gradient of an input to a bfloat16 one from elsewhere on the way.
package protocol AddsGradients: Op {
  func adds(input: Int) -> Bool
}

/// The values of one op on the host, in Double, for its reference.
public struct HostArguments {
  public let inputSpecs: [TensorSpec]
  public let outputSpecs: [TensorSpec]
  public let inputs: [[Double]]
  public var outputs: [[Double]]

  public init(inputs: [[Double]], inputSpecs: [TensorSpec], outputSpecs: [TensorSpec]) {
    self.inputs = inputs
    self.inputSpecs = inputSpecs
    self.outputSpecs = outputSpecs
    outputs = outputSpecs.map { [Double](repeating: 0, count: $0.shape.elementCount) }
  }
}

extension KernelCall {
  /// Runs the op's reference on host memory.
  package func runReference() {
    var arguments = HostArguments(
      inputs: inputs.map { t in
        guard let p = t.hostAddress else { return [] }
        return ElementCoding.decode(p, t.dtype, t.elementCount)
      },
      inputSpecs: inputs.map(\.spec), outputSpecs: outputs.map(\.spec))
    op.reference(&arguments)
    for (t, values) in zip(outputs, arguments.outputs) {
      if let p = t.hostAddress { ElementCoding.encode(values, to: p, t.dtype) }
    }
  }
}

/// Runs `op` on the device of the inputs and lets the tape know.
///
/// - Precondition: at least one input, all on one device.
@discardableResult
public func apply(_ op: some Op, _ inputs: [Tensor]) -> [Tensor] {
  if let perturbed = Perturbation.current?.run(op, inputs) { return perturbed }
  return applyUnperturbed(op, inputs)
}

/// `apply` for callers that see to a population themselves, or have none.
func applyUnperturbed(_ op: some Op, _ inputs: [Tensor]) -> [Tensor] {
  let device = inputs[0].device
  let taken = Overwriting.output(of: op, inputs)
  let outputs = op.infer(inputs.map(\.spec)).enumerated().map { i, spec in
    taken.flatMap { $0.place == i && $0.tensor.spec == spec ? $0.tensor : nil }
      ?? Tensor(emptyWith: spec, on: device)
  }
  device.launch(KernelCall(op: op, inputs: inputs, outputs: outputs))
  Tape.current?.record(op, inputs: inputs, outputs: outputs)
  return outputs
}

// MARK: - Cases

/// How a test fills an input.
public struct TestInput: Sendable {
  public enum Values: Sendable {
    case normal(scale: Double = 1, shift: Double = 0)
    case uniform(Double, Double)
    /// Integers in [low, high).
    case integers(Int, Int)
    case constant(Double)
    case elements([Double])
  }
  public var spec: TensorSpec
  public var values: Values
  /// Whether gradients with respect to the input are checked.
  public var isDifferentiable: Bool

  public init(_ shape: Shape, _ values: Values = .normal(), differentiable: Bool = true) {
    spec = TensorSpec(shape)
    self.values = values
    isDifferentiable = differentiable
  }

  /// The same in another element type.
  public func stored(as dtype: DType) -> TestInput {
    var input = self
    input.spec.dtype = dtype
    return input
  }

  /// An integer input.
  public static func integers(_ shape: Shape, _ low: Int, _ high: Int) -> TestInput {
    var input = TestInput(shape, .integers(low, high), differentiable: false)
    input.spec.dtype = .int32
    return input
  }
}

/// One op with options, its inputs and how exact it must be.
public struct OpCase: Sendable {
  public var label: String
  public var op: any Op
  public var inputs: [TestInput]
  /// Largest ‖y − r‖/‖r‖ in float32, of outputs and of gradients.
  public var tolerance: Double
  public var gradientTolerance: Double
  /// Largest error of a directional derivative against central differences in Double, over the
  /// gradient's norm; derivatives are kept in float32.
  public var differenceTolerance: Double
  /// Gradients flow from this many outputs, the first ones; nil: from all that are floating point.
  public var differentiableOutputs: Int?
  /// How many of the outputs devices agree on; the others are a kernel's notes for its derivative.
  public var comparedOutputs: Int?

  public init(
    _ label: String, _ op: any Op, _ inputs: [TestInput], tolerance: Double = 2e-6,
    gradientTolerance: Double = 1e-5, differenceTolerance: Double = 2e-4,
    differentiableOutputs: Int? = nil, comparedOutputs: Int? = nil
  ) {
    self.differenceTolerance = differenceTolerance
    self.differentiableOutputs = differentiableOutputs
    self.comparedOutputs = comparedOutputs
    self.label = label
    self.op = op
    self.inputs = inputs
    self.tolerance = tolerance
    self.gradientTolerance = gradientTolerance
  }
}
