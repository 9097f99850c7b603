import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// EGG (`egg.cuh`): int8 tensor cores, noise made on the device. Up to a width of 256 activations stay on the
/// multiprocessor.
extension CUDAKernel {
  static let egg: [CUDAKernel] = [
    CUDAKernel(EggForward.self) { op, call, launch in
      guard let plan = EggPlan(op.shape, op.noise, call.inputs.dropFirst(3).first, launch.device)
      else { return false }
      return plan.forward(op, call, launch)
    },
    CUDAKernel(EggUpdate.self) { op, call, launch in
      let stored = call.inputs.dropFirst(op.carriedLimit == nil ? 2 : 3).first
      guard let plan = EggPlan(op.shape, op.noise, stored, launch.device) else { return false }
      return plan.update(op, call, launch)
    },
  ]
}

/// The sizes of EGG's launches: those of gyre_cuda_egg_args.h.
private struct EggPlan {
  private let shape: EggShape
  private let device: CUDADevice
  private let defines: [String]
  private var noise = gyre_egg_noise()

  /// Memory of one launch for noise and states, and for the factors of votes.
  private static let streamBytes = 3 << 29
  private static let factorBytes = 1 << 29
  private static let mostStages = 16

  private var isWide: Bool { shape.width > Int(GYRE_EGG_NARROW) }
  /// Chunks of 64 inputs of a piece.
  private var depth: Int { isWide ? Int(GYRE_EGG_DEEP) : divided(shape.width, 64) }
  /// Chunks of 64 features.
  private var chunks: Int { divided(shape.width, 64 * depth) * depth }
  private var piece: Int { 64 * 64 * depth }
  private var pieces: Int { (12 * chunks * shape.layers + 4) * (chunks / depth) }
  private var records: Int { chunks + 26 * chunks * shape.layers + 3 * chunks + 4 }
  private var record: Int { Int(GYRE_EGG_RECORD) }
  private var tile: Int { Int(GYRE_EGG_TILE) }
  private var stateBytes: Int { shape.layers * 2 * chunks * record }
  private var embeddingBytes: Int { EggShape.vocabulary * Int(GYRE_EGG_PAIRS) }

  /// Nil where the op says that its noise is stored, and none is given.
  init?(_ shape: EggShape, _ noise: EggNoise, _ stored: Tensor?, _ device: CUDADevice) {
    (self.shape, self.device) = (shape, device)
    defines = ["-DWIDTH=\(shape.width)", "-DSHIFT=\(4 + noise.sigmaShift)"]
    self.noise.stored_row = Int32(clamping: shape.noiseCount)
    switch noise.source {
    case .none: self.noise.kind = Int32(GYRE_EGG_NO_NOISE)
    case .stored:
      guard let stored else { return nil }
      self.noise.kind = Int32(GYRE_EGG_STORED)
      self.noise.stored = stored.address
    case .generated(let seed, let epoch, let firstPair):
      self.noise.kind = Int32(GYRE_EGG_GENERATED)
      (self.noise.epoch, self.noise.first_pair) = (epoch, firstPair)
      self.noise.key = (
        UInt32(truncatingIfNeeded: seed), UInt32(truncatingIfNeeded: seed >> 32)
      )
    }
    withUnsafeMutableBytes(of: &self.noise.magnitudes) { bytes in
      EggNoise.magnitudes.withUnsafeBytes { bytes.copyMemory(from: $0) }
    }
  }

  private func function(_ file: String, _ name: String) -> CUDAFunction {
    CUDAFunction.shared(file, name, defines)
  }

  private func divided(_ a: Int, _ b: Int) -> Int { (a + b - 1) / b }

  // MARK: - Forward

  /// Tiles of a block and pieces of its pipeline.
  private struct Block {
    var tiles: Int
    var stages: Int
    var shared: Int
  }

  private func block(tiles: Int) -> Block? {
    // Buffers, tables of 272 words; a piece has two barriers.
    let fixed = (isWide ? 0 : tiles * 8 * chunks * record) + 4 * 272
    let stages = min(Self.mostStages, (device.sharedPerBlock - fixed) / (piece + 16))
    return stages >= 2
      ? Block(tiles: tiles, stages: stages, shared: fixed + stages * (piece + 16)) : nil
  }

  func forward(_ op: EggForward, _ call: KernelCall, _ launch: CUDALaunch) -> Bool {
    let members = call.inputs[2].shape[0]
    let tiles = divided(members, tile)
    guard tiles > 0 else { return true }
    let wanted = tiles > device.multiprocessors ? 2 : 1
    guard let block = block(tiles: wanted) ?? block(tiles: 1) else { return false }
    let buffers = isWide ? 16 * chunks * record : 0
    let bytesOfTile = records * record + embeddingBytes + stateBytes + buffers
    let wave = device.multiprocessors * block.tiles
    let most = max(1, min(Self.streamBytes / bytesOfTile, 8192))
    // Whole waves, so that only the last launch leaves multiprocessors without work.
    let whole = most < wave ? most : most / wave * wave
    let each = divided(min(tiles, whole), block.tiles) * block.tiles

    var pack = gyre_egg_pack_args()
    (pack.layers, pack.pieces_count) = (shape.layers, pieces)
    pack.weights = call.inputs[0].address
    pack.pieces = launch.scratch(pieces * piece)
    pack.emb = launch.scratch(EggShape.vocabulary * 64 * chunks)
    launch.run(function("egg_streams", "egg_pack"), over: pieces * piece / 16, pack)

    var s = gyre_egg_streams_args()
    s.noise = noise
    s.noise.pairs = max(members / 2, 1)
    (s.layers, s.records, s.weights) = (shape.layers, records, call.inputs[0].address)
    s.streams = launch.scratch(each * records * record)
    s.embedding = launch.scratch(each * embeddingBytes)

    var a = gyre_egg_forward_args()
    (a.members, a.layers, a.records) = (members, shape.layers, records)
    (a.tokens, a.group) = (call.inputs[1].shape[1] - 1, op.group)
    a.stages = Int32(block.stages)
    (a.text, a.state) = (call.inputs[1].address, call.inputs[2].address)
    (a.fitness, a.state_out) = (call.outputs[0].address, call.outputs[1].address)
    if op.keepsLogits { a.logits = call.outputs[2].address }
    (a.pieces, a.emb) = (pack.pieces, pack.emb)
    (a.streams, a.embedding) = (s.streams, s.embedding)
    a.working = launch.scratch(each * stateBytes)
    if isWide { a.buffers = launch.scratch(each * buffers) }
    let copies = device.compiler.architecture == "sm_90a" ? 128 : 0
    for first in stride(from: 0, to: tiles, by: each) {
      let some = divided(min(each, tiles - first), block.tiles) * block.tiles
      (s.first_tile, a.first_tile) = (first, first)
      launch.run(
        function("egg_streams", "egg_streams"), grid: (records + 4, some, 1), threads: (128, 1), s)
      launch.run(
        function("egg_forward", "egg_forward"), grid: (some / block.tiles, 1, 1),
        threads: (128 * block.tiles + copies, 1), shared: block.shared, a)
    }
    return true
  }

  // MARK: - Update

  private func padded(_ rows: Int) -> Int { divided(rows, 128) * 128 }

  func update(_ op: EggUpdate, _ call: KernelCall, _ launch: CUDALaunch) -> Bool {
    let pairs = call.inputs[1].shape[0]
    let (square, tall) = (padded(shape.width), padded(4 * shape.width))
    let rows = 2 * (EggShape.vocabulary + square) + shape.layers * (10 * square + 2 * tall)
    let (across, high) = (square / 128, tall / 128)
    let tiles = 2 * 2 * across + shape.layers * (4 * across * across + 2 * across * high)
    let unit = Int(GYRE_EGG_VOTE_PAIRS)
    let most = max(1, Self.factorBytes / (rows * unit)) * unit
    let each = min(divided(pairs, unit) * unit, most)

    var v = gyre_egg_vote_args()
    v.noise = noise
    v.noise.pairs = pairs
    (v.layers, v.pairs, v.signs) = (shape.layers, pairs, call.inputs[1].address)
    v.factors = launch.scratch(max(rows * each, 1))
    v.z = launch.scratch(4 * shape.parameterCount)
    launch.zero(v.z, shape.parameterCount)
    for first in stride(from: 0, to: pairs, by: max(each, 1)) {
      v.first = first
      v.count = divided(min(each, pairs - first), unit) * unit
      let parts = min(divided(4 * device.multiprocessors, tiles), v.count / unit)
      let vectors = (4 * shape.layers + 1) * divided(shape.width, 8)
      launch.run(
        function("egg_update", "egg_vote_factors"), over: v.count / 16 * (rows / 16) * 4, v)
      launch.run(function("egg_update", "egg_votes"), grid: (tiles, parts, 1), v)
      launch.run(
        function("egg_update", "egg_vote_vectors"),
        grid: (
          vectors, min(divided(16 * device.multiprocessors, vectors), divided(v.count, 128)), 1
        ),
        threads: (128, 1), v)
    }
    var m = gyre_egg_move_args()
    (m.count, m.z) = (shape.parameterCount, v.z)
    m.limit = Int32(clamping: op.limit(pairs: pairs))
    (m.weights, m.weights_out) = (call.inputs[0].address, call.outputs[0].address)
    if op.carriedLimit != nil {
      (m.carried, m.carried_out) = (call.inputs[2].address, call.outputs[1].address)
    }
    launch.run(function("egg_update", "egg_move"), over: m.count, m)
    return true
  }
}
