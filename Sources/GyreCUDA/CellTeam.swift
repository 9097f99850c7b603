import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// Cells whose recurrent weights stay in registers over all tokens (`cell_team.cuh`): the blocks of a
/// head and a group of rows form a team, and all teams of a launch are on the device at once.
///
/// For bfloat16 products, at most 1024 units a head, a multiple of eight; more heads and rows than fit
/// take launches one after the other.
struct CellTeam {
  private let x: CellExtents
  private let cell: CellScan.Cell
  /// Blocks of eight rows of the batch that a team multiplies at once.
  private let tiles: Int
  private var pairs: Int { x.heads * divided(x.batch, 8 * tiles) }

  /// Memory for what teams tell each other in one launch; longer sequences take several.
  private static let exchangeBytes = 128 << 20
  private static let forwardWarps = 8
  private static let backwardWarps = 16
  /// Groups of 32 operands that a warp's registers have room for.
  private static let mostGroups = (forward: 4, backward: 8)
  /// Below, loading the weights costs more than it saves.
  private static let fewestTokens = 4

  /// Nil where the kernels do not serve.
  init?(_ op: CellForward, _ x: CellExtents) {
    guard op.precision == .bfloat16, x.units > 0, x.units % 8 == 0, x.tokens >= Self.fewestTokens
    else { return nil }
    (self.x, cell) = (x, op.cell)
    tiles = x.batch <= 8 ? 1 : 2
    guard groups(x.units, Self.forwardWarps) <= Self.mostGroups.forward,
      groups(backwardOperands, Self.backwardWarps) <= Self.mostGroups.backward
    else { return nil }
  }

  private func divided(_ a: Int, _ b: Int) -> Int { (a + b - 1) / b }
  private func groups(_ operands: Int, _ warps: Int) -> Int {
    divided(divided(operands, 32), warps)
  }
  /// Operands of the backward product: the cotangents of all gates whose products go together.
  private var backwardOperands: Int {
    (cell == .gruOriginal ? 2 : cell.gateCount) * x.units
  }
  /// Bytes that a team tells at one token.
  private func told(_ operands: Int) -> Int { divided(operands, 32) * tiles * 512 }

  private func defines(_ operands: Int, _ warps: Int) -> [String] {
    [
      "-DGYRE_CELL=\(cell.number)", "-DGYRE_TILES=\(tiles)",
      "-DGYRE_GROUPS=\(groups(operands, warps))",
    ]
  }

  func forward(_ op: CellForward, _ call: KernelCall, _ launch: CUDALaunch) -> Bool {
    let function = CUDAFunction.shared(
      "cell_team", "cell_team_forward", defines(x.units, Self.forwardWarps))
    var a = arguments(op, call.inputs, launch)
    a.xw = call.inputs[0].array
    a.bias = op.optional.pick(2, call.inputs).array
    a.y = call.outputs[0].array
    a.gates = op.gatesPlace.map { call.outputs[$0] }.array
    a.cells = op.cellsPlace.map { call.outputs[$0] }.array
    a.normalizers = op.normalizersPlace.map { call.outputs[$0] }.array
    a.stabilizers = op.stabilizersPlace.map { call.outputs[$0] }.array
    let first = [3, 4, 6, 7].map { op.optional.pick($0, call.inputs).array }
    let last = (0..<4).map { $0 <= cell.memories.count ? call.outputs[1 + $0].array : .init() }
    return run(
      function, slices: x.units / 8, threads: 32 * Self.forwardWarps, operands: x.units, launch,
      from: first, to: last, states: 1 + cell.memories.count, reversed: false, a)
  }

  func backward(_ op: CellBackward, _ call: KernelCall, _ launch: CUDALaunch) -> Bool {
    let function = CUDAFunction.shared(
      "cell_team_gradient", "cell_team_backward",
      defines(backwardOperands, Self.backwardWarps))
    var a = arguments(op.forward, call.inputs, launch)
    let rest = Array(call.inputs[op.inputCount...])
    a.y = rest[0].array
    a.gates = op.extra.pick(1, rest).array
    a.cells = op.extra.pick(2, rest).array
    a.normalizers = op.extra.pick(6, rest).array
    a.stabilizers = op.extra.pick(7, rest).array
    a.dy = op.extra.pick(3, rest).array
    let given = [3, 4, 6, 7].map { op.forward.optional.pick($0, call.inputs).array }
    a.given = (given[0], given[1], given[2], given[3])
    a.dxw = call.outputs[0].array
    a.previous = call.outputs[op.previousPlace].array
    if cell.isGRU { a.second = call.outputs[op.previousPlace + 1].array }
    let first = [4, 5, 8].map { op.extra.pick($0, rest).array } + [.init()]
    let last = [3, 4, 6, 7].map { i in op.place(i).map { call.outputs[$0] }.array }
    return run(
      function, slices: divided(x.units, 16), threads: 32 * Self.backwardWarps,
      operands: backwardOperands, launch, from: first, to: last,
      states: cell == .slstm ? 3 : 1 + cell.memories.count, reversed: true, a)
  }

  private func arguments(
    _ op: CellForward, _ inputs: [Tensor], _ launch: CUDALaunch
  ) -> gyre_cell_team_args {
    var a = gyre_cell_team_args()
    (a.batch, a.tokens, a.heads, a.units) = (x.batch, x.tokens, x.heads, x.units)
    a.weight = launch.bfloat16(inputs[1])
    a.reset = op.optional.pick(5, inputs).address
    return a
  }

  /// Launches over groups of teams that fit the device and stretches of tokens whose exchange fits
  /// memory; states go from one stretch to the next in float32.
  private func run(
    _ function: CUDAFunction, slices: Int, threads: Int, operands: Int, _ launch: CUDALaunch,
    from first: [gyre_array], to last: [gyre_array], states: Int, reversed: Bool,
    _ arguments: gyre_cell_team_args
  ) -> Bool {
    let atOnce = min(launch.blocksAtOnce(function, threads: threads) / slices, pairs, 65_535)
    guard atOnce > 0 else { return launch.device.failure.isSet }
    let bytes = (told(operands) + (cell == .gruOriginal ? told(x.units) : 0)) * atOnce
    let stretch = max(1, min(x.tokens, Self.exchangeBytes / bytes))
    var a = arguments
    a.exchange = launch.scratch(told(operands) * atOnce * stretch)
    if cell == .gruOriginal { a.exchange2 = launch.scratch(told(x.units) * atOnce * stretch) }
    let carry = (0..<4).map { i -> gyre_array in
      i < states && stretch < x.tokens
        ? .floats(launch.floats(x.batch * x.hidden)) : .init()
    }
    let starts = Array(stride(from: 0, to: x.tokens, by: stretch))
    for pair in stride(from: 0, to: pairs, by: atOnce) {
      let teams = min(atOnce, pairs - pair)
      a.first_pair = pair
      for (i, start) in (reversed ? starts.reversed() : starts).enumerated() {
        (a.first, a.last) = (start, min(start + stretch, x.tokens))
        a.start = four(i == 0 ? first : carry)
        a.final = four(i == starts.count - 1 ? last : carry)
        launch.setBytes(a.exchange, 0xff, told(operands) * teams * (a.last - a.first))
        if a.exchange2 != 0 {
          launch.setBytes(a.exchange2, 0xff, told(x.units) * teams * (a.last - a.first))
        }
        launch.runTogether(function, grid: (slices, teams), threads: threads, a)
      }
    }
    return true
  }

  private func four(
    _ a: [gyre_array]
  ) -> (gyre_array, gyre_array, gyre_array, gyre_array) { (a[0], a[1], a[2], a[3]) }
}
