import CGyreCUDASources
import GyreRecurrence
import GyreTensors
import Synchronization

/// Linear attention and the delta rule by chunks of 64 tokens on the tensor cores: `prepare` makes what
/// each chunk does to a state, `walk` goes through the chunks, and mirrored for the gradients.
///
/// Operands of products are bfloat16, so these serve calls whose values are bfloat16 already; float32
/// runs token by token, exactly.
struct ChunkedHeads {
  let launch: CUDALaunch
  let rule: gyre_cuda_mixer_rule
  /// Of keys and of values, rounded up to what kernels are compiled for; of values 0 where any serves.
  let size: Int32
  private let valueSize: Int32
  /// What identifies the call among those whose forward pass left something.
  var key: [UInt64]
  private let notes: CUDABuffer?
  var a = gyre_cuda_mixer_args()
  /// Gates without channels, and a rule that has kernels for them.
  let isScalar: Bool
  /// Too few blocks of 64 value columns for the card.
  let isTeam: Bool
  /// RWKV-6's own term of each token.
  var bonus: Bonus?

  /// Which kernels there are, compiled once a name.
  struct Functions {
    var prepare, gradient, mixedGradient: [CUDAFunction]
    /// For chunks with mild decays of channels; gradients of keys and values up to 64.
    var mildPrepare: CUDAFunction
    var mildGradient: CUDAFunction?
    var walk, back: [CUDAFunction]
    /// With a normaliser: linear attention.
    var dividedWalk, dividedBack: [CUDAFunction]
    var stabilize, normalizeBack: CUDAFunction
  }
  private static func functions(
    _ file: String, _ prefix: String, _ sizes: [Int] = [64, 128]
  ) -> [Int: Functions] {
    var table: [Int: Functions] = [:]
    for size in sizes {
      func make(
        _ start: String, _ names: [String], in file: String, _ end: String = ""
      ) -> [CUDAFunction] {
        names.map {
          CUDAFunction(file, "\(start)_\($0)_bf16_k\(size)\(end)", ["-DGYRE_KEYS=\(size)"])
        }
      }
      let gradients = ["gradient", "gradient_scalar"]
      table[size] = Functions(
        prepare: make(prefix, ["prepare", "prepare_scalar"], in: file),
        gradient: make(prefix, gradients, in: file),
        mixedGradient: make(prefix, gradients, in: "chunk_gradient_mixed", "_mixed"),
        mildPrepare: make(prefix, ["prepare_mild"], in: file)[0],
        mildGradient: size == 64 ? make(prefix, ["gradient_mild"], in: file)[0] : nil,
        walk: make(prefix, ["walk", "walk_team"], in: file),
        back: make(prefix, ["walk_back", "walk_back_team"], in: file),
        dividedWalk: make(prefix, ["walk_norm", "walk_team_norm"], in: file),
        dividedBack: make(prefix, ["walk_back_norm", "walk_back_team_norm"], in: file),
        stabilize: make(prefix, ["stabilize"], in: file)[0],
        normalizeBack: make(prefix, ["normalize_back"], in: file)[0])
    }
    return table
  }
  private static let linear = functions("linear_attention", "linear_attention", [64, 128, 256])
  private static let beta = functions("delta_rule", "delta_rule_beta")
  private static let general = functions("delta_rule", "delta_rule_general")

  var functions: Functions? {
    switch rule {
    case GYRE_CUDA_MIXER_LINEAR: Self.linear[Int(size)]
    case GYRE_CUDA_MIXER_BETA: Self.beta[Int(size)]
    default: Self.general[Int(size)]
    }
  }

  /// Nil where no kernel covers the call.
  init?(_ op: LinearAttentionForward, _ inputs: [Tensor], _ launch: CUDALaunch) {
    let isExponential = if case .exponential = op.normalizer { true } else { false }
    let isDivided = op.normalizer != .none
    guard op.form != .recurrent, op.optional.has(4) == isExponential,
      !isDivided || (op.decay != .vector && !op.optional.has(5)),
      !op.optional.has(5) || op.decay == .vector
    else { return nil }
    let kind: Int32 =
      switch op.decay {
      case .none: 0
      case .constant: 1
      case .scalar: 2
      case .vector: 3
      }
    self.init(
      GYRE_CUDA_MIXER_LINEAR, op.extents(inputs.map(\.spec)), op.scale, kind, launch, inputs,
      OptionalPlaces(gate: 3, beta: nil, a: nil, b: nil, state: 6, reset: 9), op.optional)
    divide(op, inputs)
    if let u = op.optional.pick(5, inputs) {
      guard a.heads == a.key_heads else { return nil }
      bonus = Bonus(
        q: launch.bfloat16(inputs[0]), u: u, state: op.optional.pick(6, inputs))
    }
  }

  init?(_ op: DeltaRuleForward, _ inputs: [Tensor], _ launch: CUDALaunch) {
    guard op.form != .recurrent else { return nil }
    let kind: Int32 = op.optional.pick(3, inputs).map { $0.rank == 3 ? 2 : 3 } ?? 0
    self.init(
      op.optional.has(4) ? GYRE_CUDA_MIXER_BETA : GYRE_CUDA_MIXER_GENERAL,
      op.extents(inputs.map(\.spec)), op.scale, kind, launch, inputs,
      OptionalPlaces(gate: 3, beta: 4, a: 5, b: 6, state: 7, reset: 8), op.optional)
  }

  /// Positions among an op's possible inputs.
  private struct OptionalPlaces {
    var gate: Int
    var beta, a, b: Int?
    var state, reset: Int
  }

  private init?(
    _ rule: gyre_cuda_mixer_rule, _ x: HeadExtents, _ scale: Double, _ gateKind: Int32,
    _ launch: CUDALaunch, _ inputs: [Tensor], _ places: OptionalPlaces, _ optional: OptionalInputs
  ) {
    isScalar = gateKind < 3 && rule != GYRE_CUDA_MIXER_GENERAL
    // Kernels of linear attention for such gates take larger keys, and values of any size.
    let isWide = isScalar && rule == GYRE_CUDA_MIXER_LINEAR
    let isNew: Int32 = launch.device.capability.major >= 9 ? 1 : 0
    size =
      isWide
      ? gyre_cuda_mixer_wide_size(Int32(x.keySize)) : gyre_cuda_mixer_size(Int32(x.keySize))
    valueSize = isWide ? 0 : gyre_cuda_mixer_size(Int32(x.valueSize))
    guard size > 0, isWide ? x.valueSize % 8 == 0 : valueSize > 0,
      size < 256
        || gyre_cuda_mixer_walk_shared(rule, size, 0, 1, 1, isNew) <= launch.device.sharedPerBlock,
      inputs[2].dtype == .bfloat16, x.tokens > 0, x.batch > 0, x.valueSize > 0,
      x.batch * x.heads <= 65_535
    else { return nil }
    self.launch = launch
    self.rule = rule
    notes = inputs[2].cudaBuffer
    let given = optional.gather { optional.pick($0, inputs) }
    key = given.map(\.address) + [UInt64(gateKind), scale.bitPattern]
    isTeam =
      size == 256
      || x.batch * x.heads * ((x.valueSize + 63) / 64) * 132 < 96 * launch.device.multiprocessors
    func tensor(_ place: Int?) -> Tensor? { place.flatMap { optional.pick($0, inputs) } }
    func element(_ t: Tensor?) -> UInt64 { t.map { launch.bfloat16($0) } ?? 0 }
    // float32 or bfloat16 as they are; anything else as float32.
    func number(_ t: Tensor?) -> (address: UInt64, isFloat: Int32) {
      guard let t else { return (0, 1) }
      return t.dtype == .bfloat16 ? (t.address, 0) : (launch.float32(t), 1)
    }
    a.q = .init(bitPattern: UInt(element(inputs[0])))
    a.k = .init(bitPattern: UInt(element(inputs[1])))
    a.v = .init(bitPattern: UInt(element(inputs[2])))
    a.a = .init(bitPattern: UInt(element(tensor(places.a))))
    a.b = .init(bitPattern: UInt(element(tensor(places.b))))
    let (gate, beta) = (number(tensor(places.gate)), number(tensor(places.beta)))
    (a.gate, a.gate_is_float) = (.init(bitPattern: UInt(gate.address)), gate.isFloat)
    (a.beta, a.beta_is_float) = (.init(bitPattern: UInt(beta.address)), beta.isFloat)
    a.initial = Self.floats(tensor(places.state).map { launch.float32($0) } ?? 0)
    a.reset = .init(bitPattern: UInt(tensor(places.reset).address))
    (a.batch, a.tokens, a.heads) = (Int32(x.batch), Int32(x.tokens), Int32(x.heads))
    (a.key_heads, a.keys, a.values) = (Int32(x.keyHeads), Int32(x.keySize), Int32(x.valueSize))
    a.chunks = Int32((x.tokens + 63) / 64)
    a.gate_kind = gateKind
    a.scale = Float(scale)
  }

  static func floats(_ address: UInt64) -> UnsafeMutablePointer<Float>? {
    .init(bitPattern: UInt(address))
  }
  static func floats(_ address: UInt64) -> UnsafePointer<Float>? {
    .init(bitPattern: UInt(address))
  }
  private static func bytes(_ address: UInt64) -> UnsafeMutablePointer<UInt8>? {
    .init(bitPattern: UInt(address))
  }
  static func memory(_ address: UInt64) -> UnsafeMutableRawPointer? {
    .init(bitPattern: UInt(address))
  }

  var isNew: Int32 { launch.device.capability.major >= 9 ? 1 : 0 }
  var rows: Int { Int(a.batch * a.heads) }

  private func walk(_ isBack: Bool) {
    guard let functions, !walkSegments(isBack) else { return }
    let columns = isTeam ? 32 : 64
    let plain = isBack ? functions.back : functions.walk
    let divided = isBack ? functions.dividedBack : functions.dividedWalk
    launch.run(
      (a.n.divisor > 0 ? divided : plain)[isTeam ? 1 : 0],
      grid: ((Int(a.values) + columns - 1) / columns, rows, 1), threads: (isTeam ? 256 : 128, 1),
      shared: Int(
        gyre_cuda_mixer_walk_shared(
          rule, size, isBack ? 1 : 0, isTeam ? 1 : 0, a.n.divisor > 0 ? 1 : 0, isNew)), a)
  }

  private mutating func prepare() {
    guard let functions else { return }
    beginDivision()
    launchAll(
      functions.prepare[isScalar ? 1 : 0], 128,
      Int(gyre_cuda_mixer_prepare_shared(rule, size, isScalar ? 1 : 0)),
      mild: functions.mildPrepare, Int(gyre_cuda_mixer_mild_prepare_shared(rule, size)))
  }

  /// A kernel over all chunks. Where channels have decays, one for mild chunks goes first and says which
  /// it has left.
  private mutating func launchAll(
    _ function: CUDAFunction, _ threads: Int, _ shared: Int,
    mild: CUDAFunction?, _ mildShared: Int
  ) {
    let all = (Int(a.chunks), rows, 1)
    if isScalar { return launch.run(function, grid: all, threads: (threads, 1), shared: shared, a) }
    a.mild = nil
    var blocks = parts
    if let mild, a.gate_kind == 3 {
      a.mild = .init(bitPattern: UInt(launch.scratch(4 * parts)))
      launch.run(mild, grid: all, threads: (256, 1), shared: mildShared, a)
      blocks = min(parts, 2 * launch.device.multiprocessors)
    }
    launch.run(function, grid: (blocks, 1, 1), threads: (threads, 1), shared: shared, a)
  }

  /// Chunks of all heads.
  var parts: Int { rows * Int(a.chunks) }
  private var recordBytes: Int { parts * Int(gyre_cuda_mixer_record_bytes(rule, size)) }
  private var extraBytes: Int { parts * Int(gyre_cuda_mixer_extra_bytes(rule)) }
  private var stateBytes: Int { parts * Int(gyre_cuda_mixer_state_bytes(a.values, size)) }
  /// What the tokens of the delta rule wrote.
  private var writtenBytes: Int {
    rule == GYRE_CUDA_MIXER_BETA ? 2 * rows * Int(a.tokens) * Int(a.values) : 0
  }
  /// Sizes of what a gradient needs of the forward pass, but for what divides the outputs.
  private var keptBytes: [Int] {
    [recordBytes, max(extraBytes, 1), stateBytes, max(writtenBytes, 1)]
  }

  private mutating func use(_ kept: [UInt64]) {
    a.records = Self.bytes(kept[0])
    a.extras = extraBytes > 0 ? Self.bytes(kept[1]) : nil
    a.states = Self.memory(kept[2])
    a.written = writtenBytes > 0 ? Self.memory(kept[3]) : nil
  }

  /// y and the final state. Under a tape, what the gradients need stays with the values' memory, as
  /// long as there is room.
  mutating func run(
    y: Tensor, finalState: Tensor, finalVector: Tensor? = nil, finalMax: Tensor? = nil
  ) {
    a.y = Self.memory(y.address)
    if bonus != nil {
      moveQueries()
      a.y = Self.memory(launch.scratch(2 * y.elementCount))
    }
    a.final_state = Self.floats(finalState.address)
    a.n.final_vector = Self.floats(finalVector.address)
    a.n.final_max = Self.floats(finalMax.address)
    if Tape.current != nil, let notes,
      let kept = launch.keep(keptBytes + [divisionBytes])
    {
      use(kept.map(\.address))
      useDivision(kept[4].address)
      notes.chunks.withLock { $0 = KeptChunks(key: key, buffers: kept) }
    } else if runTiles() {
      return
    } else {
      a.records = Self.bytes(launch.scratch(recordBytes))
      if a.n.divisor > 0 { useDivision(launch.scratch(divisionBytes)) }
      (a.n.vectors, a.n.amounts) = (nil, nil)
    }
    prepare()
    if !walkTiles() { walk(false) }
    if let bonus { bonus.finish(a, y, launch) }
  }

  /// Where gradients go; absent ones are not made.
  struct Gradients {
    var dq, dk, dv: Tensor
    var gate, beta, a, b, state, vector, input, bonus: Tensor?
  }

  private static let groupSums = CUDAFunction("head_sums", "group_sums")

  /// `y` where something divides it.
  mutating func differentiate(
    dy: Tensor, dFinal: Tensor?, y: Tensor? = nil, dFinalVector: Tensor? = nil, _ g: Gradients
  ) {
    if bonus != nil { moveQueries() }
    a.state_gradients = Self.memory(launch.scratch(stateBytes))
    let kept = notes?.chunks.withLock { value in
      defer { value = nil }
      return value?.key == key ? value : nil
    }
    if let kept {
      let addresses = launch.hold(kept.buffers)
      use(addresses)
      useDivision(addresses[4])
    } else {
      use(keptBytes.map { launch.scratch($0) })
      if a.n.divisor > 0 { useDivision(launch.scratch(divisionBytes)) }
      a.y = Self.memory(launch.scratch(2 * dy.elementCount))
      prepare()
      walk(false)
    }
    a.dy = .init(bitPattern: UInt(launch.bfloat16(dy)))
    if bonus != nil { a.dy = moved(a.dy, columns: Int(a.heads * a.values)) }
    a.d_final = Self.floats(dFinal.map { launch.float32($0) } ?? 0)
    let group = Int(a.heads / a.key_heads)
    let keyCount = Int(a.batch * a.tokens * a.heads * a.keys)
    let tokenCount = Int(a.batch * a.tokens * a.heads)
    // Kernels write bfloat16, or float32 for gates without channels; other types are converted after.
    func target(_ t: Tensor?, direct: Bool, bytes: Int) -> UInt64 {
      t.map { direct ? $0.address : launch.scratch(bytes) } ?? 0
    }
    func isHalf(_ t: Tensor?) -> Bool { t?.dtype == .bfloat16 }
    let dq = target(
      g.dq, direct: isHalf(g.dq) && group == 1 && bonus == nil, bytes: 2 * keyCount)
    let dk = target(g.dk, direct: isHalf(g.dk) && group == 1, bytes: 2 * keyCount)
    let dv = target(g.dv, direct: isHalf(g.dv), bytes: 2 * g.dv.elementCount)
    let da = target(g.a, direct: isHalf(g.a), bytes: 2 * keyCount)
    let db = target(g.b, direct: isHalf(g.b), bytes: 2 * keyCount)
    let hasChannels = a.gate_kind == 3
    let gateType: DType = hasChannels && a.gate_is_float == 0 ? .bfloat16 : .float32
    let gateIsDirect = g.gate?.dtype == gateType && a.gate_kind > 1
    let dGate = target(
      g.gate, direct: gateIsDirect,
      bytes: hasChannels ? keyCount * gateType.byteCount : 4 * tokenCount)
    let dBeta = target(g.beta, direct: g.beta?.dtype == .float32, bytes: 4 * tokenCount)
    a.dq = Self.memory(dq)
    a.dk = Self.memory(dk)
    a.dv = Self.memory(dv)
    a.da = Self.memory(da)
    a.db = Self.memory(db)
    a.d_gate = Self.memory(dGate)
    a.d_beta = Self.floats(dBeta)
    a.d_initial = Self.floats(g.state?.address ?? 0)
    let dInput = target(g.input, direct: g.input?.dtype == .float32, bytes: 4 * tokenCount)
    if let y { beginDivisionBack(y, dFinalVector, dInitial: g.vector, dInput: dInput) }
    walk(true)
    if let functions {
      let isOwnSize = size == valueSize || valueSize == 0
      let gradient = isOwnSize ? functions.gradient : functions.mixedGradient
      launchAll(
        gradient[isScalar ? 1 : 0], 256,
        Int(
          valueSize == 0
            ? gyre_cuda_mixer_linear_gradient_shared()
            : gyre_cuda_mixer_gradient_shared(rule, size, valueSize, isScalar ? 1 : 0)),
        mild: isOwnSize ? functions.mildGradient : nil,
        Int(gyre_cuda_mixer_mild_gradient_shared(rule)))
    }
    if let bonus { bonus.differentiate(a, dy: dy, dq: g.dq, du: g.bonus, launch) }
    if group > 1 {
      sumGroups([(dq, g.dq), (dk, g.dk)], group)
    } else {
      if bonus == nil { convert(gyre_array(dq, .bfloat16), to: g.dq) }
      convert(gyre_array(dk, .bfloat16), to: g.dk)
    }
    convert(gyre_array(dv, .bfloat16), to: g.dv)
    convert(gyre_array(da, .bfloat16), to: g.a)
    convert(gyre_array(db, .bfloat16), to: g.b)
    if a.gate_kind == 1, let gate = g.gate {
      launch.sumColumns(
        .floats(dGate), rows: Int(a.batch * a.tokens), columns: Int(a.heads), into: gate.array)
    } else {
      convert(gyre_array(dGate, gateType), to: g.gate)
    }
    convert(.floats(dBeta), to: g.beta)
    convert(.floats(dInput), to: g.input)
  }

  private func convert(_ from: gyre_array, to t: Tensor?) {
    guard let t, from.data != t.address else { return }
    launch.cast(from, to: t.array, count: t.elementCount)
  }

  /// Sums over the heads that share a key.
  private func sumGroups(_ pairs: [(from: UInt64, to: Tensor)], _ group: Int) {
    var s = gyre_group_sum_args()
    (s.rows, s.group, s.columns) = (pairs[0].to.elementCount / Int(a.keys), group, Int(a.keys))
    s.x = (pairs[0].from, pairs[1].from)
    s.out = (pairs[0].to.array, pairs[1].to.array)
    let blocks = (s.rows * s.columns / 8 + 255) / 256
    launch.run(
      Self.groupSums, grid: (min(blocks, launch.device.multiprocessors * 16), 2, 1), s)
  }
}

/// What a forward pass by chunks leaves for its derivative: records, extras, states at the chunks'
/// starts, what the tokens wrote, and what divided the outputs.
struct KeptChunks {
  /// Addresses of the inputs, kind of gate, scale, divisor.
  var key: [UInt64]
  var buffers: [CUDABuffer]
}
