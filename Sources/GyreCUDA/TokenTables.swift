import CGyreCUDASources
import GyreRecurrence
import GyreTensors

/// A token program as the kernel reads it: phases, the stream of weights, and how much shared memory
/// they need. Addresses come from the caller, so that host memory serves as well.
package struct TokenTables {
  package var phases: [gyre_token_phase] = []
  package var entries: [gyre_token_entry] = []
  /// Floats of shared memory for operands.
  package var operandFloats = Int(GYRE_TOKEN_WORK)
  /// Floats of shared memory for what warps sum.
  package var partialFloats = 0
  /// The kernel's variant: element type of weights, rows.
  package let variant: Int
  /// Stages of the ring that weights come through.
  package private(set) var depth = 0
  /// Bytes of shared memory of a block.
  package var sharedBytes: Int {
    Int(GYRE_TOKEN_STAGE) * depth + 4 * (operandFloats + partialFloats)
      + (MemoryLayout<gyre_token_shared>.stride + 127) / 128 * 128
  }
  /// Stages that are under way at most: enough to keep memory busy; more delay what blocks say.
  package var flight: Int { min(depth, 2) }
  /// Blocks of the grid: every one has a part of every phase of products.
  package let blocks: Int

  /// Where things lie.
  package struct Places {
    /// A vector of the program.
    package var vector: (TokenProgram.Vector) -> gyre_token_vector
    /// A tensor of any type.
    package var array: (Tensor) -> gyre_array
    /// A parameter in float32.
    package var floats: (Tensor) -> UInt64
    /// A matrix in the weights' type.
    package var weight: (Tensor) -> UInt64
    /// Keys and values of an attention.
    package var caches: (TokenProgram.Attention) -> (keys: UInt64, values: UInt64, capacity: Int)
    /// Parts of an attention, their sums, and what they give together.
    package var parts: (y: gyre_token_vector, sums: gyre_token_vector, joined: gyre_token_vector)
    /// What the layer leaves for the phase that moves it into a state.
    package var kept: gyre_token_vector
    package init(
      vector: @escaping (TokenProgram.Vector) -> gyre_token_vector,
      array: @escaping (Tensor) -> gyre_array, floats: @escaping (Tensor) -> UInt64,
      weight: @escaping (Tensor) -> UInt64,
      caches: @escaping (TokenProgram.Attention) -> (keys: UInt64, values: UInt64, capacity: Int),
      parts: (y: gyre_token_vector, sums: gyre_token_vector, joined: gyre_token_vector),
      kept: gyre_token_vector
    ) {
      self.vector = vector
      self.array = array
      self.floats = floats
      self.weight = weight
      self.caches = caches
      self.parts = parts
      self.kept = kept
    }
  }

  private let places: Places
  private let isFloat: Bool
  private let rows: Int
  private let batch: Int
  private var isCovered = true
  /// The phase that wrote an element of a vector last, or −1.
  private var writers: [[Int32]]
  private var written: [(vector: TokenProgram.Vector, count: Int)] = []
  /// The phase of the last attention.
  private var attentionPhase: Int32 = -1
  /// Numbers that phases write.
  private var given: [Int] = []
  /// What becomes a token shift's last token when every block has read it: when all that the shift's
  /// phase wrote was read.
  private var shifted: (move: gyre_token_move, unread: Set<Int>)?
  private let plain: Int?

  /// Splits of the keys of one head.
  package static func splits(_ a: TokenProgram.Attention, batch: Int, blocks: Int) -> Int {
    max(1, min(16, blocks / max(batch * a.heads, 1)))
  }

  /// Nil where the kernel does not cover the program.
  ///
  /// - Parameters:
  ///   - blocks: of the grid.
  ///   - shared: bytes of shared memory that a block may have.
  package init?(
    _ program: TokenProgram, isFloat: Bool, blocks: Int, shared: Int, places: Places
  ) {
    guard (1...4).contains(program.batch) else { return nil }
    self.init(program, (isFloat ? 1 : 0) | (program.batch > 1 ? 2 : 0), blocks, places)
    guard isCovered else { return nil }
    // Every warp takes every stage in turn, so the parity of a place's barrier says which stage is there.
    for stages in stride(from: Int(GYRE_TOKEN_DEPTH), through: 4, by: -1)
    where depth == 0 || sharedBytes > shared {
      depth = stages
    }
    guard sharedBytes <= shared else { return nil }
  }

  private init(_ program: TokenProgram, _ variant: Int, _ blocks: Int, _ places: Places) {
    self.variant = variant
    isFloat = variant & 1 != 0
    rows = variant & 2 != 0 ? 4 : 1
    self.places = places
    batch = program.batch
    writers = program.widths.map { [Int32](repeating: -1, count: $0) }
    let products = program.phases.compactMap { phase -> TokenProgram.Products? in
      if case .products(let products) = phase { products } else { nil }
    }
    self.blocks = max(
      1, products.reduce(blocks) { min($0, $1.products.reduce(0) { $0 + $1.rows }) })
    // The logits are read by others.
    plain = products.last?.products.last?.output.index
    for phase in program.phases where isCovered {
      switch phase {
      case .embedding(let embedding): add(embedding)
      case .products(let products): add(products)
      case .matrix(let step): add(step)
      case .attention(let attention): add(attention)
      }
    }
    if shifted != nil { isCovered = false }
  }

  /// The phase writes `given` numbers that others may wait for.
  private mutating func append(_ phase: gyre_token_phase, given count: Int) {
    for (vector, count) in written {
      for i in 0..<count { writers[vector.index][vector.offset + i] = Int32(phases.count) }
    }
    written = []
    phases.append(phase)
    given.append(count)
  }

  /// The vector as the next phase reads it.
  private mutating func read(_ vector: TokenProgram.Vector, _ count: Int) -> gyre_token_vector {
    var v = places.vector(vector)
    let range = writers[vector.index].dropFirst(vector.offset).prefix(count)
    guard let phase = range.first, phase >= 0, range.count == count,
      range.allSatisfy({ $0 == phase })
    else {
      isCovered = false
      return v
    }
    v.phase = phase
    shifted?.unread.remove(vector.index)
    return v
  }

  /// The vector as the next phase writes it.
  private mutating func write(_ vector: TokenProgram.Vector, _ count: Int) -> gyre_token_vector {
    var v = places.vector(vector)
    v.phase = vector.index == plain ? -1 : Int32(phases.count)
    written.append((vector, count))
    return v
  }

  private func state(_ tensor: Tensor) -> UInt64 { places.array(tensor).data }
  private func floats(_ tensor: Tensor?) -> UInt64 { tensor.map(places.floats) ?? 0 }

  private var elementSize: Int { isFloat ? 4 : 2 }
  /// Floats of shared memory of an operand.
  private func extent(_ size: Int) -> Int {
    ((size * elementSize + 127) / 128 * 128 + 16) * (isFloat ? 1 : 2) / 4 * rows
  }

  /// Columns of a row that come together: all, or a part of at most the stage's size.
  private func slice(_ columns: Int) -> Int {
    let bytes = columns * elementSize
    let parts = (bytes + Int(GYRE_TOKEN_SLICE) - 1) / Int(GYRE_TOKEN_SLICE)
    if parts <= 1 { return columns }
    return ((bytes + parts - 1) / parts + 127) / 128 * 128 / elementSize
  }

  // MARK: - Phases

  private mutating func add(_ e: TokenProgram.Embedding) {
    guard !e.table.dtype.isQuantized else { return isCovered = false }
    var p = gyre_token_phase()
    p.kind = Int32(GYRE_TOKEN_EMBEDDING_PHASE)
    p.embedding.table = places.array(e.table)
    p.embedding.factor = Float(e.factor)
    p.embedding.size = Int32(e.table.shape[1])
    p.embedding.y = write(e.output, e.table.shape[1])
    if let norm = e.norm {
      p.embedding.norm = norm.centers ? 2 : 1
      p.embedding.weight = floats(norm.weight)
      p.embedding.bias = floats(norm.bias)
      p.embedding.epsilon = Float(norm.epsilon)
    }
    operandFloats = max(operandFloats, (e.table.shape[1] + 7) / 8 * 8)
    append(p, given: 0)
  }

  private mutating func add(_ products: TokenProgram.Products) {
    var p = gyre_token_phase()
    p.kind = Int32(GYRE_TOKEN_PRODUCT_PHASE)
    p.makes = 1
    var parameters: [Tensor] = []
    var operands: [gyre_token_operand] = []
    for o in products.operands {
      operands.append(operand(o, isAlone: products.operands.count == 1, &parameters))
    }
    if let shift = products.shift {
      guard operands.count == 1, operands[0].kind == Int32(GYRE_TOKEN_NORM), shifted == nil else {
        return isCovered = false
      }
      let first = operands[0]
      operands = shift.mixes.enumerated().map { i, mix in
        var o = i == 0 ? first : gyre_token_operand()
        if i > 0 {
          o.kind = Int32(GYRE_TOKEN_SHIFT)
          (o.size, o.group, o.period) = (first.size, first.size, first.size)
        }
        o.mix = places.floats(mix)
        return o
      }
      operands[0].last = state(shift.last)
      operands[0].keep = places.kept
      operands[0].keep.phase = Int32(phases.count)
      parameters += shift.mixes
      bring([(state(shift.last), shift.last.byteCount)], &p)
    }
    var moves: [gyre_token_move] = []
    for window in products.windows {
      let (taps, channels) = (window.window.shape[1], window.window.shape[2])
      moves.append(
        gyre_token_move(
          from: read(window.from, channels), to: state(window.window),
          stride: Int32(taps * channels), count: Int32(channels), taps: Int32(taps), unused: 0))
    }
    if let (move, unread) = shifted, unread.isEmpty {
      moves.append(move)
      shifted = nil
    }
    guard operands.count <= Int(GYRE_TOKEN_OPERANDS),
      products.products.count <= Int(GYRE_TOKEN_PRODUCTS), moves.count <= Int(GYRE_TOKEN_MOVES)
    else { return isCovered = false }
    p.operands = Int32(operands.count)
    for (i, o) in operands.enumerated() { put(o, at: i, into: &p.operand) }
    p.moves = Int32(moves.count)
    for (i, move) in moves.enumerated() { put(move, at: i, into: &p.move) }
    if let shift = products.shift {
      let width = operands[0].size
      shifted = (
        gyre_token_move(
          from: operands[0].keep, to: state(shift.last), stride: width, count: width, taps: 0,
          unused: 0),
        Set(products.products.map(\.output.index))
      )
    }
    operandFloats = max(operandFloats, operands.reduce(0) { $0 + extent(Int($1.size)) })
    // One in sixteen may be missing when a block begins to ask.
    let awaited = operands.reduce(-1) { $1.x.data == 0 ? $0 : max($0, $1.x.phase) }
    if awaited > 0 {
      let count = given[Int(awaited)]
      (p.awaited, p.enough) = (awaited, Int32(count - count / 16))
    }
    parameters += products.products.compactMap(\.bias)
    bring(parameters.map { (places.floats($0), 4 * $0.elementCount) }, &p)
    multiply(products.products, operands, p)
  }

  /// The phase with its products, cut into several where a block could not keep all its sums.
  private mutating func multiply(
    _ products: [TokenProgram.Product], _ operands: [gyre_token_operand], _ phase: gyre_token_phase
  ) {
    let row = Int(GYRE_TOKEN_THREADS) / 32 * rows + 4
    let kept = Int(GYRE_TOKEN_PARTIALS) * (rows > 1 ? 2 : 1) / row
    var total = 0
    var isPaired = false
    for product in products {
      guard operands.indices.contains(product.operand),
        Int(operands[product.operand].size) == product.columns, product.columns > 0,
        !product.weight.dtype.isQuantized, product.columns * (isFloat ? 4 : 2) % 16 == 0,
        places.weight(product.weight) % 16 == 0
      else { return isCovered = false }
      total += product.rows
      if product.isPaired { isPaired = true }
    }
    let own = (total + blocks - 1) / blocks * (isPaired ? 2 : 1)
    if own <= kept {
      partialFloats = max(partialFloats, own * row)
      return append(phase, products.map { ($0, 0..<$0.rows) })
    }
    guard products.count == 1, let product = products.first, !product.isPaired
    else { return isCovered = false }
    partialFloats = max(partialFloats, kept * row)
    let most = kept * blocks
    for start in stride(from: 0, to: product.rows, by: most) {
      var part = phase
      if start > 0 { (part.makes, part.moves, part.ranges, part.enough) = (0, 0, 0, 0) }
      append(part, [(product, start..<min(start + most, product.rows))])
    }
  }

  private mutating func append(
    _ phase: gyre_token_phase, _ products: [(product: TokenProgram.Product, rows: Range<Int>)]
  ) {
    var p = phase
    p.products = Int32(products.count)
    let total = products.reduce(0) { $0 + $1.rows.count }
    var first = 0
    for (i, part) in products.enumerated() {
      let product = part.product
      var q = gyre_token_product()
      let output = product.output.advanced(by: part.rows.lowerBound)
      if let bias = product.bias { q.bias = places.floats(bias) + UInt64(4 * part.rows.lowerBound) }
      (q.alpha, q.beta, q.function) = (1, 1, -1)
      switch product.finish {
      case .set(let f):
        q.rule = Int32(GYRE_TOKEN_SET)
        q.function = function(f)
      case .add(let alpha, let beta):
        q.rule = Int32(GYRE_TOKEN_ADD)
        (q.alpha, q.beta) = (Float(alpha), Float(beta))
        q.old = read(output, part.rows.count)
      case .gated(let f):
        q.rule = Int32(GYRE_TOKEN_GATED)
        q.function = function(f)
      case .minGRU(let state):
        q.rule = Int32(GYRE_TOKEN_MIN_GRU)
        q.old = gyre_token_vector(
          data: self.state(state), stride: Int32(product.rows), phase: -1)
      case .capped(let cap):
        q.rule = Int32(GYRE_TOKEN_CAP)
        q.alpha = Float(cap)
      }
      q.y = write(output, part.rows.count)
      (q.rows, q.first) = (Int32(part.rows.count), Int32(first))
      (q.columns, q.slice) = (Int32(product.columns), Int32(slice(product.columns)))
      q.step =
        Int32(GYRE_TOKEN_STAGE) / (Int32(GYRE_TOKEN_ROWS) * q.slice * (isFloat ? 4 : 2))
        * Int32(GYRE_TOKEN_ROWS)
      q.pieces = (q.columns + q.slice - 1) / q.slice
      q.operand = Int32(product.operand)
      q.paired = product.isPaired ? 1 : 0
      put(q, at: i, into: &p.product)
      let rowBytes = product.columns * (isFloat ? 4 : 2)
      entries.append(
        gyre_token_entry(
          weight: places.weight(product.weight) + UInt64(part.rows.lowerBound * rowBytes),
          rows: q.rows, first: q.first, total: Int32(total), columns: q.columns, slice: q.slice,
          paired: q.paired, step: q.step, pieces: q.pieces))
      first += part.rows.count
    }
    append(p, given: total * batch)
  }

  private mutating func operand(
    _ operand: TokenProgram.Operand, isAlone: Bool, _ parameters: inout [Tensor]
  ) -> gyre_token_operand {
    var o = gyre_token_operand()
    let size = Int32(operand.size)
    (o.size, o.group, o.period, o.function) = (size, size, size, -1)
    if let gate = operand.gate {
      o.gate = 1
      o.z = read(gate.vector, operand.size)
      o.function = function(gate.activation)
    }
    if operand.attention != nil {
      o.x = places.parts.joined
      o.x.phase = attentionPhase
      if attentionPhase < 0 { isCovered = false }
    } else {
      o.x = read(operand.vector, operand.size)
    }
    guard let norm = operand.norm else { return o }
    o.kind = Int32(GYRE_TOKEN_NORM)
    o.centers = norm.centers ? 1 : 0
    o.group = norm.group.map(Int32.init) ?? size
    o.epsilon = Float(norm.epsilon)
    if let weight = norm.weight {
      o.weight = places.floats(weight)
      o.period = Int32(weight.elementCount)
    }
    if let bias = norm.bias {
      o.bias = places.floats(bias)
      o.period = Int32(bias.elementCount)
    }
    if let weight = norm.weight, let bias = norm.bias, weight.elementCount != bias.elementCount {
      isCovered = false
    }
    if let gate = norm.gate {
      o.gate = gate.place == .before ? 2 : 1
      o.z = read(gate.vector, operand.size)
      o.function = function(gate.activation)
      if gate.place == .before, isAlone, gatesState(o) {
        (o.gate, o.z, o.function) = (0, .init(), -1)
        // What nobody else may read: it is gated.
        let (first, index) = (operand.vector.offset, operand.vector.index)
        for i in first..<first + operand.size { writers[index][i] = -1 }
      }
    }
    if let added = norm.added {
      o.v = read(added.values, operand.size)
      o.score = read(added.scores, operand.size / Int(o.group))
    }
    parameters += [norm.weight, norm.bias].compactMap { $0 }
    return o
  }

  /// Whether the matrix step before gives its outputs times the operand's gate: so every block reads half of the
  /// numbers.
  private mutating func gatesState(_ o: gyre_token_operand) -> Bool {
    let usual = [Unary.Kind.silu, .sigmoid].map { Int32($0.rawValue) }
    guard let last = phases.indices.last, usual.contains(o.function), o.z.phase < last,
      phases[last].kind == Int32(GYRE_TOKEN_MATRIX_PHASE),
      phases[last].matrix.rule != Int32(GYRE_TOKEN_RWKV7), phases[last].matrix.outer.data == 0,
      phases[last].matrix.y.data == o.x.data, o.x.phase == Int32(last),
      phases[last].matrix.heads * phases[last].matrix.values == o.size
    else { return false }
    (phases[last].matrix.outer, phases[last].matrix.outer_function) = (o.z, o.function)
    return true
  }

  private mutating func add(_ step: TokenProgram.MatrixStep) {
    var p = gyre_token_phase()
    p.kind = Int32(GYRE_TOKEN_MATRIX_PHASE)
    var m = gyre_token_matrix()
    guard step.keySize <= Int(GYRE_TOKEN_KEYS),
      (step.convolution?.weight.shape[1] ?? 0) <= Int(GYRE_TOKEN_TAPS)
    else { return isCovered = false }
    (m.heads, m.key_heads) = (Int32(step.heads), Int32(step.keyHeads))
    (m.keys, m.values) = (Int32(step.keySize), Int32(step.valueSize))
    (m.q, m.k, m.v) = (Int32(step.q), Int32(step.k), Int32(step.v))
    m.function = function(step.activation)
    (m.scale, m.epsilon) = (Float(step.scale), Float(step.epsilon))
    m.state = state(step.state)
    let (keys, values) = (step.keyHeads * step.keySize, step.heads * step.valueSize)
    let channels = [(step.q, keys), (step.k, keys), (step.v, values)]
    for (first, count) in channels { m.x = read(step.streams.advanced(by: first), count) }
    m.x.data = places.vector(step.streams).data
    m.y = write(step.output, values)
    (m.step_low, m.step_high) = (0, .infinity)
    var parameters: [Tensor] = []
    bring([(m.state, step.state.byteCount)], &p)
    if let convolution = step.convolution {
      m.taps = Int32(convolution.weight.shape[1])
      m.channels = Int32(convolution.weight.shape[0])
      m.taps_weight = floats(convolution.weight)
      m.taps_bias = floats(convolution.bias)
      m.window = state(convolution.window)
      bring([(m.window, convolution.window.byteCount)], &p)
      parameters += [convolution.weight] + (convolution.bias.map { [$0] } ?? [])
    }
    if let gate = step.gate { m.gate = read(gate, step.heads) }
    for (tensor, path) in [
      (step.logRate, \gyre_token_matrix.log_rate), (step.stepBias, \.step_bias),
      (step.skip, \.skip),
    ] {
      guard let tensor else { continue }
      m[keyPath: path] = places.floats(tensor)
      parameters.append(tensor)
    }
    if let skip = step.skip { m.skip_per_channel = skip.elementCount > step.heads ? 1 : 0 }
    switch step.rule {
    case .mamba2(let low, let high):
      m.rule = Int32(GYRE_TOKEN_LINEAR)
      m.step_low = Float(low)
      if let high { m.step_high = Float(high) }
    case .delta(let write, let isDoubled):
      m.rule = Int32(GYRE_TOKEN_DELTA)
      m.write = read(write, step.heads)
      m.writes_twice = isDoubled ? 1 : 0
    case .rwkv7(let r):
      m.rule = Int32(GYRE_TOKEN_RWKV7)
      (m.decay, m.rate) = (read(r.decay, keys), read(r.rate, keys))
      m.is_first = r.isFirst ? 1 : 0
      if r.isFirst {
        m.first = self.write(r.first, values)
      } else {
        (m.mixed, m.first) = (read(r.mixed, values), read(r.first, values))
      }
      (m.value, m.score) = (self.write(r.value, values), self.write(r.score, step.heads))
      (m.key_scale, m.key_rate) = (floats(r.keyScale), floats(r.keyRate))
      m.bonus = floats(r.bonus)
      parameters += [r.keyScale, r.keyRate, r.bonus]
    }
    p.matrix = m
    bring(parameters.map { (places.floats($0), 4 * $0.elementCount) }, &p)
    append(p, given: values * batch)
  }

  private mutating func add(_ a: TokenProgram.Attention) {
    var p = gyre_token_phase()
    p.kind = Int32(GYRE_TOKEN_ATTENTION_PHASE)
    guard a.size <= Int(GYRE_TOKEN_KEYS), a.size % 8 == 0 else {
      return isCovered = false
    }
    var t = gyre_token_attention()
    (t.heads, t.key_heads, t.size) = (Int32(a.heads), Int32(a.keyHeads), Int32(a.size))
    (t.rotated, t.interleaved) = (Int32(a.rotated), a.interleaved ? 1 : 0)
    t.splits = Int32(Self.splits(a, batch: batch, blocks: blocks))
    t.window = Int32(a.window ?? 0)
    (t.q, t.k, t.v) = (Int32(a.q), Int32(a.k), Int32(a.v))
    (t.scale, t.epsilon) = (Float(a.scale), Float(a.epsilon))
    t.log_base = Functions.log(max(a.rotaryBase, 1e-300))
    for (first, heads) in [(a.q, a.heads), (a.k, a.keyHeads), (a.v, a.keyHeads)] {
      t.x = read(a.streams.advanced(by: first), heads * a.size)
    }
    t.x.data = places.vector(a.streams).data
    t.query_norm = floats(a.queryNorm)
    t.key_norm = floats(a.keyNorm)
    let caches = places.caches(a)
    (t.keys, t.values, t.capacity) = (caches.keys, caches.values, Int32(caches.capacity))
    attentionPhase = Int32(phases.count)
    (t.y, t.sums, t.joined) = places.parts
    (t.y.phase, t.sums.phase, t.joined.phase) = (attentionPhase, attentionPhase, attentionPhase)
    p.attention = t
    let norms = [a.queryNorm, a.keyNorm].compactMap { $0 }
    bring(norms.map { (places.floats($0), 4 * $0.elementCount) }, &p)
    append(p, given: a.heads * a.size * batch)
  }

  // MARK: - Small things

  private mutating func function(_ f: Unary.Kind?) -> Int32 {
    guard let f else { return -1 }
    let known: Set<Unary.Kind> = [
      .relu, .reluSquared, .silu, .geluTanh, .gelu, .sigmoid, .tanh, .exp, .softplus, .square,
    ]
    if !known.contains(f) { isCovered = false }
    return Int32(f.rawValue)
  }

  /// Memory that is brought nearer before the phase.
  private func bring(_ places: [(data: UInt64, bytes: Int)], _ p: inout gyre_token_phase) {
    for (data, bytes) in places where bytes > 0 && p.ranges < Int32(GYRE_TOKEN_RANGES) {
      put(gyre_token_range(data: data, bytes: bytes), at: Int(p.ranges), into: &p.range)
      p.ranges += 1
    }
  }

  /// Element `index` of a C array, which is a tuple here.
  private func put<Element, Tuple>(_ value: Element, at index: Int, into tuple: inout Tuple) {
    withUnsafeMutableBytes(of: &tuple) { bytes in
      bytes.storeBytes(
        of: value, toByteOffset: index * MemoryLayout<Element>.stride, as: Element.self)
    }
  }
}
