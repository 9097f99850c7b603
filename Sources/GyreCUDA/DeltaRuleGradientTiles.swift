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
    guard launch.device.compiler.architecture == "sm_90a", rule == GYRE_CUDA_MIXER_BETA, isScalar,
      values > 0, a.written != nil
    else { return false }
    let shared = Int(gyre_cuda_delta_gradient_shared(size, values))
    let inputs = [a.q, a.k, a.dy].map { UInt(bitPattern: $0) }
    let others = [a.dv, a.written, a.dq, a.dk].map { UInt(bitPattern: $0) }
    guard shared <= launch.device.sharedPerBlock, (inputs + others).allSatisfy({ $0 % 16 == 0 })
    else { return false }
    func map(_ address: UInt, _ heads: Int32, _ channels: Int32) -> gyre_tensor_map {
      launch.map(
        UInt64(address), batch: Int(a.batch), rows: Int(a.tokens), heads: Int(heads),
        channels: Int(channels))
    }
    var t = gyre_cuda_delta_gradient_args()
    (t.q, t.k) = (map(inputs[0], a.key_heads, a.keys), map(inputs[1], a.key_heads, a.keys))
    (t.dy, t.dv) = (map(inputs[2], a.heads, a.values), map(others[0], a.heads, a.values))
    t.written = map(others[1], a.heads, a.values)
    (t.dq, t.dk) = (map(others[2], a.heads, a.keys), map(others[3], a.heads, a.keys))
    t.m = a
    launch.run(
      Self.gradients[Int(size / 128)][Int(values / 128)], grid: (Int(a.chunks), rows, 1),
      threads: (Int(gyre_cuda_delta_gradient_threads(size)), 1), shared: shared, t)
    return true
  }
}
