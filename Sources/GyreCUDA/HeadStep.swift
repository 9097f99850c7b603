import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// One token of linear attention or a delta rule for many sequences (`head_step.cu`): bound by reading and
/// writing the states once, which may be done in place.
struct HeadStep {
  private let functions: Functions
  /// Columns of the state of a warp, warps that share a state's rows, bytes of shared memory.
  private let columns, team, shared: Int
  /// Where among the op's inputs the state is.
  let state: Int?

  /// Warps of a block where each is alone; a team is a block.
  private static let warps = 4
  /// A kernel for any types, and for tokens in bfloat16 with parameters in float32.
  private struct Functions {
    var any, half: CUDAFunction
    init(_ name: String, lanes: Int) {
      (any, half) = (Self.make(name, lanes), Self.make(name + "_half", lanes))
    }
    private static func make(_ name: String, _ lanes: Int) -> CUDAFunction {
      CUDAFunction("head_step", name, ["-DLOG_LANES=\(lanes)"], isEarly: true)
    }
  }
  /// Functions by lanes beside each other and rows of a thread, for a warp and for a team of them.
  private static func each(_ name: String, _ rows: [Int]) -> [[Int: Functions]] {
    (2...5).map { lanes in
      var table: [Int: Functions] = [:]
      for n in rows { table[n] = Functions("\(name)_\(n)", lanes: lanes) }
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
    var isWhole = false
    switch op {
    case let op as LinearAttentionForward:
      (extents, state) = (op.extents(inputs.map(\.spec)), op.optional[6])
    case let op as DeltaRuleForward:
      (extents, state) = (op.extents(inputs.map(\.spec)), op.optional[7])
    case let op as any HeadStepOp:
      (extents, state) = (op.extents(inputs.map(\.spec)), op.stateInput)
      isWhole = op.readsWholeRows
    default: return nil
    }
    if let state, inputs[state].dtype != .float32 || inputs[state].byteOffset % 16 != 0 {
      return nil
    }
    // Values are read four at a time.
    guard inputs[2].byteOffset % 16 == 0 else { return nil }
    let (rows, keys, values) = (extents.batch * extents.heads, extents.keySize, extents.valueSize)
    guard rows > 0, values > 0, keys > 0, rows * values / 16 < 1 << 31 else { return nil }
    let possible = Self.plans(keys: keys, values: values, isWhole: isWhole)
    let fills = possible.first {
      rows * values / (4 << $0.lanes) * $0.team >= 8 * device.multiprocessors
    }
    guard let plan = fills ?? possible.last,
      let functions = [1: Self.alone, 2: Self.pairs, Self.warps: Self.teams][plan.team]?[
        plan.lanes - 2][plan.held]
    else { return nil }
    self.functions = functions
    (columns, team) = (4 << plan.lanes, plan.team)
    shared = (team > 1 ? 1 : Self.warps) * 5 * 4 * ((keys + 3) / 4 * 4)
  }

  /// A step, of which more columns make longer pieces of memory, fewer more warps.
  private struct Plan {
    /// Lanes beside each other as a power of two, warps that share rows, rows of a thread.
    var lanes, team, held: Int
  }

  /// - Parameter isWhole: whether one warp, or team of warps, must have all columns.
  private static func plans(keys: Int, values: Int, isWhole: Bool) -> [Plan] {
    [5, 4, 3, 2].compactMap { lanes in
      let lines = 32 >> lanes
      let held = (keys + lines - 1) / lines
      guard values % (4 << lanes) == 0, !isWhole || values == 4 << lanes else { return nil }
      if held <= 16 { return Plan(lanes: lanes, team: 1, held: held <= 8 ? 8 : 16) }
      if held <= 32 { return Plan(lanes: lanes, team: 2, held: 16) }
      let part = (held + warps - 1) / warps
      return part <= 32 ? Plan(lanes: lanes, team: warps, held: part <= 16 ? 16 : 32) : nil
    }
  }

  /// Whether the kernel has the sizes.
  static func covers(_ op: some HeadStepOp) -> Bool {
    op.keySize > 0 && op.valueSize > 0
      && !plans(keys: op.keySize, values: op.valueSize, isWhole: op.readsWholeRows).isEmpty
  }

  /// Whether the kernel for bfloat16 reads the types; an absent array is of any.
  private static func isHalf(_ s: gyre_head_step_args) -> Bool {
    let a = s.of
    func all(_ arrays: [gyre_array], _ dtype: DType) -> Bool {
      arrays.allSatisfy { $0.data == 0 || $0.dtype == dtype.cuda }
    }
    let isConstant = a.decay == Int32(GYRE_DECAY_CONSTANT)
    let tokens = [
      a.q, a.k, a.v, a.y, a.beta, a.input_gate, a.a, a.b, s.z, s.gate, s.rate, s.decay, s.first,
      s.amount,
    ]
    let parameters = [
      a.bonus, s.bias, s.log_rate, s.weight, s.norm_bias, s.key_scale, s.key_rate, s.decay_bias,
      s.bonus, s.amount_bias,
    ]
    return all(tokens + (isConstant ? [] : [a.g]), .bfloat16)
      && all(parameters + (isConstant ? [a.g] : []) + [a.norm_state, a.max_state], .float32)
  }

  func run(_ a: gyre_head_args, _ launch: CUDALaunch) {
    var step = gyre_head_step_args()
    step.of = a
    run(step, launch)
  }

  func run(_ step: gyre_head_step_args, _ launch: CUDALaunch) {
    let a = step.of
    let tiles = a.batch * a.heads * (a.value_size / columns)
    let (each, warps) = team > 1 ? (1, team) : (Self.warps, Self.warps)
    launch.run(
      Self.isHalf(step) ? functions.half : functions.any,
      grid: ((tiles + each - 1) / each, 1, 1), threads: (32 * warps, 1), shared: shared, step)
  }
}
