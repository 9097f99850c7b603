import CGyreCUDASources

/// The delta rule's walk back by tiles for Hopper (`cuda/delta_rule_tiles_back.cu`).
extension ChunkedHeads {
  private static func each(_ name: String) -> [CUDAFunction] {
    [64, 128].map {
      CUDAFunction(
        "delta_rule_tiles_back", "delta_rule_tiles_back\(name)_k\($0)", ["-DGYRE_KEYS=\($0)"])
    }
  }
  /// By whether K̄ and Q̄ are made of k and q.
  private static let walks = [each(""), each("_raw")]
  private static let firsts = [each("_first"), each("_raw_first")]

  /// As many segments as a multiprocessor for each block of threads of a launch lets there be, of 8 chunks or more.
  private var backSegments: Int32 {
    max(1, min(Int32(launch.device.multiprocessors / (rows * backColumns)), a.chunks / 8))
  }
  private var backColumns: Int { (Int(a.values) + 63) / 64 }

  /// `a.dv`, `a.state_gradients` and the gradient of the initial state; false where this kernel does not serve the
  /// call.
  func walkTilesBack() -> Bool {
    guard hasTiles, rule == GYRE_CUDA_MIXER_BETA, UInt(bitPattern: a.dy) % 16 == 0 else {
      return false
    }
    var t = tileArguments(rows: a.dy)
    let wanted = backSegments
    if wanted > 1 { cut(&t, into: (a.chunks + wanted - 1) / wanted) }
    let (columns, rest) = (backColumns, Int(t.segments) - 1)
    func run(_ functions: [[CUDAFunction]], _ width: Int) {
      launch.run(
        functions[isRaw ? 1 : 0][Int(size / 128)], grid: (width, rows, max(rest, 1)),
        threads: (Int(gyre_cuda_delta_tiles_back_threads()), 1),
        shared: Int(gyre_cuda_delta_tiles_back_shared(size)), t)
    }
    if rest > 0 { run(Self.firsts, columns + Int(size / 64)) }
    run(Self.walks, columns)
    return true
  }
}
