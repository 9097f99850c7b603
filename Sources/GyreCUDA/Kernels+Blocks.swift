import CGyreCUDASources
import GyreTensors

/// Weights in blocks of quantised values: products of a few rows and look-ups read the blocks as they
/// are; for other ops the weights are unpacked to float32 in memory that is theirs for the op.
extension CUDAKernel {
  private static let types: [DType] = [.q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q4_K, .q5_K, .q6_K]
  private static let fewRows = functions("block_gemv")
  private static let unpacking = functions("block_rows")

  private static func functions(_ name: String) -> [DType: CUDAFunction] {
    Dictionary(
      uniqueKeysWithValues: types.enumerated().map {
        ($1, CUDAFunction("blocks", name, ["-DBLOCK_TYPE=\($0)"]))
      })
  }

  /// A call with weights in blocks; false where the op has no kernel.
  static func runBlocks(_ call: KernelCall, _ launch: CUDALaunch) -> Bool {
    if let op = call.op as? LinearMap, multiply(op, call, launch) { return true }
    if call.op is EmbeddingLookup {
      let (table, tokens) = (call.inputs[0], call.inputs[1])
      return unpack(table, tokens: tokens, to: call.outputs[0], launch)
    }
    guard let kernel = all[ObjectIdentifier(type(of: call.op))] else { return false }
    var inputs = call.inputs
    for (i, input) in inputs.enumerated() where input.dtype.isQuantized {
      let copy = Tensor(
        emptyWith: TensorSpec(input.shape), on: launch.device)
      guard copy.cudaBuffer != nil, unpack(input, tokens: nil, to: copy, launch) else {
        return false
      }
      inputs[i] = copy
    }
    return kernel.run(KernelCall(op: call.op, inputs: inputs, outputs: call.outputs), launch)
  }

  /// At most four rows of x, as in decoding.
  private static func multiply(_ op: LinearMap, _ call: KernelCall, _ launch: CUDALaunch) -> Bool {
    let (x, w) = (call.inputs[0], call.inputs[1])
    guard (1...4).contains(x.shape.rowCount), x.address % 16 == 0, call.hasPlainActivations,
      let function = fewRows[w.dtype], var a = arguments(w)
    else { return false }
    (a.count, a.x, a.y) = (x.shape.rowCount, x.array, call.outputs[0].array)
    if call.inputs.count > 2 { a.bias = call.inputs[2].array }
    launch.run(function, over: a.rows * 32, a)
    return true
  }

  private static func unpack(
    _ table: Tensor, tokens: Tensor?, to y: Tensor, _ launch: CUDALaunch
  ) -> Bool {
    guard y.address % 16 == 0, y.dtype == .float32 || y.dtype == .bfloat16 || y.dtype == .float16,
      let function = unpacking[table.dtype], var a = arguments(table)
    else { return false }
    (a.count, a.y) = (tokens?.elementCount ?? a.rows, y.array)
    a.tokens = tokens.address
    launch.run(function, over: a.count * (a.columns / 16), a)
    return true
  }

  /// Blocks at even addresses, whole blocks a row; otherwise nil.
  private static func arguments(_ w: Tensor) -> gyre_block_args? {
    guard w.shape.rank == 2, w.shape[1] % w.dtype.valuesPerBlock == 0, w.address % 2 == 0 else {
      return nil
    }
    var a = gyre_block_args()
    (a.rows, a.columns, a.w) = (w.shape[0], w.shape[1], w.address)
    return a
  }
}

extension KernelCall {
  /// Whether all but the weights have types that kernels compute in.
  fileprivate var hasPlainActivations: Bool {
    (inputs.filter { !$0.dtype.isQuantized } + outputs).allSatisfy {
      $0.dtype == .float32 || $0.dtype == .bfloat16 || $0.dtype == .float16
    }
  }
}
