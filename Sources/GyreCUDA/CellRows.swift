import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// A described cell whose units mix, spread over the device (`cell_rows.cuh`): a team of blocks has some
/// rows of the batch and shares out their units; what products need goes through the second-level cache.
///
/// Small cells, whose matrices one multiprocessor's cache holds, take a block a row and tell nothing.
struct CellRows {
  private let launch: CUDALaunch
  private let function: CUDAFunction
  private let parts: CellParts
  /// Of a block, in bytes; 0 where its values are in memory.
  private let shared: Int
  private let teams: Int
  private var a: gyre_described_args

  /// Matrices up to this size are read by every block for itself.
  private static let smallBytes = 128 << 10
  /// Memory for what teams tell each other in one launch; longer sequences take several.
  private static let exchangeBytes = 128 << 20
  private static let mostRows = 8
  private static let threads = 512
  /// Rows of a matrix that a warp multiplies at a time.
  private static let warpRows = 4

  init(
    _ parts: CellParts, _ code: CellCode, _ function: CUDAFunction,
    _ arguments: gyre_described_args, _ launch: CUDALaunch
  ) {
    (self.launch, self.function, self.parts, a) = (launch, function, parts, arguments)
    let told = CellSource.told(code, parts)
    let weights = parts.matrices.reduce(0) { $0 + parts.shape($1).elementCount }
    let isSmall = weights * 4 <= Self.smallBytes
    let rows = isSmall ? 1 : max(1, min(a.batch, Self.mostRows))
    let widest = parts.spaces.max() ?? 1
    teams = Self.divided(a.batch, rows)

    func floats(_ slices: Int) -> Int {
      code.tileSpaces.reduce(slices > 1 ? rows * (told.max() ?? 0) : 0) {
        $0 + Self.divided(rows * Self.divided(parts.spaces[$1], slices), 4) * 4
      }
    }
    func fits(_ slices: Int) -> Bool { 4 * floats(slices) <= launch.device.sharedPerBlock }
    var slices = 1
    if !isSmall {
      let blocks = launch.device.multiprocessors
      let most = max(1, min(blocks, Self.divided(widest, Self.warpRows)))
      let wanted = max(1, min(most, blocks / min(teams, blocks)))
      slices = (wanted...most).first(where: fits) ?? wanted
    }
    a.rows = rows
    a.slices = slices
    a.told = told.reduce(0) { $0 + rows * Self.divided($1, 4) * 4 }
    a.memory_stride = Self.divided(floats(slices), 4) * 4
    shared = fits(slices) ? 4 * floats(slices) : 0
  }

  private static func divided(_ a: Int, _ b: Int) -> Int { (a + b - 1) / b }

  /// Launches over groups of teams that are on the device at once and stretches of tokens whose exchange
  /// fits memory; states go from one stretch to the next in float32.
  func run(_ states: [gyre_described_state], reversed: Bool) {
    var a = a
    let isAlone = a.slices == 1
    let atOnce =
      isAlone
      ? min(teams, 65_535)
      : min(teams, launch.blocksAtOnce(function, threads: Self.threads, shared: shared) / a.slices)
    guard atOnce > 0 else { return noRoom() }
    let stretch =
      isAlone ? a.tokens : max(1, min(a.tokens, Self.exchangeBytes / (4 * a.told * atOnce)))
    if !isAlone { a.exchange = launch.scratch(4 * a.told * atOnce * stretch) }
    if shared == 0 { a.memory = launch.floats(a.memory_stride * a.slices * atOnce) }
    let carry = parts.states.map { state -> gyre_array in
      stretch < a.tokens ? .floats(launch.floats(a.batch * parts.spaces[state.space])) : .init()
    }
    var starts = Array(stride(from: 0, to: max(a.tokens, 1), by: max(stretch, 1)))
    if reversed { starts.reverse() }
    for team in stride(from: 0, to: teams, by: atOnce) {
      let count = min(atOnce, teams - team)
      a.first_row = team * a.rows
      for (i, start) in starts.enumerated() {
        (a.first, a.last) = (start, min(start + stretch, a.tokens))
        CUDAKernel.fill(
          &a.states,
          zip(states, carry).map { state, carry in
            var state = state
            if i > 0 { state.first = carry }
            if i < starts.count - 1 { state.last = carry }
            return state
          })
        if isAlone {
          launch.run(
            function, grid: (1, count, 1), threads: (Self.threads, 1), shared: shared, a)
        } else {
          launch.setBytes(a.exchange, 0xff, 4 * a.told * count * (a.last - a.first))
          launch.runTogether(
            function, grid: (a.slices, count), threads: Self.threads, shared: shared, a)
        }
      }
    }
  }

  /// A kernel that does not fit the device at all has failed to compile, which the device keeps.
  private func noRoom() {
    if !launch.device.failure.isSet {
      launch.device.fail(
        .kernelFailed(
          kernel: function.name, device: launch.device.name,
          reason: "a block does not fit a multiprocessor"))
    }
  }
}
