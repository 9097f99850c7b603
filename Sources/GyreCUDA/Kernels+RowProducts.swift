import CGyreCUDASources
import GyreTensors

/// Products of up to 256 rows, a few in one launch (`row_products.cu`).
struct RowProducts {
  /// y = f(x Wᵀ), x `[rows, inputs]`, W `[weights, inputs]` from an address on.
  struct Product {
    var x, weight: UInt64
    var inputs, weights: Int
    var function = LinearGroup.Function.none
    var y: Tensor
    var outputs: Int { function == .gatedSiLU ? weights / 2 : weights }
  }
  /// How a launch is cut: columns of a tile, tiles of a cluster, parts of the sums.
  private struct Cut {
    var columns, tiles, splits: Int
    func clusters(_ p: Product) -> Int {
      let each = (p.function == .gatedSiLU ? columns / 2 : columns) * tiles
      return (p.outputs + each - 1) / each
    }
  }
  private static let functions: [Int: CUDAFunction] = [64, 128, 192, 256].reduce(into: [:]) {
    table, n in
    table[n] = CUDAFunction("row_products", "row_products", ["-DCOLUMNS=\(n)"], isEarly: true)
  }

  /// Whether a device has the kernel.
  static func suits(_ device: CUDADevice) -> Bool { device.compiler.architecture == "sm_90a" }

  /// Queues the products; false where addresses or sizes do not fit, and nothing is queued.
  static func run(_ products: [Product], rows: Int, _ launch: CUDALaunch) -> Bool {
    guard suits(launch.device), LinearGroup.rows.contains(rows),
      (1...LinearGroup.limit).contains(products.count),
      products.allSatisfy({
        $0.inputs > 0 && $0.inputs % 8 == 0 && $0.weights > 0 && $0.weights % 8 == 0
          && $0.x % 16 == 0 && $0.weight % 16 == 0 && $0.y.address % 16 == 0
          && max($0.inputs, $0.weights) < 1 << 24
          && ($0.y.dtype == .bfloat16 || $0.y.dtype == .float32)
          && ($0.function != .gatedSiLU || $0.weights % 64 == 0)
      })
    else { return false }
    let cut = cut(products, launch)
    guard let function = functions[cut.columns] else { return false }
    var a = gyre_row_products_args()
    (a.rows, a.count) = (Int32(rows), Int32(products.count))
    (a.columns, a.splits) = (Int32(cut.tiles), Int32(cut.splits))
    var first = 0
    withUnsafeMutableBytes(of: &a.of) { memory in
      let all = memory.bindMemory(to: gyre_row_product.self)
      for (i, p) in products.enumerated() {
        all[i].x = launch.rowMap(p.x, rows: rows, channels: p.inputs, box: 64)
        all[i].w = launch.rowMap(
          p.weight, rows: p.weights, channels: p.inputs, box: cut.columns / 2)
        (all[i].y, all[i].outputs) = (p.y.address, Int32(p.outputs))
        (all[i].steps, all[i].first) = (Int32((p.inputs + 63) / 64), Int32(first))
        all[i].function = Int32(p.function.rawValue)
        all[i].is_float = p.y.dtype == .float32 ? 1 : 0
        first += cut.clusters(p)
      }
    }
    launch.run(
      function, grid: (first * Int(GYRE_ROW_CLUSTER), 1, 1), threads: (Int(GYRE_ROW_THREADS), 1),
      shared: Int(gyre_row_products_shared(cut.columns)), a)
    return true
  }

  /// The cut that should take least, by nanoseconds measured on an H200: what a step costs a block, and what
  /// its beginning and end cost.
  private static func cut(_ products: [Product], _ launch: CUDALaunch) -> Cut {
    // Not all multiprocessors have neighbours enough for a cluster.
    let atOnce = max(launch.device.multiprocessors / Int(GYRE_ROW_CLUSTER) - 3, 1)
    let steps = ((products.map { $0.inputs }.max() ?? 0) + 63) / 64
    func cost(_ c: Cut, _ step: Int) -> Int {
      let clusters = products.reduce(0) { $0 + c.clusters($1) }
      let block = (steps + c.splits - 1) / c.splits * step + 5000 + (c.splits - 1) * 1000
      return (clusters + atOnce - 1) / atOnce * block
    }
    // Halves of a gated unit's sums are not parted.
    let splits = products.contains { $0.function == .gatedSiLU } ? [1] : [1, 2]
    var best = (cut: Cut(columns: 128, tiles: 2, splits: 1), cost: Int.max)
    for (columns, step) in [(64, 220), (128, 416), (192, 480), (256, 620)] {
      for splits in splits {
        let c = Cut(
          columns: columns, tiles: Int(GYRE_ROW_CLUSTER) / 2 / splits, splits: splits)
        let cost = cost(c, step)
        if cost < best.cost { best = (c, cost) }
      }
    }
    return best.cut
  }
}

extension CUDAKernel {
  static let rowProducts: [CUDAKernel] = [
    CUDAKernel(LinearGroup.self) { op, call, launch in
      let count = op.functions.count
      let products = op.functions.indices.map { i in
        let (x, w) = (call.inputs[i], call.inputs[count + i])
        return RowProducts.Product(
          x: launch.bfloat16(x), weight: launch.bfloat16(w), inputs: w.shape[1],
          weights: w.shape[0], function: op.functions[i], y: call.outputs[i])
      }
      return RowProducts.run(products, rows: call.inputs[0].shape.rowCount, launch)
    }
  ]
}
