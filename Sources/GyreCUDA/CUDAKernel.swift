import GyreTensors

/// The binding of one op to its kernels.
struct CUDAKernel: Sendable {
  let op: ObjectIdentifier
  /// False where the kernels do not cover the call; the reference then runs.
  let run: @Sendable (KernelCall, CUDALaunch) -> Bool

  /// Kernels for every call of `O` whose floating tensors have types that they compute in.
  init<O: Op>(
    _: O.Type, anyType: Bool = false,
    _ body: @escaping @Sendable (O, KernelCall, CUDALaunch) -> Bool
  ) {
    op = ObjectIdentifier(O.self)
    run = { call, launch in
      guard let op = call.op as? O, anyType || call.isComputable else { return false }
      return body(op, call, launch)
    }
  }

  /// All bindings. One line a family.
  static let all: [ObjectIdentifier: CUDAKernel] = {
    var table: [ObjectIdentifier: CUDAKernel] = [:]
    for family in [
      pointwise, layout, reductions, products, norms, losses, optimizers, sequence, scans, heads,
      headSteps, cells, recurrentCells, channels, selection, evolution, attention, rwkv,
      valueScales,
      stepGates, egg, mesa, rowProducts,
    ] {
      for kernel in family { table[kernel.op] = kernel }
    }
    return table
  }()
}
