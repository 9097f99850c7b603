import GyreTensors
import Synchronization

/// Any cell: a recurrence described once by `Cell`, over given pre-activations,
///
///     sₜ = f(sₜ₋₁, xₜ; R, θ)    yₜ = one of the states
///
/// with x = W·input + b made beforehand for all tokens by one product. All tokens can be solved for at
/// once (`CellExecution.newton`; Lim et al., 2023, https://arxiv.org/abs/2309.12252;
/// Danieli et al., "ParaRNN", 2025, https://arxiv.org/abs/2510.21450).
///
/// State: the cell's states. Two flops an instruction and unit, and the products R v.
public struct RecurrentCell: RecurrenceEngine {
  public let plan: CellPlan
  public var execution: CellExecution

  public init(_ description: CellDescription, execution: CellExecution = .automatic) {
    plan = CellPlan(description)
    self.execution = execution
  }

  public struct Inputs: Sendable {
    /// W x + b `[B, T, ΣW]`, gate after gate.
    public var gates: Tensor
    /// `[blocks, rows, columns]` each, as `CellParts.shape`.
    public var matrices: [Tensor]
    /// `[W]` each.
    public var parameters: [Tensor]
    public init(gates: Tensor, matrices: [Tensor], parameters: [Tensor]) {
      (self.gates, self.matrices, self.parameters) = (gates, matrices, parameters)
    }
  }

  public var stateSpec: StateSpec {
    StateSpec(
      plan.parts.states.map {
        .init($0.name, [plan.parts.spaces[$0.space]], initial: $0.initial)
      })
  }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let names = plan.parts.states.map(\.name)
    let inputs = [i.gates] + i.matrices + i.parameters + names.map { state[$0] } + [reset]
    let op = RecurrentCellForward(
      plan: plan, isNewton: usesNewton(i.gates, form), keeps: Tape.current != nil,
      optional: OptionalInputs(inputs.map { $0 != nil }))
    let outputs = applyPresent(op, inputs)
    for (s, name) in names.enumerated() { state[name] = outputs[1 + s] }
    if op.isNewton { NewtonReports.current?.add(outputs[op.reportPlace]) }
    return outputs[0]
  }

  /// What the choice of an execution depends on; nil for cells that only run token by token.
  var structure: CellExecution.Structure? {
    guard plan.isDiagonal else { return plan.products.isEmpty ? nil : .dense }
    switch plan.parts.states.count {
    case 1: return .scan1
    case 2: return .scan2
    case 3: return .scan3
    default: return nil
    }
  }

  private func usesNewton(_ gates: Tensor, _ form: SequenceForm) -> Bool {
    guard let structure, form != .recurrent else { return false }
    return execution.isNewton(
      structure, rows: gates.shape[0], channels: plan.parts.spaces[0], tokens: gates.shape[1],
      on: gates.device)
  }
}

/// How the solution of all tokens at once went in one call.
public struct NewtonReport: Sendable, Hashable, Codable {
  /// Most and mean iterations of a block.
  public var iterations: Double
  public var meanIterations: Double
  /// Largest |f(hₜ₋₁) − hₜ| of the states given back; of the products R v where units mix.
  public var residual: Double
  /// The part of the blocks, or of the tokens where units mix, that were run token by token.
  public var fallback: Double

  public init(
    iterations: Double = 0, meanIterations: Double = 0, residual: Double = 0, fallback: Double = 0
  ) {
    (self.iterations, self.meanIterations) = (iterations, meanIterations)
    (self.residual, self.fallback) = (residual, fallback)
  }
}

/// Collects the reports of all Newton solves while it is bound to the current task.
public final class NewtonReports: Sendable {
  @TaskLocal public static var current: NewtonReports?
  private let tensors = Mutex<[Tensor]>([])

  public init() {}
  func add(_ report: Tensor) { tensors.withLock { $0.append(report) } }
  public var isEmpty: Bool { tensors.withLock(\.isEmpty) }

  /// The reports so far, in the order of the calls; empties the collection.
  public func take() throws(DeviceError) -> [NewtonReport] {
    let taken = tensors.withLock { list in
      let all = list
      list = []
      return all
    }
    var reports: [NewtonReport] = []
    for tensor in taken {
      let v = try tensor.doubles()
      reports.append(
        NewtonReport(
          iterations: v[0], meanIterations: v[1], residual: v[2], fallback: v[3]))
    }
    return reports
  }
}
