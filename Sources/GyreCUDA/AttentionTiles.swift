import CGyreCUDALoader
import CGyreCUDASources
import GyreTensors

/// Attention by tiles for Hopper (`cuda/attention_tiles.cu`): bfloat16 queries, up to 128 channels.
struct AttentionTiles {
  private static func each(_ file: String, _ name: String) -> [CUDAFunction] {
    [64, 128].map { CUDAFunction(file, name, ["-DSIZE=\($0)"]) }
  }
  private static let forward = each("attention_tiles", "attention_tiles_forward")
  private static let rows = each("attention_tiles_gradient", "attention_tiles_rows")
  private static let keys = each("attention_tiles_gradient", "attention_tiles_keys")
  private static let queries = each("attention_tiles_gradient", "attention_tiles_queries")

  private let launch: CUDALaunch
  private let size: Int
  private var t = gyre_attention_tile_args()

  /// nil where these kernels do not serve the call: another card, forget gates, rows that are no
  /// multiples of 16 bytes. q, k, v and dy are bfloat16 already.
  init?(_ a: gyre_attention_args, _ launch: CUDALaunch) {
    let rows = [a.q, a.k, a.v, a.y, a.dy, a.dq, a.dk, a.dv]
    let largest = max(a.key_size, a.value_size)
    guard launch.device.compiler.architecture == "sm_90a", a.queries >= 16, a.scale > 0,
      a.forget == 0, a.y.dtype == DType.bfloat16.cuda, largest <= 128, a.key_size % 8 == 0,
      a.value_size % 8 == 0, a.batch < 1 << 16, a.keys < 1 << 30,
      a.batch * (a.queries + 64) * a.heads < 1 << 27, a.batch * a.keys * a.key_heads < 1 << 27,
      rows.allSatisfy({ $0.data % 16 == 0 })
    else { return nil }
    self.launch = launch
    size = largest <= 64 ? 64 : 128
    t.a = a
    t.padded = Int32((a.queries + 63) / 64 * 64)
    t.drawn = launch.scratch(16)
    t.q = map(a.q, a.queries, a.heads, a.key_size)
    t.k = map(a.k, a.keys, a.key_heads, a.key_size)
    t.v = map(a.v, a.keys, a.key_heads, a.value_size)
  }

  mutating func runForward() {
    launch.setBytes(t.drawn, 0, 16)
    run(
      Self.forward, gyre_tiles_forward(size), rows: t.a.queries, of: t.a.heads,
      beside: t.a.keys * t.a.key_heads)
  }

  mutating func runBackward() {
    let a = t.a
    t.dy = map(a.dy, a.queries, a.heads, a.value_size)
    let numbers = a.batch * a.heads * Int(t.padded)
    (t.exponents, t.means, t.low) = (
      launch.floats(numbers), launch.floats(numbers), launch.scratch(4 * numbers)
    )
    let lanes = Int(t.padded) * a.heads * (size / 8)
    launch.run(Self.rows[size / 128], grid: ((lanes + 255) / 256, a.batch, 1), t)
    run(
      Self.keys, gyre_tiles_keys(size), rows: a.keys, of: a.key_heads,
      beside: a.queries * a.heads)
    run(
      Self.queries, gyre_tiles_queries(size), rows: a.queries, of: a.heads,
      beside: a.keys * a.key_heads)
  }

  /// Blocks of threads for all multiprocessors, which draw items of some rows of a head each. What
  /// the heads of a section read beside, `beside` rows of a sequence in all, stays in the cache.
  private mutating func run(
    _ functions: [CUDAFunction], _ shape: gyre_tiles_launch, rows: Int, of heads: Int, beside: Int
  ) {
    let a = t.a
    let bytes = 2 * (a.key_size + a.value_size) * beside / heads
    t.section = Int32(max(1, min(a.batch * heads, (32 << 20) / max(bytes, 1))))
    let items = (rows + shape.height - 1) / shape.height * a.batch * heads
    launch.run(
      functions[size / 128], grid: (min(items, launch.device.multiprocessors), 1, 1),
      threads: (shape.height * 2 + 128, 1), shared: shape.shared, t)
  }

  private func map(
    _ x: gyre_array, _ rows: Int, _ heads: Int, _ channels: Int
  ) -> gyre_tensor_map {
    launch.map(x.data, batch: t.a.batch, rows: rows, heads: heads, channels: channels)
  }
}
