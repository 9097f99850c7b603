import CGyreCUDALoader
import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// A token program on a card: one launch a token for the model and one for the draw, recorded as one
/// graph. Tokens go to the host through page-locked memory while the next step runs.
final class CUDATokenRunner: DrawingTokenRunner {
  /// Steps that may be under way, and slots of the ring of drawn tokens.
  static let slots = 8
  private static let steps = (0..<4).map {
    CUDAFunction("token_step", "token_step", ["-DTOKEN_VARIANT=\($0)"])
  }
  private static let sampling = CUDAFunction("token_sample", "token_sample")

  private let device: CUDADevice
  private let program: TokenProgram
  private let draw: TokenDraw
  private let isFloat: Bool
  private let vocabulary: Int
  /// Holds converted weights.
  private let launch: CUDALaunch
  private let vectors, parts, kept, counts, integers, draws, recent: CUDABuffer
  private let places: [Int]
  private let logitsVector: TokenProgram.Vector
  private var caches: [Cache] = []
  private var tables: TokenTables
  private var phases: CUDABuffer
  private let entries: CUDABuffer
  private var position: Int
  private var taken: Int
  private var graphs: [Bool: any RecordedWork] = [:]
  private let pinned: UnsafeMutableRawPointer
  private var events: [gyre_cuda_handle?] = []

  private struct Cache {
    var keys, values: CUDABuffer
    var capacity: Int
    let window: Int?
    /// Elements of one token.
    let width: Int
  }

  /// Numbers of a sequence's attention: of parts, their sums, what they give together.
  private struct Parts {
    var values = 0
    var sums = 0
    var joined = 0
    var width: Int { values + sums + joined }
    init(_ attentions: [TokenProgram.Attention], batch: Int, blocks: Int) {
      for a in attentions {
        let splits = TokenTables.splits(a, batch: batch, blocks: blocks)
        values = max(values, splits * a.heads * a.size)
        sums = max(sums, splits * a.heads * 2)
        joined = max(joined, a.heads * a.size)
      }
    }
  }

  let launches = 2
  var queued: Int { position - taken }
  private var batch: Int { program.batch }
  private var elementSize: Int { isFloat ? 4 : 2 }

  /// Nil where the kernel does not cover the program or memory is short; the device then keeps no error.
  init?(
    _ device: CUDADevice, _ program: TokenProgram, logits: TokenProgram.Vector, vocabulary: Int,
    position: Int, isFloat: Bool, draw: TokenDraw
  ) {
    self.device = device
    self.program = program
    self.draw = draw
    self.isFloat = isFloat
    self.vocabulary = vocabulary
    self.position = position
    taken = position
    logitsVector = logits
    let launch = CUDALaunch(device, "token_step")
    self.launch = launch
    let (batch, blocks) = (program.batch, device.multiprocessors)
    var total = 0
    var places: [Int] = []
    for width in program.widths {
      places.append(total)
      total += (width * batch + 31) / 32 * 32
    }
    self.places = places
    let attentions = program.phases.compactMap { phase -> TokenProgram.Attention? in
      if case .attention(let a) = phase { a } else { nil }
    }
    let parts = Parts(attentions, batch: batch, blocks: blocks)
    let window = max(draw.repetitionPenalty == 1 ? 0 : draw.repetitionWindow, 0)
    var pinned: UnsafeMutableRawPointer?
    do throws(DeviceError) {
      let allocator = device.allocator
      // Numbers and their stamps.
      vectors = try allocator.allocate(byteCount: 8 * total)
      self.parts = try allocator.allocate(byteCount: 8 * max(parts.width * batch, 1))
      kept = try allocator.allocate(byteCount: 8 * batch * (program.widths.first ?? 1))
      // After 256 bytes: tokens; positions; drawn tokens; counts of recent tokens.
      integers = try allocator.allocate(byteCount: 256 + 4 * batch * (3 + Self.slots))
      draws = try allocator.allocate(byteCount: 8 * batch)
      recent = try allocator.allocate(byteCount: 4 * max(batch * window, 1))
      for a in attentions {
        let width = a.keyHeads * a.size
        let capacity = a.window.map { $0 + 1 } ?? Self.capacity(for: position + 1)
        let bytes = batch * capacity * width * (isFloat ? 4 : 2)
        caches.append(
          Cache(
            keys: try allocator.allocate(byteCount: bytes),
            values: try allocator.allocate(byteCount: bytes), capacity: capacity, window: a.window,
            width: width))
      }
    } catch { return nil }
    guard
      device.driver.current.host_allocate(&pinned, 4 * Self.slots * batch, 0) == GYRE_CUDA_SUCCESS,
      let pinned
    else { return nil }
    self.pinned = pinned
    for _ in 0..<Self.slots {
      var event: gyre_cuda_handle?
      _ = device.driver.current.event_create(&event, 2)
      events.append(event)
    }
    let arrays = (vectors: vectors.address, parts: self.parts.address, kept: kept.address)
    let made = TokenTables(
      program, isFloat: isFloat, blocks: blocks, shared: device.sharedPerBlock,
      places: Self.places(program, places, arrays, parts, launch, isFloat, caches))
    guard let made,
      let phases = try? device.allocator.allocate(
        byteCount: made.phases.count * MemoryLayout<gyre_token_phase>.stride),
      let entries = try? device.allocator.allocate(
        byteCount: made.entries.count * MemoryLayout<gyre_token_entry>.stride),
      let counts = try? device.allocator.allocate(byteCount: 8 * made.phases.count)
    else {
      for event in events { _ = device.driver.table.event_destroy(event) }
      _ = device.driver.table.host_free(pinned)
      return nil
    }
    tables = made
    (self.phases, self.entries, self.counts) = (phases, entries, counts)
    for buffer in [vectors, self.parts, kept, counts, integers, draws, recent] { zero(buffer) }
    write(entries, made.entries)
    write(phases, made.phases)
    let positions = [Int32](repeating: Int32(position), count: batch)
    positions.withUnsafeBytes { device.write($0, to: integers, offset: 256 + 4 * batch) }
    write(draws, [Int64](repeating: Int64(draw.firstDraw), count: batch))
    for (a, cache) in zip(attentions, caches) {
      for (tensor, target) in [(a.keys, cache.keys), (a.values, cache.values)] {
        guard let tensor else { continue }
        fill(target, from: tensor, cache)
      }
    }
  }

  deinit {
    _ = device.driver.current.stream_synchronize(device.stream)
    for event in events { _ = device.driver.table.event_destroy(event) }
    _ = device.driver.table.host_free(pinned)
  }

  /// Tokens of room for a sequence of `count`: twice as many, or a block of 65,536 more.
  private static func capacity(for count: Int) -> Int {
    var capacity = 1024
    while capacity < count { capacity += min(capacity, 65_536) }
    return capacity
  }

  private static func places(
    _ program: TokenProgram, _ offsets: [Int],
    _ arrays: (vectors: UInt64, parts: UInt64, kept: UInt64), _ parts: Parts,
    _ launch: CUDALaunch, _ isFloat: Bool, _ caches: [Cache]
  ) -> TokenTables.Places {
    let widths = program.widths
    func part(_ offset: Int) -> gyre_token_vector {
      .init(data: arrays.parts + UInt64(8 * offset), stride: Int32(parts.width), phase: -1)
    }
    return TokenTables.Places(
      vector: {
        gyre_token_vector(
          data: arrays.vectors + UInt64(8 * (offsets[$0.index] + $0.offset)),
          stride: Int32(widths[$0.index]), phase: -1)
      },
      array: { $0.array },
      floats: { launch.float32($0) },
      weight: { isFloat ? launch.float32($0) : launch.bfloat16($0) },
      caches: {
        (caches[$0.index].keys.address, caches[$0.index].values.address, caches[$0.index].capacity)
      },
      parts: (y: part(0), sums: part(parts.values), joined: part(parts.values + parts.sums)),
      kept: .init(data: arrays.kept, stride: Int32(widths.first ?? 1), phase: -1))
  }

  // MARK: - Memory

  private func zero(_ buffer: CUDABuffer) {
    device.check(
      device.driver.current.set_bytes(buffer.address, 0, buffer.byteCount, device.stream), "zero")
  }

  private func write<Element: BitwiseCopyable>(_ buffer: CUDABuffer, _ elements: [Element]) {
    elements.withUnsafeBytes { device.write($0, to: buffer, offset: 0) }
  }

  /// Cached tokens `[B, P, …]` where the kernel looks for them.
  private func fill(_ target: CUDABuffer, from tensor: Tensor, _ cache: Cache) {
    let count = tensor.shape[1]
    let type: DType = isFloat ? .float32 : .bfloat16
    for b in 0..<batch {
      var done = 0
      while done < count {
        // In a ring the tokens lie at their positions' remainders.
        let slot = cache.window == nil ? done : (position - count + done) % cache.capacity
        let run = min(count - done, cache.capacity - slot)
        let from = gyre_array(
          tensor.address + UInt64((b * count + done) * cache.width * tensor.dtype.byteCount),
          tensor.dtype)
        let to = gyre_array(
          target.address + UInt64((b * cache.capacity + slot) * cache.width * elementSize), type)
        launch.cast(from, to: to, count: run * cache.width)
        done += run
      }
    }
  }

  /// Room for the next token in caches without a window.
  private func grow() throws(DeviceError) {
    var hasGrown = false
    for i in caches.indices where caches[i].window == nil && caches[i].capacity <= position {
      let old = caches[i]
      let capacity = Self.capacity(for: position + 1)
      let row = old.width * elementSize
      var buffers: [CUDABuffer] = []
      for source in [old.keys, old.values] {
        let target = try device.allocator.allocate(byteCount: batch * capacity * row)
        for b in 0..<batch {
          device.check(
            device.driver.current.copy_on_device(
              target.address + UInt64(b * capacity * row),
              source.address + UInt64(b * old.capacity * row), old.capacity * row, device.stream),
            "token cache")
        }
        buffers.append(target)
      }
      caches[i].keys = buffers[0]
      caches[i].values = buffers[1]
      caches[i].capacity = capacity
      hasGrown = true
    }
    guard hasGrown else { return }
    var next = 0
    for i in tables.phases.indices
    where tables.phases[i].kind == Int32(GYRE_TOKEN_ATTENTION_PHASE) {
      tables.phases[i].attention.keys = caches[next].keys.address
      tables.phases[i].attention.values = caches[next].values.address
      tables.phases[i].attention.capacity = Int32(caches[next].capacity)
      next += 1
    }
    write(phases, tables.phases)
  }

  // MARK: - Steps

  private var stepArguments: gyre_token_step_args {
    gyre_token_step_args(
      phases: phases.address, entries: entries.address, counts: counts.address,
      tokens: integers.address + 256, position: integers.address + UInt64(256 + 4 * batch),
      phase_count: Int32(tables.phases.count), entry_count: Int32(tables.entries.count),
      batch: Int32(batch), operand_floats: Int32(tables.operandFloats),
      partial_floats: Int32(tables.partialFloats), depth: Int32(tables.depth),
      flight: Int32(tables.flight))
  }

  private func sampleArguments(draws isDrawn: Bool) -> gyre_token_sample_args {
    var a = gyre_token_sample_args()
    a.logits = vectors.address + UInt64(8 * (places[logitsVector.index] + logitsVector.offset))
    a.logit_stride = program.widths[logitsVector.index]
    let base = integers.address + 256
    let step = UInt64(4 * batch)
    (a.tokens, a.position, a.recent_count) = (base, base + step, base + 2 * step)
    a.output = base + 3 * step
    (a.draws, a.recent) = (draws.address, recent.address)
    (a.seed, a.stream) = (UInt(draw.seed), UInt(draw.stream))
    (a.temperature, a.top_p, a.min_p) = (draw.temperature, draw.topP, draw.minP)
    a.penalty = Float(draw.repetitionPenalty)
    (a.vocabulary, a.top_k) = (Int32(vocabulary), Int32(min(draw.topK, 1 << 30)))
    a.window = draw.repetitionPenalty == 1 ? 0 : Int32(draw.repetitionWindow)
    (a.slots, a.batch) = (Int32(Self.slots), Int32(batch))
    a.keeps_token = isDrawn ? 0 : 1
    return a
  }

  /// Queues one step, by its graph where the driver records.
  private func step(draws isDrawn: Bool) throws(DeviceError) {
    try grow()
    let function = Self.steps[tables.variant]
    let launch = self.launch
    let shared = tables.sharedBytes
    let (step, sample) = (stepArguments, sampleArguments(draws: isDrawn))
    let (blocks, batch) = (tables.blocks, batch)
    func run() {
      launch.run(
        function, grid: (blocks, 1, 1), threads: (Int(GYRE_TOKEN_LAUNCH), 1), shared: shared, step)
      launch.run(
        Self.sampling, grid: (batch, 1, 1), threads: (Int(GYRE_TOKEN_SAMPLE_THREADS), 1), sample)
    }
    if graphs[isDrawn] == nil {
      // Compiling is not part of a recording.
      _ = try device.compiler.function(function, shared: shared)
      _ = try device.compiler.function(Self.sampling, shared: 0)
      graphs[isDrawn] = device.record(run)
    }
    if let graph = graphs[isDrawn] { graph.replay() } else { run() }
    position += 1
  }

  func logits(after tokens: [Int32]) throws(DeviceError) -> [Float] {
    tokens.withUnsafeBytes { device.write($0, to: integers, offset: 256) }
    try step(draws: false)
    taken += 1
    var result = [Float](repeating: 0, count: batch * vocabulary)
    let failure: DeviceError? = result.withUnsafeMutableBytes { bytes in
      do throws(DeviceError) {
        try device.read(
          vectors, offset: 8 * (places[logitsVector.index] + logitsVector.offset), into: bytes)
        return nil
      } catch { return error }
    }
    if let failure { throw failure }
    return result
  }

  func observe(_ tokens: [Int32]) {
    let window = draw.repetitionPenalty == 1 ? 0 : draw.repetitionWindow
    guard window > 0 else { return }
    let recentTokens = [Int32](tokens.suffix(window))
    for b in 0..<batch {
      recentTokens.withUnsafeBytes { device.write($0, to: recent, offset: 4 * b * window) }
    }
    let counts = [Int32](repeating: Int32(recentTokens.count), count: batch)
    counts.withUnsafeBytes { device.write($0, to: integers, offset: 256 + 8 * batch) }
  }

  func queueStep(reading tokens: [Int32]?) {
    if let tokens { tokens.withUnsafeBytes { device.write($0, to: integers, offset: 256) } }
    let slot = position % Self.slots
    do throws(DeviceError) { try step(draws: true) } catch { return device.fail(error) }
    let size = 4 * batch
    let table = device.driver.current
    let source = integers.address + UInt64(256 + 3 * size + slot * size)
    device.check(
      table.copy_to_host(pinned + slot * size, source, size, device.stream), "drawn tokens")
    device.check(table.event_record(events[slot], device.stream), "drawn tokens")
  }

  func drawnTokens() throws(DeviceError) -> [Int32] {
    guard taken < position else {
      try device.synchronize()
      return [Int32](repeating: -1, count: batch)
    }
    let slot = taken % Self.slots
    taken += 1
    device.check(device.driver.current.event_synchronize(events[slot]), "drawn tokens")
    try device.failure.take()
    return (0..<batch).map {
      pinned.load(fromByteOffset: 4 * (slot * batch + $0), as: Int32.self)
    }
  }
}

extension CUDADevice: TokenProgramDevice {
  public func makeRunner(
    _ program: TokenProgram, logits: TokenProgram.Vector, vocabulary: Int, position: Int,
    precision: ComputePrecision, draw: TokenDraw
  ) -> (any TokenRunner)? {
    CUDATokenRunner(
      self, program, logits: logits, vocabulary: vocabulary, position: position,
      isFloat: precision != .bfloat16, draw: draw)
  }
}
