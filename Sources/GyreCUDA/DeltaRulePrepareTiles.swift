import CGyreCUDASources
import GyreTensors

/// What the delta rule's chunks do to a state, for Hopper where one decay serves all channels
/// (`cuda/delta_rule_prepare_tiles.cu`).
extension ChunkedHeads {
  private static let prepares = [64, 128].map {
    CUDAFunction(
      "delta_rule_prepare_tiles", "delta_rule_prepare_tiles_k\($0)", ["-DGYRE_KEYS=\($0)"])
  }

  /// Records without W and Q̄, for walks that take q and k themselves; false where this kernel does not
  /// serve the call.
  func prepareTiles() -> Bool {
    let shared = Int(gyre_cuda_delta_prepare_shared(size))
    let keys = [a.q, a.k].map { UInt(bitPattern: $0) }
    guard launch.device.compiler.architecture == "sm_90a", rule == GYRE_CUDA_MIXER_BETA, isScalar,
      shared <= launch.device.sharedPerBlock, keys.allSatisfy({ $0 % 16 == 0 })
    else { return false }
    var t = gyre_cuda_delta_prepare_args()
    t.q = keyMap(a.q)
    t.k = keyMap(a.k)
    t.tiles = launch.recordMap(
      UInt64(UInt(bitPattern: a.records)), keys: Int(size), count: parts,
      bytes: Int(gyre_cuda_mixer_record_bytes(rule, size)))
    t.m = a
    launch.run(
      Self.prepares[Int(size / 128)], grid: (Int(a.heads), Int(a.chunks), Int(a.batch)),
      threads: (128, 1), shared: shared, t)
    return true
  }

  /// Boxes of 64 rows and channels of a key head.
  func keyMap(_ x: UnsafeRawPointer?) -> gyre_tensor_map {
    launch.map(
      UInt64(UInt(bitPattern: x)), batch: Int(a.batch), rows: Int(a.tokens),
      heads: Int(a.key_heads), channels: Int(a.keys))
  }
}
