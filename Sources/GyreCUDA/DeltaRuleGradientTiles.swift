import CGyreCUDASources
import GyreTensors

/// The delta rule's gradients for Hopper where one decay serves all channels (`cuda/delta_rule_gradient_tiles.cu`).
extension ChunkedHeads {
  /// By sizes of keys and of values.
  private static let gradients = [64, 128].map { keys in
    [64, 128].map { values in
      CUDAFunction(
        "delta_rule_gradient_tiles", "delta_rule_gradient_tiles_k\(keys)_v\(values)",
        ["-DGYRE_KEYS=\(keys)"])
    }
  }

  /// After the walk back, which leaves `a.dv`: all other gradients of the chunks; false where this kernel does not
  /// serve the call.
  func differentiateTiles() -> Bool {
    let values = gyre_cuda_mixer_size(a.values)
    guard isRaw else { return false }
    var t = gyre_cuda_delta_gradient_args()
    (t.q, t.k) = (map(a.q, a.key_heads, a.keys), map(a.k, a.key_heads, a.keys))
    (t.dy, t.dv) = (map(a.dy, a.heads, a.values), map(a.dv, a.heads, a.values))
    t.written = map(a.written, a.heads, a.values)
    (t.dq, t.dk) = (map(a.dq, a.heads, a.keys), map(a.dk, a.heads, a.keys))
    t.m = a
    launch.run(
      Self.gradients[Int(size / 128)][Int(values / 128)], grid: (Int(a.chunks), rows, 1),
      threads: (Int(gyre_cuda_delta_gradient_threads(size)), 1),
      shared: Int(gyre_cuda_delta_gradient_shared(size, values)), t)
    return true
  }
}
