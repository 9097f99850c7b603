import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// MesaNet's memory: a kernel that solves at every token, and linear attention for what the solutions read
/// and for the gradients of both memories.
extension CUDAKernel {
  static let mesa: [CUDAKernel] = [
    CUDAKernel(MesaForward.self) { op, call, launch in
      guard let m = MesaLaunch(op, call.inputs, launch) else { return false }
      if op.roundsToHalf { return m.solveRounded(call.outputs) }
      let (x, keys) = (call.outputs[1], m.scaledKeys())
      m.solve(call.inputs[0], into: x, final: call.outputs[2])
      return m.run(
        op.attention(.values), [x, keys, call.inputs[2], call.inputs[3]] + m.optional([7, 8]),
        [call.outputs[0], call.outputs[3]])
    },
    CUDAKernel(MesaBackward.self) { op, call, launch in
      let (inputs, rest) = (call.inputs, Array(call.inputs[op.inputCount...]))
      guard let m = MesaLaunch(op.forward, inputs, launch), m.x.tokens > 0 else { return false }
      let (x, dy, keys, z) = (rest[0], rest[1], m.scaledKeys(), call.outputs[0])
      func output(_ i: Int) -> [Tensor] { op.place(i).map { [call.outputs[$0]] } ?? [] }
      func final(_ i: Int) -> [Tensor] { op.extra.pick(i, rest).map { [$0] } ?? [] }
      // G: u = G dy, P v, Pᵀ β k.
      let (u, alongValues, values) = (launch.like(z), launch.like(keys), launch.like(inputs[3]))
      guard
        m.run(
          op.attention(.values),
          [x, keys, inputs[2], inputs[3]] + m.optional([7, 8]) + [dy, dy] + final(3),
          [u, alongValues, call.outputs[2], values] + output(7))
      else { return false }
      m.solve(u, into: z, final: nil)
      // H: Q k and Qᵀ β k; what the queries' gradient would be is not used.
      let (alongKeys, other, covariance) = (
        launch.like(keys), launch.like(inputs[1]), launch.like(inputs[3])
      )
      guard
        m.run(
          op.attention(.covariance, scale: -1),
          [z, keys, inputs[1], inputs[3]] + m.optional([6, 8]) + [x, x] + final(2),
          [u, alongKeys, other, covariance] + output(6))
      else { return false }
      var a = gyre_mesa_gradient_args()
      (a.rows, a.keys) = (inputs[4].elementCount, m.x.keySize)
      (a.k, a.beta, a.x, a.z) = (inputs[1].array, inputs[4].array, x.array, z.array)
      (a.values, a.covariance) = (alongValues.array, alongKeys.array)
      a.other = other.array
      (a.dg_values, a.dg_covariance) = (values.array, covariance.array)
      (a.dk, a.dbeta, a.dg) = (call.outputs[1].array, call.outputs[4].array, call.outputs[3].array)
      a.products = launch.floats(a.rows * a.keys)
      launch.run(MesaLaunch.gradients, over: a.rows * 32, a)
      launch.sumColumns(
        .floats(a.products), rows: m.x.batch * m.x.tokens, columns: m.x.heads * m.x.keySize,
        into: call.outputs[5].array)
      return true
    },
  ]
}

/// One call's solutions and what it leaves to linear attention.
private struct MesaLaunch {
  let op: MesaForward
  let inputs: [Tensor]
  let launch: CUDALaunch
  let x: HeadExtents

  private static let states = CUDAFunction("mesa", "mesa_states")
  private static let scan = CUDAFunction("mesa", "mesa_scan")
  private static let keys = CUDAFunction("mesa", "mesa_keys")
  static let gradients = CUDAFunction("mesa", "mesa_gradients")
  private static let large = CUDAFunction("mesa", "mesa_solve_large")
  private static let half = CUDAFunction("mesa_half", "mesa_half")
  /// By the channels that they hold.
  private static let solvers = [32, 64, 96, 128].map {
    (size: $0, function: CUDAFunction("mesa_solve", "mesa_solve", ["-DSIZE=\($0)"]))
  }

  /// Nil for keys that no kernel takes, or without tokens.
  init?(_ op: MesaForward, _ inputs: [Tensor], _ launch: CUDALaunch) {
    (self.op, self.inputs, self.launch) = (op, inputs, launch)
    x = op.extents(inputs.map(\.spec))
    guard (1...Int(GYRE_MESA_KEYS)).contains(x.keySize), x.tokens > 0, x.batch * x.heads > 0
    else { return nil }
  }

  /// The optional inputs that are there.
  func optional(_ places: [Int]) -> [Tensor] { places.compactMap { op.optional.pick($0, inputs) } }

  /// Another op's kernel. Without a tape, for which it would keep notes on keys that are gone by then.
  func run(_ op: any Op, _ inputs: [Tensor], _ outputs: [Tensor]) -> Bool {
    let kernel = CUDAKernel.all[ObjectIdentifier(type(of: op))]
    let call = KernelCall(op: op, inputs: inputs, outputs: outputs)
    return Tape.$current.withValue(nil) { kernel?.run(call, launch) ?? false }
  }

  /// β k.
  func scaledKeys() -> Tensor {
    let y = launch.like(inputs[1])
    let rows = inputs[4].elementCount
    launch.run(
      Self.keys, over: y.elementCount, each: 8,
      gyre_mesa_key_args(
        rows: rows, keys: x.keySize, k: inputs[1].array, beta: inputs[4].array, y: y.array))
    return y
  }

  /// All of a call that rounds as a public library does; false for keys that are too large.
  func solveRounded(_ outputs: [Tensor]) -> Bool {
    let shared = gyre_mesa_half_shared(x.keySize)
    guard shared <= launch.device.sharedPerBlock else { return false }
    var a = gyre_mesa_half_args()
    (a.batch, a.tokens, a.heads, a.keys) = (x.batch, x.tokens, x.heads, x.keySize)
    (a.values, a.steps, a.epsilon) = (x.valueSize, Int32(clamping: op.steps), Float(op.epsilon))
    (a.q, a.k, a.v) = (inputs[0].array, inputs[1].array, inputs[2].array)
    (a.g, a.beta, a.ridge) = (inputs[3].array, inputs[4].array, inputs[5].array)
    (a.H0, a.G0) = (op.optional.pick(6, inputs).array, op.optional.pick(7, inputs).array)
    (a.y, a.x) = (outputs[0].array, outputs[1].array)
    (a.H, a.G) = (outputs[2].address, outputs[3].address)
    launch.run(
      Self.half, grid: (x.batch * x.heads, 1, 1), threads: (512, 1), shared: shared, a)
    return true
  }

  /// Solutions for the right sides `b`, and H after the last token.
  func solve(_ b: Tensor, into solutions: Tensor, final: Tensor?) {
    let (rows, K) = (x.batch * x.heads, x.keySize)
    let stage = Int(GYRE_MESA_STAGE)
    var a = gyre_mesa_args()
    (a.batch, a.tokens, a.heads, a.keys) = (x.batch, x.tokens, x.heads, K)
    // Long chunks need few states, many chunks fill the card.
    a.chunk = stage
    while a.chunk < x.tokens, rows * x.tokens / (2 * a.chunk) >= 24 * launch.device.multiprocessors
    {
      a.chunk *= 2
    }
    while x.tokens > a.chunk * 65_535 { a.chunk *= 2 }
    a.chunks = (x.tokens + a.chunk - 1) / a.chunk
    (a.steps, a.epsilon) = (Int32(clamping: op.steps), Float(op.epsilon))
    (a.b, a.k, a.g, a.beta) = (b.array, inputs[1].array, inputs[3].array, inputs[4].array)
    a.ridge = inputs[5].array
    a.H0 = op.optional.pick(6, inputs).map { launch.float32($0) } ?? 0
    a.reset = op.optional.pick(8, inputs).address
    (a.x, a.H) = (solutions.array, final.address)
    let solver = Self.solvers.first { K <= $0.size }
    a.keeps_first = solver == nil ? 1 : 0
    if a.chunks > 1 || solver == nil {
      a.states = launch.floats(rows * a.chunks * K * K)
      a.decays = launch.floats(rows * a.chunks)
      let tiles = (K + 63) / 64
      launch.run(Self.states, grid: (rows, tiles * tiles, a.chunks - 1), a)
      launch.run(Self.scan, grid: (rows, (K * K + 255) / 256, 1), a)
    }
    if let solver {
      launch.run(
        solver.function, grid: (rows, a.chunks, 1),
        threads: (solver.size == 64 ? 32 : solver.size, 1),
        a)
    } else {
      launch.run(Self.large, grid: (rows, a.chunks, 1), a)
    }
  }
}
