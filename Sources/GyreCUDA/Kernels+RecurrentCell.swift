import CGyreCUDASources
import GyreRecurrence
import GyreTensors
import Synchronization

/// Described cells: their code is compiled at first use (`CellSource`). Units that do not mix take a
/// thread each, or Newton's method; others a team of blocks for some rows of the batch (`CellRows`).
extension CUDAKernel {
  static let recurrentCells: [CUDAKernel] = [
    CUDAKernel(RecurrentCellForward.self) { op, call, launch in
      guard let cell = DescribedCell.of(op.plan) else { return false }
      let report = call.outputs[op.reportPlace]
      launch.fill(report, 0)
      guard call.inputs[0].shape[0] > 0 else { return true }
      var a = cell.arguments(op, call.inputs, launch)
      let parts = op.plan.parts
      let states = parts.states.indices.map { s in
        var state = gyre_described_state()
        state.first = op.optional.pick(op.statePlace(s), call.inputs).array
        state.last = call.outputs[1 + s].array
        state.history = op.historyPlace(s).map { call.outputs[$0] }.array
        return state
      }
      fill(
        &a.products,
        op.plan.products.indices.map { p in
          op.keptPlace(p).map { call.outputs[$0] }.array
        })
      a.report = report.array
      cell.run(
        .forward, isNewton: op.isNewton && op.plan.isDiagonal && a.tokens > 0, states, &a, launch)
      return true
    },
    CUDAKernel(RecurrentCellBackward.self) { op, call, launch in
      guard let cell = DescribedCell.of(op.plan) else { return false }
      guard call.inputs[0].shape[0] > 0 else { return true }
      var a = cell.arguments(op.forward, call.inputs, launch)
      let (plan, parts, forward) = (op.plan, op.plan.parts, op.forward)
      let rest = Array(call.inputs[op.inputCount...])
      a.dgates = call.outputs[0].array
      a.dy = op.extra.pick(op.outputCotangentPlace, rest).array
      let states = parts.states.indices.map { s in
        var state = gyre_described_state()
        state.first = op.extra.pick(op.finalPlace(s), rest).array
        state.last = op.statePlace(s).map { call.outputs[$0] }.array
        state.start = forward.optional.pick(forward.statePlace(s), call.inputs).array
        state.history = op.extra.pick(s, rest).array
        return state
      }
      fill(&a.products, plan.products.indices.map { op.extra.pick(op.keptPlace($0), rest).array })
      fill(&a.dproducts, plan.products.indices.map { call.outputs[op.productPlace($0)].array })
      fill(&a.operands, plan.operandSpaces.indices.map { call.outputs[op.operandPlace($0)].array })
      fill(
        &a.gradients, parts.parameters.indices.map { launch.float32Output(call.outputs[1 + $0]) })
      if !plan.isDiagonal {
        fill(
          &a.transposed,
          parts.matrices.enumerated().map { i, m in
            cell.transposed(m, forward.optional.pick(forward.matrixPlace(i), call.inputs), launch)
          })
      }
      cell.run(
        .backward, isNewton: forward.isNewton && forward.plan.isDiagonal && a.tokens > 0, states,
        &a, launch)
      return true
    },
  ]

  /// Writes elements into a C array.
  static func fill<Storage, Element>(_ array: inout Storage, _ elements: [Element]) {
    withUnsafeMutableBytes(of: &array) { bytes in
      elements.withUnsafeBytes { bytes.copyMemory(from: $0) }
    }
  }
}

/// The functions of one described cell.
private final class DescribedCell: Sendable {
  enum Direction: String { case forward, backward }
  private let plan: CellPlan
  private let text: String

  private static let known = Mutex<[ObjectIdentifier: DescribedCell]>([:])
  private static let mostKnown = 256

  /// Nil for cells that the kernels' arguments have no room for.
  static func of(_ plan: CellPlan) -> DescribedCell? {
    known.withLock { table in
      // Entries hold their plan, so that its identity stays its own.
      if let cell = table[ObjectIdentifier(plan)] { return cell }
      let (spaces, parts) = (plan.parts.inputs.map(\.space), plan.parts.parameters.map(\.space))
      let isRegular = !plan.isDiagonal || (spaces + parts).allSatisfy { $0 == 0 }
      guard isRegular, let text = CellSource.text(plan) else { return nil }
      if table.count >= mostKnown { table.removeAll() }
      let cell = DescribedCell(plan, text)
      table[ObjectIdentifier(plan)] = cell
      return cell
    }
  }

  private init(_ plan: CellPlan, _ text: String) { (self.plan, self.text) = (plan, text) }

  func arguments(
    _ op: RecurrentCellForward, _ inputs: [Tensor], _ launch: CUDALaunch
  ) -> gyre_described_args {
    let parts = plan.parts
    var a = gyre_described_args()
    let x = inputs[0].shape
    (a.batch, a.tokens, a.width) = (x[0], x[1], x[2])
    CUDAKernel.fill(&a.widths, parts.spaces)
    a.reset = op.optional.pick(op.resetPlace, inputs).address
    a.gates = inputs[0].array
    CUDAKernel.fill(
      &a.parameters,
      parts.parameters.indices.map { op.optional.pick(op.parameterPlace($0), inputs).array })
    CUDAKernel.fill(
      &a.matrices,
      parts.matrices.indices.map { i in
        op.optional.pick(op.matrixPlace(i), inputs).map { launch.float32($0) } ?? 0
      })
    return a
  }

  /// A matrix with rows and columns exchanged.
  func transposed(_ m: CellParts.Matrix, _ weights: Tensor?, _ launch: CUDALaunch) -> UInt64 {
    guard let weights else { return 0 }
    let shape = plan.parts.shape(m)
    var a = gyre_cell_transpose_args()
    (a.heads, a.rows, a.columns) = (shape[0], shape[1], shape[2])
    a.x = launch.float32(weights)
    a.y = launch.floats(shape.elementCount)
    launch.run(function("cell_transpose"), over: shape.elementCount, a)
    return a.y
  }

  private func function(_ name: String, _ defines: [String] = []) -> CUDAFunction {
    CUDAFunction.shared("recurrent_cell", name, defines, text: text)
  }

  func run(
    _ direction: Direction, isNewton: Bool, _ states: [gyre_described_state],
    _ a: inout gyre_described_args, _ launch: CUDALaunch
  ) {
    if !plan.isDiagonal {
      let code = direction == .forward ? plan.forward : plan.adjoint
      return CellRows(plan.parts, code, function("cell_rows_\(direction)"), a, launch)
        .run(states, reversed: direction == .backward)
    }
    CUDAKernel.fill(&a.states, states)
    let units = a.batch * plan.parts.spaces[0]
    guard isNewton, plan.parts.states.count <= CellPlan.newtonStates else {
      // One warp a block until every multiprocessor has some.
      let threads = units <= launch.device.multiprocessors * 128 ? 32 : 128
      return launch.run(
        function("cell_units_\(direction)"), grid: ((units + threads - 1) / threads, 1, 1),
        threads: (threads, 1), a)
    }
    // Few units a block where there are few, so that all multiprocessors work; neighbouring units
    // share what a load brings.
    let width = plan.parts.spaces[0]
    func blocks(_ channels: Int) -> Int { a.batch * ((width + channels - 1) / channels) }
    let channels = [8, 4, 2].first { blocks($0) >= launch.device.multiprocessors * 3 / 4 } ?? 1
    let defines = ["-DGYRE_CHANNELS=\(channels)"]
    a.blocks = blocks(channels)
    if direction == .forward { a.reports = launch.floats(4 * a.blocks) }
    launch.run(
      function("cell_newton_\(direction)", defines), grid: (a.blocks, 1, 1), threads: (256, 1), a)
    if direction == .forward {
      launch.run(
        function("cell_newton_report", defines), grid: (1, 1, 1), threads: (32, 1), a)
    }
  }
}

extension CUDALaunch {
  /// The address of a float32 output; 0 for other types, which no op gives its gradients.
  fileprivate func float32Output(_ t: Tensor) -> UInt64 {
    precondition(t.dtype == .float32, "gradient of a cell's parameter in \(t.dtype)")
    return t.address
  }
}
