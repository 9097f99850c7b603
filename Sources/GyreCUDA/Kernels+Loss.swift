import CGyreCUDASources
import GyreTensors

extension CUDAKernel {
  private static let embedding = CUDAFunction("loss", "embedding")
  private static let embeddingBackward = CUDAFunction("loss", "embedding_backward")
  private static let count = CUDAFunction("loss", "count_targets")
  private static let crossEntropy = CUDAFunction("loss", "cross_entropy")
  private static let mean = CUDAFunction("loss", "mean_loss")

  /// Bytes of logits that exist at a time.
  private static let logitBytes = 256 << 20

  static let losses: [CUDAKernel] = [
    CUDAKernel(EmbeddingLookup.self) { op, call, launch in
      var a = gyre_embedding_args()
      (a.count, a.width) = (call.inputs[1].elementCount, call.inputs[0].shape[1])
      a.vocabulary = call.inputs[0].shape[0]
      a.tokens = call.inputs[1].address
      (a.table, a.out) = (call.inputs[0].array, call.outputs[0].array)
      launch.run(embedding, rows: a.count, columns: (a.width + 7) / 8, a)
      return true
    },
    CUDAKernel(EmbeddingLookup.Backward.self) { op, call, launch in
      sumRows(call.inputs[0], call.inputs[1], into: call.outputs[0], adds: false, launch)
      return true
    },
    CUDAKernel(RowsAdded.self) { op, call, launch in
      launch.copy(call.inputs[0], to: call.outputs[0])
      sumRows(call.inputs[1], call.inputs[2], into: call.outputs[0], adds: true, launch)
      return true
    },
    CUDAKernel(CrossEntropy.self) { op, call, launch in
      let (logits, targets) = (call.inputs[0], call.inputs[1])
      var a = gyre_cross_entropy_args()
      (a.rows, a.columns) = (targets.elementCount, logits.shape.last)
      a.logits = logits.array
      a.targets = targets.address
      a.counted = counted(targets, launch)
      a.loss = call.outputs[1].array
      launch.run(crossEntropy, rows: a.rows, columns: a.columns / 8, a)
      average(call.outputs[1], a.counted, into: call.outputs[0], launch)
      return true
    },
    CUDAKernel(CrossEntropy.Backward.self) { op, call, launch in
      let (scale, logits, targets) = (call.inputs[0], call.inputs[1], call.inputs[2])
      var a = gyre_cross_entropy_args()
      (a.rows, a.columns) = (targets.elementCount, logits.shape.last)
      (a.logits, a.gradient) = (logits.array, call.outputs[0].array)
      a.targets = targets.address
      a.counted = counted(targets, launch)
      a.scale = scale.array
      launch.run(crossEntropy, rows: a.rows, columns: a.columns / 8, a)
      return true
    },
    CUDAKernel(LinearCrossEntropy.self) { op, call, launch in
      linearCrossEntropy(op, call, launch)
      return true
    },
  ]

  /// The table whose row v is the sum of the rows at positions that hold token v, or that sum added to it.
  private static func sumRows(
    _ rows: Tensor, _ tokens: Tensor, into table: Tensor, adds: Bool, _ launch: CUDALaunch
  ) {
    var a = gyre_embedding_args()
    (a.count, a.width) = (tokens.elementCount, table.shape[1])
    a.vocabulary = table.shape[0]
    a.tokens = tokens.address
    (a.dout, a.dtable) = (rows.array, table.array)
    let each = max(1, a.vocabulary / 1024)
    (a.rows_per_block, a.adds) = (Int32(each), adds ? 1 : 0)
    launch.run(
      embeddingBackward, grid: ((a.vocabulary + each - 1) / each, (a.width + 127) / 128, 1), a)
  }

  /// Where the number of targets that count lies, a float.
  private static func counted(_ targets: Tensor, _ launch: CUDALaunch) -> UInt64 {
    let out = launch.floats(1)
    launch.run(
      count, grid: (1, 1, 1), threads: (1024, 1),
      gyre_count_args(count: targets.elementCount, targets: targets.address, out: out))
    return out
  }

  private static func average(
    _ rows: Tensor, _ counted: UInt64, into out: Tensor, _ launch: CUDALaunch
  ) {
    launch.run(
      mean, grid: (1, 1, 1),
      gyre_mean_args(count: rows.elementCount, x: rows.array, counted: counted, out: out.array))
  }

  /// Logits of some rows at a time, and their gradient in their place.
  private static func linearCrossEntropy(
    _ op: LinearCrossEntropy, _ call: KernelCall, _ launch: CUDALaunch
  ) {
    let (h, w, t) = (call.inputs[0], call.inputs[1], call.inputs[2])
    let (rows, v, d) = (t.elementCount, w.shape[0], w.shape[1])
    let isHalf = op.precision == .bfloat16
    let type: DType = isHalf ? .bfloat16 : .float32
    let size = type.byteCount
    let hidden = isHalf ? launch.bfloat16(h) : launch.float32(h)
    let weight = isHalf ? launch.bfloat16(w) : launch.float32(w)
    // Multiples of 128 keep the products' tiles full and their operands aligned.
    let chunk = min(max(rows, 1), max(128, logitBytes / max(v * 4, 1) / 128 * 128))
    let logits = launch.floats(chunk * v)
    let gradient = isHalf && op.computesGradients ? launch.scratch(2 * chunk * v) : logits
    let counted = counted(t, launch)
    if op.computesGradients, rows == 0 { launch.fill(call.outputs[3], 0) }
    // Products write float32, or bfloat16 where the tensor is.
    let dh = op.computesGradients ? call.outputs[2] : nil
    let writesDirectly = dh?.dtype == .float32 || (isHalf && dh?.dtype == .bfloat16)
    let dhRows = dh == nil || writesDirectly ? 0 : launch.floats(chunk * d)
    for start in stride(from: 0, to: rows, by: chunk) {
      let here = min(chunk, rows - start)
      var p = CUDAProducts.Problem()
      (p.aType, p.bType) = (type, type)
      (p.m, p.n, p.k, p.transposesB) = (here, v, d, true)
      (p.a, p.b, p.c) = (hidden + UInt64(start * d * size), weight, logits)
      launch.device.multiply(p)
      var a = gyre_cross_entropy_args()
      (a.rows, a.columns) = (here, v)
      a.logits = .floats(logits)
      if op.computesGradients { a.gradient = gyre_array(gradient, type) }
      a.targets = t.address + UInt64(4 * start)
      a.counted = counted
      a.loss = .floats(call.outputs[1].address + UInt64(4 * start))
      launch.run(crossEntropy, rows: here, columns: v / 8, a)
      guard let dh else { continue }
      p = CUDAProducts.Problem()
      (p.aType, p.bType) = (type, type)
      (p.m, p.n, p.k) = (here, d, v)
      (p.a, p.b) = (gradient, weight)
      let place = UInt64(start * d * dh.dtype.byteCount)
      (p.c, p.cType) = writesDirectly ? (dh.address + place, dh.dtype) : (dhRows, .float32)
      launch.device.multiply(p)
      if !writesDirectly {
        launch.cast(
          .floats(dhRows), to: gyre_array(dh.address + place, dh.dtype), count: here * d)
      }
      p = CUDAProducts.Problem()
      (p.aType, p.bType) = (type, type)
      (p.m, p.n, p.k, p.transposesA) = (v, d, here, true)
      (p.a, p.b, p.c) = (gradient, hidden + UInt64(start * d * size), call.outputs[3].address)
      p.beta = start == 0 ? 0 : 1
      launch.device.multiply(p)
    }
    average(call.outputs[1], counted, into: call.outputs[0], launch)
  }
}
