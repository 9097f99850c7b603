import CGyreCUDASources
import GyreTensors

/// What the delta rule's chunks do to a state, for Hopper where one decay serves all channels
/// (`cuda/delta_rule_prepare_tiles.cu`).
extension ChunkedHeads {
  private static let prepares = [64, 128].map {
    CUDAFunction(
      "delta_rule_prepare_tiles", "delta_rule_prepare_tiles_k\($0)", ["-DGYRE_KEYS=\($0)"])
  }

  /// Whether records are without W and Q̄, which the walks by tiles make of k and q.
  var isRaw: Bool { hasTiles && rule == GYRE_CUDA_MIXER_BETA && isScalar }

  /// False where records are not raw.
  func prepareTiles() -> Bool {
    guard isRaw else { return false }
    var t = gyre_cuda_delta_prepare_args()
    (t.q, t.k) = (map(a.q, a.key_heads, a.keys), map(a.k, a.key_heads, a.keys))
    t.tiles = recordTiles
    t.m = a
    launch.run(
      Self.prepares[Int(size / 128)], grid: (Int(a.heads), Int(a.chunks), Int(a.batch)),
      threads: (128, 1), shared: Int(gyre_cuda_delta_prepare_shared(size)), t)
    return true
  }
}
