import CGyreCUDASources
import GyreTensors

/// The walk of the delta rules by tiles for Hopper, where nothing is kept for a gradient
/// (`cuda/delta_rule_tiles.cu`).
extension ChunkedHeads {
  private static let walks = [64, 128].map {
    CUDAFunction("delta_rule_tiles", "delta_rule_tiles_k\($0)", ["-DGYRE_KEYS=\($0)"])
  }

  /// After `prepare`: `a.y` and the final state; false where this kernel does not serve the call.
  func walkTiles() -> Bool {
    let shared = Int(gyre_cuda_delta_tiles_shared(size))
    let rows = [a.v, UnsafeRawPointer(a.y)].map { UInt(bitPattern: $0) }
    let columns = (Int(a.values) + 63) / 64
    guard launch.device.compiler.architecture == "sm_90a", rule == GYRE_CUDA_MIXER_GENERAL,
      a.states == nil, size <= 128, shared <= launch.device.sharedPerBlock,
      rows.allSatisfy({ $0 % 16 == 0 })
    else { return false }
    var t = gyre_cuda_delta_tile_args()
    t.tiles = launch.recordMap(
      UInt64(UInt(bitPattern: a.records)), keys: Int(size), count: parts,
      bytes: Int(gyre_cuda_mixer_record_bytes(rule, size)))
    t.v = launch.map(
      UInt64(UInt(bitPattern: a.v)), batch: Int(a.batch), rows: Int(a.tokens), heads: Int(a.heads),
      channels: Int(a.values))
    t.m = a
    launch.run(
      Self.walks[Int(size / 128)], grid: (columns, self.rows, 1), threads: (512, 1),
      shared: shared, t)
    return true
  }
}
