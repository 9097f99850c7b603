import CGyreCUDASources
import GyreTensors

/// The walk of the delta rules by tiles for Hopper (`cuda/delta_rule_tiles.cu`).
extension ChunkedHeads {
  /// Kernels for one size of keys and for values of up to 64 and 128.
  private struct Walks {
    var raw, channels, general, rawStates, states: [CUDAFunction]
    var fold: CUDAFunction
    init(_ size: Int) {
      func function(_ name: String) -> CUDAFunction {
        CUDAFunction(
          "delta_rule_tiles", "delta_rule_tiles\(name)_k\(size)", ["-DGYRE_KEYS=\(size)"])
      }
      func each(_ name: String) -> [CUDAFunction] { [64, 128].map { function("\(name)_v\($0)") } }
      (raw, channels, general) = (each("_raw"), each(""), each("_general"))
      (rawStates, states) = (each("_raw_states"), each("_states"))
      fold = function("_fold")
    }
  }
  private static let walks = [Walks(64), Walks(128)]

  /// Segments of the chunks, side by side: as many as let every block of threads have a multiprocessor, also those
  /// that make the segments' transitions; one where the folds between would take longer.
  private func segments(of processors: Int) -> Int {
    let side = min(processors / rows, (processors / rows + 3) / 2)
    return side < 3 || a.chunks < 32 ? 1 : min(side, Int(a.chunks) / 8)
  }

  /// After `prepare`: `a.y`, the final state, and what is kept for gradients; false where this kernel does not serve
  /// the call.
  ///
  /// - Parameter isRaw: Whether `prepare` has left K̄ and Q̄ to be made of k and q.
  func walkTiles(isRaw: Bool = false) -> Bool {
    let isGeneral = rule == GYRE_CUDA_MIXER_GENERAL, groups = (a.values + 63) / 64
    let shared = Int(gyre_cuda_delta_tiles_shared(rule, size, groups, 1))
    let tensors = [a.q, a.k, a.v, UnsafeRawPointer(a.y)].map { UInt(bitPattern: $0) }
    guard launch.device.compiler.architecture == "sm_90a", rule != GYRE_CUDA_MIXER_LINEAR,
      !isGeneral || a.states == nil, size <= 128, groups <= 2,
      shared <= launch.device.sharedPerBlock, tensors.allSatisfy({ $0 % 16 == 0 })
    else { return false }
    var t = tileArguments(rows: a.v, isRaw: isRaw)
    let walks = Self.walks[Int(size / 128)], width = Int(groups) - 1
    let threads = (Int(gyre_cuda_delta_tiles_threads(groups)), 1)
    if !isGeneral {
      makeSegments(&t, (isRaw ? walks.rawStates : walks.states)[width], walks.fold, threads)
    }
    launch.run(
      (isGeneral ? walks.general : isRaw ? walks.raw : walks.channels)[width],
      grid: (1, rows, Int(t.segments)), threads: threads, shared: shared, t)
    return true
  }

  /// What a walk by tiles takes, in one piece; `rows` are of values.
  func tileArguments(rows: UnsafeRawPointer?, isRaw: Bool) -> gyre_cuda_delta_tile_args {
    func map(_ tensor: UnsafeRawPointer?, _ heads: Int32, _ channels: Int32) -> gyre_tensor_map {
      launch.map(
        UInt64(UInt(bitPattern: tensor)), batch: Int(a.batch), rows: Int(a.tokens),
        heads: Int(heads), channels: Int(channels))
    }
    var t = gyre_cuda_delta_tile_args()
    t.tiles = launch.recordMap(
      UInt64(UInt(bitPattern: a.records)), keys: Int(size), count: parts,
      bytes: Int(gyre_cuda_mixer_record_bytes(rule, size)))
    t.rows = map(rows, a.heads, a.values)
    if isRaw { (t.q, t.k) = (map(a.q, a.key_heads, a.keys), map(a.k, a.key_heads, a.keys)) }
    t.m = a
    (t.segments, t.segment_chunks) = (1, a.chunks)
    return t
  }

  /// Workspace for segments of at most so many chunks.
  func cut(_ t: inout gyre_cuda_delta_tile_args, into chunks: Int32) {
    t.segment_chunks = chunks
    t.segments = (a.chunks + chunks - 1) / chunks
    t.segment_states = Self.floats(
      launch.scratch(
        Int(gyre_cuda_delta_tiles_segment_states(size, a.values, rows, t.segments))))
    t.segment_transitions = Self.memory(
      launch.scratch(Int(gyre_cuda_delta_tiles_segment_transitions(size, rows, t.segments))))
  }

  /// The states that enter segments, where there are to be some.
  private func makeSegments(
    _ t: inout gyre_cuda_delta_tile_args, _ states: CUDAFunction, _ fold: CUDAFunction,
    _ threads: (Int, Int)
  ) {
    let wanted = Int32(segments(of: launch.device.multiprocessors))
    guard wanted > 1 else { return }
    cut(&t, into: (a.chunks + wanted - 1) / wanted)
    let groups = (a.values + 63) / 64, transitions = (size / 64 + groups - 1) / groups
    launch.run(
      states, grid: (1 + Int(transitions), rows, Int(t.segments) - 1), threads: threads,
      shared: Int(gyre_cuda_delta_tiles_shared(rule, size, groups, 0)), t)
    launch.run(
      fold, grid: (Int(groups), rows, 1), threads: (128, 1),
      shared: Int(gyre_cuda_delta_tiles_fold_shared(size)), t)
  }
}
