import GyreTensors

/// One token of a recurrence with a matrix state a head together with what surrounds it, where a device makes
/// them in one pass over the state. Inputs begin with q, k `[B, 1, Hk, K]` and v `[B, 1, H, V]`; the second output
/// is the state. For inference: it has no derivative.
public protocol HeadStepOp: Op {
  var keySize: Int { get }
  var valueSize: Int { get }
  /// What the values read are multiplied by.
  var scale: Double { get }
  /// Whether what stands behind the recurrence needs all values of a head.
  var readsWholeRows: Bool { get }
  /// Where among the inputs the state is.
  var stateInput: Int { get }
}

extension HeadStepOp {
  public func extents(_ i: [TensorSpec]) -> HeadExtents {
    HeadExtents(q: i[0].shape, v: i[2].shape)
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }

  /// The results; nil where the device, the sizes or who listens need the ops one by one.
  func applied(_ inputs: [Tensor]) -> [Tensor]? {
    guard Tape.current == nil, inputs[0].shape[1] == 1, inputs[stateInput].dtype == .float32,
      inputs.allSatisfy({ $0.note == nil }), inputs[0].device.fuses(self)
    else { return nil }
    return apply(self, inputs)
  }
}

/// Outputs of ops that follow each other in a reference, with their types.
struct HostResults {
  var values: [Double]
  var spec: TensorSpec

  init(_ values: [Double], _ spec: TensorSpec) { (self.values, self.spec) = (values, spec) }
  init(_ a: HostArguments, _ i: Int) { self.init(a.inputs[i], a.inputSpecs[i]) }

  static func of(_ op: some Op, _ inputs: [HostResults]) -> [HostResults] {
    let specs = inputs.map(\.spec)
    var a = HostArguments(
      inputs: inputs.map(\.values), inputSpecs: specs, outputSpecs: op.infer(specs))
    op.reference(&a)
    return zip(a.outputs, a.outputSpecs).map(HostResults.init)
  }
}
