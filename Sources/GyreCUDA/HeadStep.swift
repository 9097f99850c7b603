import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// One token of linear attention or a delta rule for many sequences (`head_step.cu`): bound by reading and
/// writing the states once, which may be done in place.
struct HeadStep {
  private let function: CUDAFunction
  /// Columns of the state of a warp, warps that share a state's rows, bytes of shared memory.
  private let columns, team, shared: Int
  /// Where among the op's inputs the state is.
  let state: Int?

  /// Warps of a block where each is alone; a team is a block.
  private static let warps = 4
  /// Functions by lanes beside each other and rows of a thread, for a warp and for a team of them.
  private static func each(_ name: String, _ rows: [Int]) -> [[Int: CUDAFunction]] {
    (2...5).map { lanes in
      var table: [Int: CUDAFunction] = [:]
      for n in rows {
        table[n] = CUDAFunction("head_step", "\(name)_\(n)", ["-DLOG_LANES=\(lanes)"])
      }
      return table
    }
  }
  private static let alone = each("head_step", [8, 16])
  private static let pairs = each("head_pair", [16])
  private static let teams = each("head_team", [16, 32])

  /// Nil where the call has more than one token, or its sizes are not covered.
  init?(_ op: any Op, _ inputs: [Tensor], _ device: CUDADevice) {
    guard inputs[0].rank == 4, inputs[0].shape[1] == 1 else { return nil }
    let extents: HeadExtents
    switch op {
    case let op as LinearAttentionForward:
      (extents, state) = (op.extents(inputs.map(\.spec)), op.optional[6])
    case let op as DeltaRuleForward:
      (extents, state) = (op.extents(inputs.map(\.spec)), op.optional[7])
    default: return nil
    }
    if let state, inputs[state].dtype != .float32 || inputs[state].byteOffset % 16 != 0 {
      return nil
    }
    // Values are read four at a time.
    guard inputs[2].byteOffset % 16 == 0 else { return nil }
    let (rows, keys, values) = (extents.batch * extents.heads, extents.keySize, extents.valueSize)
    guard rows > 0, values > 0, keys > 0, rows * values / 16 < 1 << 31 else { return nil }
    // More lanes make longer pieces of memory, fewer make more warps.
    let possible: [(lanes: Int, team: Int, held: Int)] = [5, 4, 3, 2].compactMap { lanes in
      let lines = 32 >> lanes
      let held = (keys + lines - 1) / lines
      guard values % (4 << lanes) == 0 else { return nil }
      if held <= 16 { return (lanes, 1, held <= 8 ? 8 : 16) }
      if held <= 32 { return (lanes, 2, 16) }
      let part = (held + Self.warps - 1) / Self.warps
      return part <= 32 ? (lanes, Self.warps, part <= 16 ? 16 : 32) : nil
    }
    let fills = possible.first {
      rows * values / (4 << $0.lanes) * $0.team >= 8 * device.multiprocessors
    }
    guard let plan = fills ?? possible.last,
      let function = [1: Self.alone, 2: Self.pairs, Self.warps: Self.teams][plan.team]?[
        plan.lanes - 2][plan.held]
    else { return nil }
    self.function = function
    (columns, team) = (4 << plan.lanes, plan.team)
    shared = (team > 1 ? 1 : Self.warps) * 5 * 4 * ((keys + 3) / 4 * 4)
  }

  func run(_ a: gyre_head_args, _ launch: CUDALaunch) {
    let tiles = a.batch * a.heads * (a.value_size / columns)
    let (each, warps) = team > 1 ? (1, team) : (Self.warps, Self.warps)
    launch.run(
      function, grid: ((tiles + each - 1) / each, 1, 1), threads: (32 * warps, 1),
      shared: shared, a)
  }
}
