import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// What linear attention by chunks has beside the delta rules: a divisor with its vector, exponential
/// input gates, and RWKV-6's bonus.
extension ChunkedHeads {
  /// Reads what divides the outputs.
  mutating func divide(_ op: LinearAttentionForward, _ inputs: [Tensor]) {
    switch op.normalizer {
    case .none: return
    case .sum(let epsilon): (a.n.divisor, a.n.epsilon) = (1, Float(epsilon))
    case .floor(let floor, let epsilon):
      (a.n.divisor, a.n.floor, a.n.epsilon) = (2, Float(floor), Float(epsilon))
    case .exponential(let epsilon): (a.n.divisor, a.n.epsilon) = (3, Float(epsilon))
    }
    key += [UInt64(a.n.divisor), UInt64(a.n.floor.bitPattern), UInt64(a.n.epsilon.bitPattern)]
    func floats(_ place: Int) -> UInt64 {
      op.optional.pick(place, inputs).map { launch.float32($0) } ?? 0
    }
    a.n.initial_vector = Self.floats(floats(7))
    a.n.initial_max = Self.floats(floats(8))
    guard let gate = op.optional.pick(4, inputs) else { return }
    a.n.input_is_float = gate.dtype == .bfloat16 ? 0 : 1
    a.n.input_gate = .init(
      bitPattern: UInt(gate.dtype == .bfloat16 ? gate.address : launch.float32(gate)))
  }

  private var vectorCount: Int { parts * Int(size) }
  private var tokenCount: Int { Int(a.batch * a.tokens * a.heads) }

  /// Of what the gradient needs of the division; at least one.
  var divisionBytes: Int {
    guard a.n.divisor > 0 else { return 1 }
    return 4 * (parts * 128 + vectorCount + 2 * (parts + rows) + tokenCount)
  }

  mutating func useDivision(_ address: UInt64) {
    guard a.n.divisor > 0 else { return }
    var next = address
    func take(_ count: Int) -> UInt64 {
      defer { next += UInt64(4 * count) }
      return next
    }
    a.n.row_sums = Self.floats(take(parts * 128))
    a.n.vectors = Self.floats(take(vectorCount))
    a.n.stabilizers = Self.floats(take(2 * (parts + rows)))
    a.n.amounts = Self.floats(take(tokenCount))
  }

  /// Before prepare: sums of keys, and the stabilisers at the chunks' starts.
  mutating func beginDivision() {
    guard a.n.divisor > 0 else { return }
    a.n.key_sums = Self.floats(launch.floats(vectorCount))
    guard a.n.divisor == 3, let functions else { return }
    launch.run(functions.stabilize, grid: (rows, 1, 1), threads: (1024, 1), a)
  }

  /// Before the walk back: dy / d in the place of dy, and the gradient of a.
  mutating func beginDivisionBack(
    _ y: Tensor, _ dFinalVector: Tensor?, dInitial: Tensor?, dInput: UInt64
  ) {
    guard a.n.divisor > 0, let functions else { return }
    a.y = .init(bitPattern: UInt(launch.bfloat16(y)))
    a.n.dn = Self.memory(launch.scratch(2 * y.elementCount))
    a.n.d_amounts = Self.floats(launch.floats(tokenCount))
    a.n.query_sums = Self.floats(launch.floats(vectorCount))
    a.n.vector_gradients = Self.floats(launch.floats(vectorCount))
    a.n.d_final_vector = Self.floats(dFinalVector.map { launch.float32($0) } ?? 0)
    a.n.d_initial_vector = Self.floats(dInitial.address)
    a.n.d_input = Self.floats(dInput)
    launch.run(
      functions.normalizeBack, grid: (Int(a.chunks), rows, 1), threads: (512, 1),
      shared: Int(gyre_cuda_mixer_normalize_shared()), a)
    a.dy = UnsafeRawPointer(a.n.dn)
  }

  // MARK: The bonus

  private static let shift = CUDAFunction("bonus", "bonus_shift")

  /// Rows of bfloat16 moved on by one token.
  func moved(_ x: UnsafeRawPointer?, columns: Int) -> UnsafeRawPointer? {
    let count = Int(a.batch * a.tokens) * columns
    var s = gyre_shift_args()
    (s.batch, s.tokens, s.columns) = (Int(a.batch), Int(a.tokens), columns)
    s.x = UInt64(UInt(bitPattern: x))
    s.out = launch.scratch(2 * count)
    s.reset = UInt64(UInt(bitPattern: a.reset))
    let blocks = (count / 8 + 255) / 256
    launch.run(
      Self.shift, grid: (min(blocks, launch.device.multiprocessors * 16), 1, 1), s)
    return .init(bitPattern: UInt(s.out))
  }

  /// Sₜ₋₁ is what a query reads that stands one token earlier.
  mutating func moveQueries() {
    guard let bonus else { return }
    a.q = moved(.init(bitPattern: UInt(bonus.q)), columns: Int(a.heads * a.keys))
  }

  /// A token's own term, y += s (q · (u ∘ k)) v.
  struct Bonus {
    /// Queries where they were.
    let q: UInt64
    let u: Tensor
    let state: Tensor?

    private static let forward = CUDAFunction("bonus", "bonus_forward")
    private static let backward = CUDAFunction("bonus", "bonus_backward")

    private func arguments(_ a: gyre_cuda_mixer_args, _ launch: CUDALaunch) -> gyre_bonus_args {
      func half(_ p: UnsafeRawPointer?) -> gyre_array {
        gyre_array(UInt64(UInt(bitPattern: p)), .bfloat16)
      }
      var b = gyre_bonus_args()
      (b.batch, b.tokens, b.heads) = (Int(a.batch), Int(a.tokens), Int(a.heads))
      (b.key_size, b.value_size, b.scale) = (Int(a.keys), Int(a.values), a.scale)
      (b.q, b.k, b.v) = (gyre_array(q, .bfloat16), half(a.k), half(a.v))
      b.u = u.array
      if let state { b.state = .floats(launch.float32(state)) }
      b.reset = UInt64(UInt(bitPattern: a.reset))
      return b
    }

    /// Brings what moved queries read back to their tokens.
    func finish(_ a: gyre_cuda_mixer_args, _ y: Tensor, _ launch: CUDALaunch) {
      var b = arguments(a, launch)
      b.o = gyre_array(UInt64(UInt(bitPattern: a.y)), .bfloat16)
      b.y = y.array
      launch.run(Self.forward, grid: ((b.batch * b.tokens * b.heads * 8 + 255) / 256, 1, 1), b)
    }

    /// After the chunks' gradients: adds the own terms' to dk and dv, and makes dq and du.
    func differentiate(
      _ a: gyre_cuda_mixer_args, dy: Tensor, dq: Tensor, du: Tensor?, _ launch: CUDALaunch
    ) {
      func half(_ p: UnsafeMutableRawPointer?) -> gyre_array {
        gyre_array(UInt64(UInt(bitPattern: p)), .bfloat16)
      }
      var b = arguments(a, launch)
      (b.o, b.dk, b.dv) = (half(a.dq), half(a.dk), half(a.dv))
      b.dy = gyre_array(launch.bfloat16(dy), .bfloat16)
      b.dq =
        dq.dtype == .bfloat16
        ? dq.array : gyre_array(launch.scratch(2 * dq.elementCount), .bfloat16)
      b.dstate = UInt64(UInt(bitPattern: a.d_initial))
      let rows = b.batch * b.heads
      let splits = max(1, min((b.tokens + 255) / 256, 8 * launch.device.multiprocessors / rows))
      b.partial = launch.floats(splits * rows * b.key_size)
      launch.run(Self.backward, grid: (splits, rows, 1), b)
      if let du {
        launch.sumColumns(
          .floats(b.partial), rows: splits * b.batch, columns: b.heads * b.key_size, into: du.array)
      }
      if dq.dtype != .bfloat16 {
        launch.cast(b.dq, to: dq.array, count: dq.elementCount)
      }
    }
  }
}
