import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// One token of linear attention or a delta rule for many sequences (`head_step.cu`): bound by reading and
/// writing the states once, which may be done in place.
struct HeadStep {
  private let function: CUDAFunction
  private let columns, shared: Int
  /// Where among the op's inputs the state is.
  let state: Int?

  /// Functions by lanes beside each other and rows of a thread.
  private static let functions = (3...5).map { lanes in
    [4, 8, 16].map { CUDAFunction("head_step", "head_step_\($0)", ["-DLOG_LANES=\(lanes)"]) }
  }

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
    let (rows, keys, values) = (extents.batch * extents.heads, extents.keySize, extents.valueSize)
    // 256 threads hold the rows in at most 16 turns; more lanes make longer pieces of memory, fewer
    // make more blocks.
    let possible = [5, 4, 3].filter { values % (4 << $0) == 0 && keys <= 16 * (256 >> $0) }
    guard rows > 0, values > 0, keys > 0,
      let lanes = possible.first(where: {
        rows * values / (4 << $0) >= 4 * device.multiprocessors
      }) ?? possible.last
    else { return nil }
    let turns = (keys + (256 >> lanes) - 1) / (256 >> lanes)
    function = Self.functions[lanes - 3][turns <= 4 ? 0 : turns <= 8 ? 1 : 2]
    (columns, shared) = (4 << lanes, 5 * 4 * keys)
  }

  func run(_ a: gyre_head_args, _ launch: CUDALaunch) {
    launch.run(
      function, grid: (a.batch * a.heads * (a.value_size / columns), 1, 1), shared: shared, a)
  }
}
