import CGyreCUDASources

/// Walks of linear attention in segments of chunks side by side, where heads are too few for the card and tokens
/// many (`cuda/chunk_walk.cuh`).
extension ChunkedHeads {
  private static func each(_ part: String) -> [[CUDAFunction]] {
    [("_k64", "walk"), ("_k128", "walk"), ("_k128", "walk_wide")].map { end, name in
      ["", "_back"].map {
        CUDAFunction(
          "linear_attention",
          "linear_attention_" + name.replacing("walk", with: "walk\($0)") + "_\(part)_bf16\(end)",
          ["-DGYRE_KEYS=\(end.dropFirst(2))"])
      }
    }
  }
  private static let states = each("states")
  private static let outputs = each("segments")

  /// Chunks of a segment: two blocks of threads a multiprocessor, and no segment below four chunks.
  private static func segment(of chunks: Int, blocks: Int, of processors: Int) -> Int {
    let wanted = (2 * processors + blocks - 1) / blocks
    return max((chunks + wanted - 1) / wanted, 4)
  }

  /// False where a walk in one piece serves the call better.
  func walkSegments(_ isBack: Bool) -> Bool {
    guard isTeam, rule == GYRE_CUDA_MIXER_LINEAR, size <= 128, a.n.divisor == 0
    else { return false }
    let isWide = size == 128 && a.values > 64
    let width = isWide ? 128 : 64
    let columns = (Int(a.values) + width - 1) / width
    let blocks = rows * columns * (isWide ? 2 : 1)
    let steps = Self.segment(
      of: Int(a.chunks), blocks: blocks, of: launch.device.multiprocessors)
    let segments = (Int(a.chunks) + steps - 1) / steps
    let shared = [1, 0].map {
      Int(gyre_cuda_mixer_segments_shared(size, Int32(width), isBack ? 1 : 0, $0, isNew))
    }
    guard segments > 1, shared.allSatisfy({ $0 <= launch.device.sharedPerBlock }) else {
      return false
    }
    var s = gyre_cuda_segment_args()
    s.m = a
    (s.segments, s.steps) = (Int32(segments), Int32(steps))
    s.states = Self.floats(
      launch.scratch(Int(gyre_cuda_mixer_segments_between(size, a.values, rows, s.segments))))
    s.decays = Self.floats(launch.floats(rows * (segments - 1) * Int(size)))
    let kind = Int(size / 128) + (isWide ? 1 : 0)
    for (part, functions) in [Self.states, Self.outputs].enumerated() {
      launch.run(
        functions[kind][isBack ? 1 : 0], grid: (columns, rows, segments - 1 + part),
        threads: (2 * width, 1), shared: shared[part], s)
    }
    return true
  }
}
