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

  /// Chunks of a segment: the fastest in times of a chunk's step. Past half of the multiprocessors these wait for
  /// memory; every segment before adds a fold, and a launch begins like three chunks.
  private func backSegment(of processors: Int) -> Int32 {
    let (chunks, columns) = (Int(a.chunks), (Int(a.values) + 63) / 64)
    func time(_ blocks: Int) -> Double {
      let waves = Double((blocks + processors - 1) / processors)
      return max(waves, 2 * Double(blocks) / Double(processors))
    }
    func cost(_ length: Int) -> Double {
      let rest = (chunks + length - 1) / length - 1
      guard rest > 0 else { return time(rows * columns) * Double(chunks) }
      let transitions = rows * (rest - 1) * Int(size / 64)
      let both = time(rows * columns * rest + transitions) + time(rows * columns * rest)
      return both * Double(length + 3) + 2 * Double(rest)
    }
    let most = min(chunks / 4, 2 * processors / rows)
    guard most > 1 else { return a.chunks }
    return Int32((1...most).map { (chunks + $0 - 1) / $0 }.min { cost($0) < cost($1) } ?? chunks)
  }

  /// `a.dv`, `a.state_gradients` and the gradient of the initial state; false where this kernel does not serve the
  /// call.
  ///
  /// - Parameter isRaw: Whether `prepare` has left K̄ and Q̄ to be made of k and q.
  func walkTilesBack(isRaw: Bool = false) -> Bool {
    let shared = Int(gyre_cuda_delta_tiles_back_shared(size))
    let tensors = [a.q, a.k, a.dy, UnsafeRawPointer(a.dv)].map { UInt(bitPattern: $0) }
    guard launch.device.compiler.architecture == "sm_90a", rule == GYRE_CUDA_MIXER_BETA,
      size <= 128, shared <= launch.device.sharedPerBlock, tensors.allSatisfy({ $0 % 16 == 0 })
    else { return false }
    var t = tileArguments(rows: a.dy, isRaw: isRaw)
    let segment = backSegment(of: launch.device.multiprocessors)
    if segment < a.chunks { cut(&t, into: segment) }
    let (columns, rest) = ((Int(a.values) + 63) / 64, Int(t.segments) - 1)
    func run(_ functions: [[CUDAFunction]], _ width: Int) {
      launch.run(
        functions[isRaw ? 1 : 0][Int(size / 128)], grid: (width, rows, max(rest, 1)),
        threads: (Int(gyre_cuda_delta_tiles_back_threads()), 1), shared: shared, t)
    }
    if rest > 0 { run(Self.firsts, columns + Int(size / 64)) }
    run(Self.walks, columns)
    return true
  }
}
