import CGyreCUDASources
import GyreTensors

/// The walk of the delta rules by tiles for Hopper, where nothing is kept for a gradient
/// (`cuda/delta_rule_tiles.cu`).
extension ChunkedHeads {
  private static func tiles(_ name: String, _ size: Int) -> CUDAFunction {
    CUDAFunction("delta_rule_tiles", "delta_rule_tiles\(name)_k\(size)", ["-DGYRE_KEYS=\(size)"])
  }
  private static let small = tiles("", 64)
  private static let large = tiles("", 128)
  private static let pairs = tiles("_pair", 128)

  /// After `prepare`: `a.y` and the final state; false where this kernel does not serve the call.
  func walkTiles() -> Bool {
    let shared = Int(gyre_cuda_delta_tiles_shared(size))
    let rows = [a.v, UnsafeRawPointer(a.y)].map { UInt(bitPattern: $0) }
    guard launch.device.compiler.architecture == "sm_90a", rule != GYRE_CUDA_MIXER_LINEAR,
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
    let columns = (Int(a.values) + 63) / 64
    launch.run(
      size == 64 ? Self.small : columns == 2 ? Self.pairs : Self.large,
      grid: (columns, self.rows, 1), threads: (512, 1), shared: shared, t)
    return true
  }
}
