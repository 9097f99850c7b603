import CGyreCUDASources
import GyreTensors

/// The walk of the delta rules by tiles for Hopper (`cuda/delta_rule_tiles.cu`).
extension ChunkedHeads {
  /// Kernels for one size of keys.
  private struct Walks {
    /// Of outputs and of states, each for blocks of 64 and of 128 value columns.
    typealias Parts = (outputs: [CUDAFunction], states: [CUDAFunction])
    var raw, channels, general: Parts
    var fold: CUDAFunction
    init(_ size: Int) {
      func function(_ name: String) -> CUDAFunction {
        CUDAFunction(
          "delta_rule_tiles", "delta_rule_tiles\(name)_k\(size)", ["-DGYRE_KEYS=\(size)"])
      }
      func each(_ name: String) -> [CUDAFunction] { [64, 128].map { function("\(name)_v\($0)") } }
      func parts(_ name: String) -> Parts { (each(name), each("\(name)_states")) }
      (raw, channels, general) = (parts("_raw"), parts(""), parts("_general"))
      fold = function("_fold")
    }
  }
  private static let walks = [Walks(64), Walks(128)]

  /// Value columns of a head by 64.
  private var panels: Int { (Int(a.values) + 63) / 64 }
  private var processors: Int { launch.device.multiprocessors }

  /// Segments of the chunks, side by side: as many as let every block of threads have a multiprocessor, also those
  /// that make the segments' transitions; one where the folds between would take longer.
  private var segments: Int {
    let side = processors / rows, transitions = (Int(size) / 64 + panels - 1) / panels
    let wanted = min(side, (side + 1 + 2 * transitions) / (1 + transitions))
    return side < 3 || a.chunks < 32 ? 1 : min(wanted, Int(a.chunks) / 8)
  }

  /// Whether the kernels by tiles take the delta rules' calls.
  var hasTiles: Bool {
    launch.device.compiler.architecture == "sm_90a" && rule != GYRE_CUDA_MIXER_LINEAR
      && [a.q, a.k, a.v].allSatisfy { UInt(bitPattern: $0) % 16 == 0 }
  }

  /// After `prepare`: `a.y`, the final state, and what is kept for gradients; false where this kernel does not serve
  /// the call.
  func walkTiles() -> Bool {
    let isGeneral = rule == GYRE_CUDA_MIXER_GENERAL
    guard hasTiles, !isGeneral || a.states == nil else { return false }
    var t = tileArguments(rows: a.v)
    let walks = Self.walks[Int(size / 128)]
    let walk = isGeneral ? walks.general : isRaw ? walks.raw : walks.channels
    if segments > 1 { makeStates(&t, walk.states, walks.fold) }
    run(walk.outputs, hasOutputs: true, t, segments: Int(t.segments)) {
      (self.panels + $0 - 1) / $0
    }
    return true
  }

  /// Boxes of 64 rows and 64 channels of a head.
  func map(_ tensor: UnsafeRawPointer?, _ heads: Int32, _ channels: Int32) -> gyre_tensor_map {
    launch.map(
      UInt64(UInt(bitPattern: tensor)), batch: Int(a.batch), rows: Int(a.tokens),
      heads: Int(heads), channels: Int(channels))
  }
  /// Boxes of a tile's 64 rows and 64 of its columns.
  var recordTiles: gyre_tensor_map {
    launch.recordMap(
      UInt64(UInt(bitPattern: a.records)), keys: Int(size), count: parts,
      bytes: Int(gyre_cuda_mixer_record_bytes(rule, size)))
  }

  /// What a walk by tiles takes, in one piece; `rows` are of values.
  func tileArguments(rows: UnsafeRawPointer?) -> gyre_cuda_delta_tile_args {
    var t = gyre_cuda_delta_tile_args()
    t.tiles = recordTiles
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

  /// The states that enter segments.
  private func makeStates(
    _ t: inout gyre_cuda_delta_tile_args, _ states: [CUDAFunction], _ fold: CUDAFunction
  ) {
    cut(&t, into: (a.chunks + Int32(segments) - 1) / Int32(segments))
    run(states, hasOutputs: false, t, segments: Int(t.segments) - 1) {
      (self.panels + $0 - 1) / $0 + (Int(self.size) / 64 + $0 - 1) / $0
    }
    launch.run(
      fold, grid: (panels, rows, 1), threads: (128, 1),
      shared: Int(gyre_cuda_delta_tiles_fold_shared(size)), t)
  }

  /// By blocks of 64 columns where all of them have a multiprocessor each, else by blocks of all columns.
  private func run(
    _ walk: [CUDAFunction], hasOutputs: Bool, _ t: gyre_cuda_delta_tile_args, segments: Int,
    blocks: (Int) -> Int
  ) {
    let groups = blocks(1) * rows * segments <= processors ? 1 : panels
    launch.run(
      walk[groups - 1], grid: (blocks(groups), rows, segments),
      threads: (Int(gyre_cuda_delta_tiles_threads(Int32(groups))), 1),
      shared: Int(gyre_cuda_delta_tiles_shared(rule, size, Int32(groups), hasOutputs ? 1 : 0)), t)
  }
}
