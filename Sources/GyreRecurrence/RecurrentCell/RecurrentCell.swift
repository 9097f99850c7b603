import GyreTensors
import Synchronization

/// How a cell whose units do not mix is run over time.
public enum CellExecution: String, Sendable, Hashable, Codable, CaseIterable {
  /// By shape, from measured times (`CellExecution.isNewtonFaster`).
  case automatic
  /// Token by token.
  case sequential
  /// All tokens of a block at once by Newton's method, each step a linear scan, until the update is
  /// within rounding; a block that does not get there is run token by token.
  case newton

  /// Whether Newton's method is the faster one on a device: with few channels in all, token by token
  /// leaves most of it idle; with three states it has twice the work. `gyre bench --cells` measures the
  /// table.
  public static func isNewtonFaster(
    rows: Int, channels: Int, states: Int, tokens: Int, on device: any Device
  ) -> Bool {
    let range = device.newtonRange
    return tokens >= range.tokens && rows * channels * max(states - 1, 1) <= range.units
  }
}

/// Any cell: a recurrence described once by `Cell`, over given pre-activations,
///
///     sₜ = f(sₜ₋₁, xₜ; R, θ)    yₜ = one of the states
///
/// with x = W·input + b made beforehand for all tokens by one product. Cells whose units do not mix
/// can be run by Newton's method over all tokens (Lim et al., 2023, https://arxiv.org/abs/2309.12252;
/// Danieli et al., "ParaRNN", 2025, https://arxiv.org/abs/2510.21450).
///
/// State: the cell's states. Two flops an instruction and unit, and the products R v.
public struct RecurrentCell: RecurrenceEngine {
  public let plan: CellPlan
  public let execution: CellExecution

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

  private func usesNewton(_ gates: Tensor, _ form: SequenceForm) -> Bool {
    guard plan.isDiagonal, form != .recurrent, plan.parts.states.count <= CellPlan.newtonStates
    else { return false }
    return switch execution {
    case .sequential: false
    case .newton: true
    case .automatic:
      CellExecution.isNewtonFaster(
        rows: gates.shape[0], channels: plan.parts.spaces[0], states: plan.parts.states.count,
        tokens: gates.shape[1], on: gates.device)
    }
  }
}

/// How Newton's method went in one call.
public struct NewtonReport: Sendable, Hashable, Codable {
  /// Most and mean iterations of a block.
  public var iterations: Double
  public var meanIterations: Double
  /// Largest |f(hₜ₋₁) − hₜ| of the states given back.
  public var residual: Double
  /// The part of the blocks that were run token by token.
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
