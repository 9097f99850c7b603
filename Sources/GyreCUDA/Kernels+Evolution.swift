import CGyreCUDASources
import GyreTensors

/// Perturbations of a population.
extension CUDAKernel {
  private static let evolutionNoise = CUDAFunction("evolution", "evolution_noise")
  private static let lowRankAdd = CUDAFunction("evolution", "low_rank_add")
  private static let noiseOfAnySize = CUDAFunction("evolution", "low_rank_noise_any")
  private static let memberParameters = CUDAFunction("evolution", "member_parameters")
  /// By tokens a block, then for rank 1 in bfloat16, any rank in bfloat16, any types.
  private static let noise: [Int: [CUDAFunction]] = [1, 8].reduce(into: [:]) { table, tokens in
    table[tokens] = ["one", "half", "float"].map {
      CUDAFunction("low_rank_noise", "low_rank_noise_\($0)", ["-DTOKENS=\(tokens)"])
    }
  }

  static let evolution: [CUDAKernel] = [
    CUDAKernel(EvolutionNoise.self) { op, call, launch in
      var a = gyre_evolution_noise_args()
      (a.rows, a.count) = (call.inputs[0].shape[0], op.count)
      (a.seed, a.epoch, a.leaf, a.first) = (UInt(op.seed), op.epoch, op.leaf, op.first)
      (a.is_signed, a.factor) = (op.isSigned ? 1 : 0, op.factor)
      a.members = call.inputs[0].address
      a.y = call.outputs[0].array
      launch.run(evolutionNoise, over: a.rows * ((a.count + 3) / 4), a)
      return true
    },
    CUDAKernel(LowRankAdd.self) { op, call, launch in
      var a = gyre_low_rank_add_args()
      let (y, x) = (call.inputs[0], call.inputs[1])
      let (down, up) = (call.inputs[2].shape, call.inputs[3].shape)
      (a.rows, a.rank, a.inputs, a.outputs) = (y.shape.rowCount, down[1], down[2], up[2])
      a.each = a.rows / max(down[0], 1)
      (a.base, a.y) = (y.array, call.outputs[0].array)
      (a.down, a.up) = (call.inputs[2].array, call.inputs[3].array)
      if x.dtype == .int32 { a.tokens = x.address } else { a.x = x.array }
      let blocks = min(a.rows, launch.device.multiprocessors * 16)
      launch.run(lowRankAdd, grid: (blocks, 1, 1), threads: (128, 1), a)
      return true
    },
    CUDAKernel(MemberLinear.self) { op, call, launch in
      let (x, w, y) = (call.inputs[0], call.inputs[1], call.outputs[0])
      guard y.elementCount > 0, !multiplyNarrow(op, call, launch),
        !multiplyTiles(op, call, launch)
      else { return true }
      var p = CUDAProducts.Problem()
      (p.m, p.n, p.k, p.transposesB) = (x.shape.rowCount, w.shape[0], w.shape[1], true)
      // The noise first, the product on top of it: one pass less than the other way round. A product in
      // bfloat16 adds in bfloat16, so that its first summand is rounded no more than its result.
      let isHalf =
        op.map.precision == .bfloat16 || (x.dtype == .bfloat16 && w.dtype == .bfloat16)
      let isDirect = y.dtype == .float32 || (isHalf && y.dtype == .bfloat16)
      let sum = isDirect ? y.array : .floats(launch.floats(y.elementCount))
      var a = gyre_low_rank_noise_args()
      (a.inputs, a.outputs) = (p.k, p.n)
      p.a = isHalf ? launch.bfloat16(x) : launch.float32(x)
      a.x = gyre_array(p.a, isHalf ? .bfloat16 : .float32)
      a.y = sum
      let (down, up) = op.noise.factors(p.k, p.n)
      add(a, op.noise, down, up, call.inputs[2], rows: p.m, launch)
      guard p.k > 0 else { return true }
      p.beta = 1
      (p.aType, p.bType) = isHalf ? (.bfloat16, .bfloat16) : (.float32, .float32)
      p.b = isHalf ? launch.bfloat16(w) : launch.float32(w)
      (p.c, p.cType) = (sum.data, isDirect ? y.dtype : .float32)
      launch.device.multiply(p)
      if !isDirect { launch.cast(sum, to: y.array, count: y.elementCount) }
      return true
    },
    CUDAKernel(MemberRows.self) { op, call, launch in
      let (table, tokens) = (call.inputs[0], call.inputs[1])
      guard tokens.elementCount > 0 else { return true }
      var a = gyre_low_rank_noise_args()
      (a.inputs, a.outputs) = (table.shape[0], table.shape[1])
      (a.tokens, a.base, a.y) = (tokens.address, table.array, call.outputs[0].array)
      // A of the matrix takes the tokens, B gives the row.
      let (down, up) = op.noise.factors(a.outputs, a.inputs)
      add(a, op.noise, up, down, call.inputs[2], rows: tokens.elementCount, launch)
      return true
    },
    CUDAKernel(MemberParameters.self) { op, call, launch in
      let members = call.inputs[0]
      guard members.elementCount > 0, call.inputs[1...].allSatisfy({ $0.dtype == .float32 }),
        call.outputs.allSatisfy({ $0.address % 16 == 0 })
      else { return members.elementCount == 0 }
      var a = gyre_member_parameters_args()
      (a.members_count, a.parameters) = (members.elementCount, Int32(op.leaves.count))
      (a.rank, a.members) = (Int32(op.rank ?? 0), members.address)
      let (down, up) = op.noise(0).factors(1, 1)
      a.noise = arguments(op.noise(0), down, up)
      a.scale = EvolutionNoise(seed: 0, epoch: 0, leaf: 0, count: 1, scale: op.sigma).factor
      withUnsafeMutableBytes(of: &a.parameter) { memory in
        let all = memory.bindMemory(to: gyre_member_parameter.self)
        for (i, p) in call.inputs[1...].enumerated() {
          all[i].value = p.address
          all[i].out = call.outputs[i].address
          all[i].count = p.elementCount
          all[i].leaf = op.leaves[i]
          all[i].columns = op.isLowRank(p.shape) ? Int32(p.shape[1]) : 0
        }
      }
      let pairs = (a.members_count + 1) / 2
      launch.run(
        memberParameters,
        grid: (min(pairs, launch.device.multiprocessors * 64), op.leaves.count, 1),
        a)
      return true
    },
  ]

  private static let narrow = (1...4).map { CUDAFunction("member_linear", "member_linear_\($0)") }

  /// Few inputs: product and noise in one pass. False where the sizes do not fit.
  private static func multiplyNarrow(
    _ op: MemberLinear, _ call: KernelCall, _ launch: CUDALaunch
  ) -> Bool {
    let (x, w, y) = (call.inputs[0], call.inputs[1], call.outputs[0])
    let (rows, inputs, outputs) = (x.shape.rowCount, w.shape[1], w.shape[0])
    let each = rows / max(call.inputs[2].elementCount, 1)
    guard op.noise.rank == 1, op.map.precision == .bfloat16, y.dtype == .bfloat16, inputs % 32 == 0,
      (32...128).contains(inputs), outputs % 32 == 0, outputs > inputs, each % 16 == 0, each > 0,
      y.address % 16 == 0
    else { return false }
    var a = gyre_member_linear_args()
    (a.rows, a.each, a.outputs) = (rows, each, outputs)
    a.x = gyre_array(launch.bfloat16(x), .bfloat16)
    a.w = gyre_array(launch.bfloat16(w), .bfloat16)
    guard a.x.data % 16 == 0, a.w.data % 16 == 0 else { return false }
    (a.y, a.members) = (y.array, call.inputs[2].address)
    let (down, up) = op.noise.factors(inputs, outputs)
    a.noise = arguments(op.noise, down, up)
    launch.run(
      narrow[inputs / 32 - 1], grid: ((rows + 63) / 64, (outputs + 255) / 256, 1),
      threads: (128, 1), a)
    return true
  }

  private static let tiledProducts: [Int: CUDAFunction] = [64, 128, 256].reduce(into: [:]) {
    table, n in
    table[n] = CUDAFunction("member_product", "member_product", ["-DCOLUMNS=\(n)"])
  }

  /// Many rows a member, on Hopper: a product that adds the noise before it writes. False where it does
  /// not fit.
  private static func multiplyTiles(
    _ op: MemberLinear, _ call: KernelCall, _ launch: CUDALaunch
  ) -> Bool {
    let (x, w, y) = (call.inputs[0], call.inputs[1], call.outputs[0])
    let (rows, inputs, outputs) = (x.shape.rowCount, w.shape[1], w.shape[0])
    let each = rows / max(call.inputs[2].elementCount, 1)
    let columns = outputs <= 64 ? 64 : outputs <= 128 ? 128 : 256
    guard launch.device.compiler.architecture == "sm_90a", op.noise.rank == 1,
      op.map.precision == .bfloat16 || (x.dtype == .bfloat16 && w.dtype == .bfloat16),
      y.dtype == .bfloat16, each > 0, each % 16 == 0, inputs > 0, inputs % 8 == 0,
      outputs % 32 == 0,
      max(rows, inputs, outputs) < 1 << 30, y.address % 16 == 0,
      let function = tiledProducts[columns]
    else { return false }
    let (from, weights) = (launch.bfloat16(x), launch.bfloat16(w))
    guard from % 16 == 0, weights % 16 == 0 else { return false }
    var a = gyre_member_product_args()
    a.x = launch.map(from, rows: rows, channels: inputs)
    a.w = launch.turnedMap(weights, rows: outputs, channels: inputs)
    (a.rows, a.each, a.inputs, a.outputs) = (rows, each, inputs, outputs)
    let (down, up) = op.noise.factors(inputs, outputs)
    a.noise = arguments(op.noise, down, up)
    (a.members, a.y) = (call.inputs[2].address, y.address)
    let pair = 2 * Int(GYRE_PRODUCT_ROWS)
    let (high, wide) = ((rows + pair - 1) / pair, (outputs + columns - 1) / columns)
    let pairs = max(launch.device.multiprocessors / 2, 1)
    // Tiles that the busiest pair of blocks takes; the fewest parts of those that need no more.
    func tiles(_ parts: Int) -> Int {
      (high * parts + pairs - 1) / pairs * ((wide + parts - 1) / parts)
    }
    let parts = (1...min(wide, 64)).min { tiles($0) < tiles($1) } ?? 1
    (a.tiles, a.parts, a.units) = (Int32(wide), Int32(parts), Int32(high * parts))
    launch.run(
      function, grid: (2 * min(high * parts, pairs), 1, 1),
      threads: (Int(GYRE_PRODUCT_THREADS), 1),
      shared: Int(gyre_member_product_shared(Int32(columns))), a)
    return true
  }

  private static func arguments(
    _ noise: LowRankNoise, _ down: EvolutionNoise, _ up: EvolutionNoise
  ) -> gyre_low_rank_noise {
    var n = gyre_low_rank_noise()
    (n.epoch, n.leaf, n.down_first, n.up_first) = (noise.epoch, noise.leaf, down.first, up.first)
    (n.down, n.up) = (down.factor, up.factor)
    // Philox 4x32-10: the key moves by these after every round.
    var (low, high) = (
      UInt32(truncatingIfNeeded: noise.seed), UInt32(truncatingIfNeeded: noise.seed >> 32)
    )
    withUnsafeMutableBytes(of: &n.keys) { bytes in
      let keys = bytes.bindMemory(to: UInt32.self)
      for round in 0..<10 {
        (keys[2 * round], keys[2 * round + 1]) = (low, high)
        (low, high) = (low &+ 0x9E37_79B9, high &+ 0xBB67_AE85)
      }
    }
    return n
  }

  /// Queues the sum of `a.base` and the noise for `rows` rows of the members.
  private static func add(
    _ arguments: gyre_low_rank_noise_args, _ noise: LowRankNoise, _ down: EvolutionNoise,
    _ up: EvolutionNoise, _ members: Tensor, rows: Int, _ launch: CUDALaunch
  ) {
    var a = arguments
    (a.members_count, a.rank) = (members.elementCount, Int32(noise.rank))
    a.each = rows / max(members.elementCount, 1)
    a.members = members.address
    a.noise = self.arguments(noise, down, up)
    let tokens = a.each == 1 ? 1 : 8
    let parts = (a.each + tokens - 1) / tokens
    let isWide = [a.x, a.y].allSatisfy { $0.data % 16 == 0 && $0.dtype <= Int32(GYRE_F16) }
    guard let functions = Self.noise[tokens], isWide, a.tokens == 0, a.base.data == 0,
      a.inputs % 8 == 0, a.outputs % 8 == 0, a.inputs < 1 << 27, a.outputs < 1 << 27,
      noise.rank <= 64, parts < 1 << 16
    else {
      return launch.run(
        noiseOfAnySize, grid: (min(rows, launch.device.multiprocessors * 16), 1, 1), a)
    }
    let isHalf = a.y.dtype == Int32(GYRE_BF16) && a.x.dtype == Int32(GYRE_BF16)
    let threads = min((max(a.inputs, a.outputs) + 255) / 256 * 32, tokens == 1 ? 256 : 128)
    launch.run(
      functions[isHalf ? noise.rank == 1 ? 0 : 1 : 2],
      grid: ((members.elementCount + 1) / 2, parts, 1), threads: (threads, 1), a)
  }
}
