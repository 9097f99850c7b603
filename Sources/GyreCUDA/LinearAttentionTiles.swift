import CGyreCUDASources
import GyreTensors

/// Linear attention with one decay for all channels in one pass that keeps nothing for a gradient, by tiles for
/// Hopper (`cuda/linear_attention_tiles.cu`).
extension ChunkedHeads {
  private static func each(_ name: String) -> [[CUDAFunction]] {
    [64, 128].map { size in
      ["", "_norm"].map {
        CUDAFunction(
          "linear_attention_tiles", "linear_attention_tiles\(name)\($0)_k\(size)",
          ["-DGYRE_KEYS=\(size)"])
      }
    }
  }
  private static let outputs = each("")
  private static let states = each("_states")

  /// Chunks of a segment, and segments of a block of threads of the pass for outputs, where heads are too few for
  /// the card: the fastest by what an H200 was measured at, in times of a chunk's outputs. A launch begins and ends
  /// like three chunks; two blocks of the pass for states run side by side on a multiprocessor, and every state that
  /// a block adds up takes its time.
  private static func segment(
    of chunks: Int, blocks: Int, of processors: Int
  ) -> (chunks: Int, each: Int) {
    func cost(_ length: Int, _ each: Int) -> Double {
      let outputs = (chunks + length * each - 1) / (length * each)
      let waves = (blocks * outputs + processors - 1) / processors
      let added = blocks * (outputs - 1) * each
      let pairs = (added + 2 * processors - 1) / (2 * processors)
      let states = added > processors ? 0.9 * Double(pairs) : added > 0 ? 0.65 : 0
      return Double(waves * (length * each + 3)) + states * Double(length + 3)
        + 0.4 * Double((outputs - 1) * each)
    }
    let most = min(chunks, 1 + 2 * processors / blocks)
    let choices = (1...most).flatMap { n in
      (1...2).map { each in (chunks: (chunks + n * each - 1) / (n * each), each: each) }
    }
    return choices.min { cost($0.chunks, $0.each) < cost($1.chunks, $1.each) } ?? (chunks, 1)
  }

  /// The forward pass into `a.y` and the final values; false where these kernels do not serve the call.
  func runTiles() -> Bool {
    let rows = [a.q, a.k, a.v, UnsafeRawPointer(a.y)].map { UInt(bitPattern: $0) }
    let columns = (Int(a.values) + 63) / 64
    guard launch.device.compiler.architecture == "sm_90a", rule == GYRE_CUDA_MIXER_LINEAR,
      isScalar, size <= 128, rows.allSatisfy({ $0 % 16 == 0 })
    else { return false }
    let blocks = self.rows * columns
    let (chunks, each) = Self.segment(
      of: Int(a.chunks), blocks: blocks, of: launch.device.multiprocessors)
    let segments = (Int(a.chunks) + chunks - 1) / chunks
    let last = (segments - 1) / each  // block of outputs

    var t = gyre_cuda_linear_tile_args()
    t.q = map(a.q, a.key_heads, a.keys)
    t.k = map(a.k, a.key_heads, a.keys)
    t.v = map(a.v, a.heads, a.values)
    t.m = a
    (t.segments, t.segment_chunks) = (Int32(segments), Int32(chunks))
    let (size, isDivided) = (Int(self.size / 128), a.n.divisor > 0 ? 1 : 0)
    if last > 0 {
      let between = Int(gyre_cuda_linear_tiles_between(self.size, blocks, t.segments))
      t.segment_states = Self.floats(launch.scratch(between))
      t.segment_gates = Self.floats(launch.floats(2 * self.rows * segments))
      launch.run(
        Self.states[size][isDivided], grid: (columns, self.rows, last * each),
        threads: (Int(gyre_cuda_linear_tiles_threads(0)), 1),
        shared: Int(gyre_cuda_linear_tiles_shared(self.size, 0)), t)
    }
    launch.run(
      Self.outputs[size][isDivided], grid: (columns, self.rows, last + 1),
      threads: (Int(gyre_cuda_linear_tiles_threads(1)), 1),
      shared: Int(gyre_cuda_linear_tiles_shared(self.size, 1)), t)
    return true
  }
}
