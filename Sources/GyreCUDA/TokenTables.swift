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
  package private(set) var depth = Int(GYRE_TOKEN_DEPTH)
  /// Bytes of shared memory of a block.
  package var sharedBytes: Int {
    Int(GYRE_TOKEN_STAGE) * depth + 4 * (operandFloats + partialFloats)
      + MemoryLayout<gyre_token_shared>.stride
  }
  /// Stages that are under way at most: enough to keep memory busy.
  package var flight: Int { min(depth, 4) }

  /// Where things lie.
  package struct Places {
    /// A vector of the program.
    package var vector: (TokenProgram.Vector) -> gyre_token_vector
    /// A tensor of any type.
    package var array: (Tensor) -> gyre_array
    /// A matrix in the weights' type.
    package var weight: (Tensor) -> UInt64
    /// Keys and values of an attention.
    package var caches: (TokenProgram.Attention) -> (keys: UInt64, values: UInt64, capacity: Int)
    /// Parts of an attention, and their sums.
    package var parts: (y: gyre_token_vector, sums: gyre_token_vector)
    /// What the layer leaves for the phase that moves it into a state.
    package var kept: gyre_token_vector
    package init(
      vector: @escaping (TokenProgram.Vector) -> gyre_token_vector,
      array: @escaping (Tensor) -> gyre_array, weight: @escaping (Tensor) -> UInt64,
      caches: @escaping (TokenProgram.Attention) -> (keys: UInt64, values: UInt64, capacity: Int),
      parts: (y: gyre_token_vector, sums: gyre_token_vector), kept: gyre_token_vector
    ) {
      self.vector = vector
      self.array = array
      self.weight = weight
      self.caches = caches
      self.parts = parts
      self.kept = kept
    }
  }

  private let places: Places
  private let isFloat: Bool
  private let rows: Int
  private let blocks: Int
  private let batch: Int
  private var isCovered = true
  /// Moves that the next phase of products takes along.
  private var moves: [gyre_token_move] = []

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
    // A batch of units may reach over this many stages.
    while sharedBytes > shared { if depth > 3 { depth -= 1 } else { return nil } }
  }

  private init(_ program: TokenProgram, _ variant: Int, _ blocks: Int, _ places: Places) {
    self.variant = variant
    isFloat = variant & 1 != 0
    rows = variant & 2 != 0 ? 4 : 1
    (self.blocks, self.places) = (blocks, places)
    batch = program.batch
    for phase in program.phases where isCovered {
      switch phase {
      case .embedding(let embedding): add(embedding)
      case .products(let products): add(products)
      case .matrix(let step): add(step)
      case .attention(let attention): add(attention)
      }
    }
    if !moves.isEmpty { isCovered = false }
    // What a phase reads besides vectors is brought nearer while the grid waits for it; and a phase
    // knows whether the next waits.
    for i in phases.indices.dropLast() { phases[i].next_waits = phases[i + 1].waits }
  }

  private mutating func append(_ phase: gyre_token_phase) {
    var phase = phase
    phase.last_entry = Int32(entries.count)
    phases.append(phase)
  }

  private func padded(_ size: Int) -> Int { (size + 7) / 8 * 8 }

  /// Columns of a row that come together: all, or so few that stages are well filled with rows.
  private func slice(_ columns: Int) -> Int {
    let unit = isFloat ? 4 : 8
    let units = (columns + unit - 1) / unit
    var (best, filled) = (0, 0.0)
    for parts in 1...max(units, 1) {
      let own = (units + parts - 1) / parts
      // A lane takes one unit of a slice.
      if own > 32 * Int(GYRE_TOKEN_THREADS) / 32 { continue }
      let rows = Int(GYRE_TOKEN_STAGE) / (16 * own)
      let share = Double(rows * own * 16) / Double(GYRE_TOKEN_STAGE)
      if share > filled + 0.1 { (best, filled) = (own * unit, share) }
      if filled >= 0.8 || own < 64 { break }
    }
    return best
  }

  // MARK: - Phases

  private mutating func add(_ e: TokenProgram.Embedding) {
    guard !e.table.dtype.isQuantized else { return isCovered = false }
    var p = gyre_token_phase()
    p.kind = Int32(GYRE_TOKEN_EMBEDDING_PHASE)
    p.embedding.table = places.array(e.table)
    p.embedding.factor = Float(e.factor)
    p.embedding.size = Int32(e.table.shape[1])
    p.embedding.y = places.vector(e.output)
    if let norm = e.norm {
      p.embedding.norm = norm.centers ? 2 : 1
      p.embedding.weight = norm.weight.map(places.array) ?? gyre_array()
      p.embedding.bias = norm.bias.map(places.array) ?? gyre_array()
      p.embedding.epsilon = Float(norm.epsilon)
    }
    operandFloats = max(operandFloats, padded(e.table.shape[1]))
    append(p)
  }

  private mutating func add(_ products: TokenProgram.Products) {
    var p = gyre_token_phase()
    p.kind = Int32(GYRE_TOKEN_PRODUCT_PHASE)
    p.waits = 1
    var ranges: [Tensor] = []
    var operands = products.operands.map { operand($0, &ranges) }
    if let shift = products.shift {
      guard operands.count == 1, operands[0].kind == Int32(GYRE_TOKEN_NORM) else {
        return isCovered = false
      }
      let first = operands[0]
      operands = shift.mixes.enumerated().map { i, mix in
        var o = i == 0 ? first : gyre_token_operand()
        if i > 0 {
          o.kind = Int32(GYRE_TOKEN_SHIFT)
          (o.size, o.group, o.period) = (first.size, first.size, first.size)
        }
        o.mix = places.array(mix)
        return o
      }
      let width = Int(first.size)
      operands[0].last = gyre_token_vector(data: places.array(shift.last).data, stride: width)
      operands[0].keep = places.kept
      ranges += shift.mixes + [shift.last]
    }
    for window in products.windows {
      let (taps, channels) = (window.window.shape[1], window.window.shape[2])
      moves.append(
        gyre_token_move(
          from: places.vector(window.from),
          to: .init(data: places.array(window.window).data, stride: taps * channels),
          count: Int32(channels), taps: Int32(taps)))
    }
    guard operands.count <= Int(GYRE_TOKEN_OPERANDS),
      products.products.count <= Int(GYRE_TOKEN_PRODUCTS), moves.count <= Int(GYRE_TOKEN_MOVES)
    else { return isCovered = false }
    p.operands = Int32(operands.count)
    for (i, o) in operands.enumerated() { put(o, at: i, into: &p.operand) }
    p.moves = Int32(moves.count)
    for (i, move) in moves.enumerated() { put(move, at: i, into: &p.move) }
    moves = []
    if let shift = products.shift {
      let width = operands[0].size
      moves = [
        gyre_token_move(
          from: places.kept,
          to: .init(data: places.array(shift.last).data, stride: Int(width)), count: width, taps: 0)
      ]
    }
    operandFloats = max(
      operandFloats, operands.reduce(0) { $0 + padded(Int($1.size)) } * rows)
    ranges += products.products.compactMap(\.bias)
    bring(ranges, &p)
    multiply(products.products, operands, p)
  }

  /// The phase with its products, cut into several where a block could not keep all its sums.
  private mutating func multiply(
    _ products: [TokenProgram.Product], _ operands: [gyre_token_operand], _ phase: gyre_token_phase
  ) {
    let row = (Int(GYRE_TOKEN_THREADS) / 32 * rows) + 4
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
      if start > 0 { (part.waits, part.moves, part.ranges) = (0, 0, 0) }
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
      q.y = places.vector(product.output.advanced(by: part.rows.lowerBound))
      if let bias = product.bias {
        q.bias = places.array(bias)
        q.bias.data += UInt64(part.rows.lowerBound * bias.dtype.byteCount)
      }
      (q.alpha, q.beta, q.function) = (1, 1, -1)
      switch product.finish {
      case .set(let f):
        q.rule = Int32(GYRE_TOKEN_SET)
        q.function = function(f)
      case .add(let alpha, let beta):
        q.rule = Int32(GYRE_TOKEN_ADD)
        (q.alpha, q.beta) = (Float(alpha), Float(beta))
      case .gated(let f):
        q.rule = Int32(GYRE_TOKEN_GATED)
        q.function = function(f)
      case .minGRU(let state):
        q.rule = Int32(GYRE_TOKEN_MIN_GRU)
        q.state = gyre_token_vector(data: places.array(state).data, stride: product.rows)
      case .capped(let cap):
        q.rule = Int32(GYRE_TOKEN_CAP)
        q.alpha = Float(cap)
      }
      (q.rows, q.first) = (Int32(part.rows.count), Int32(first))
      (q.columns, q.slice) = (Int32(product.columns), Int32(slice(product.columns)))
      q.operand = Int32(product.operand)
      q.paired = product.isPaired ? 1 : 0
      put(q, at: i, into: &p.product)
      let rowBytes = product.columns * (isFloat ? 4 : 2)
      entries.append(
        gyre_token_entry(
          weight: places.weight(product.weight) + UInt64(part.rows.lowerBound * rowBytes),
          rows: q.rows, first: q.first, total: Int32(total), columns: q.columns, slice: q.slice,
          paired: q.paired))
      first += part.rows.count
    }
    append(p)
  }

  private mutating func operand(
    _ operand: TokenProgram.Operand, _ ranges: inout [Tensor]
  ) -> gyre_token_operand {
    var o = gyre_token_operand()
    o.x = places.vector(operand.vector)
    let size = Int32(operand.size)
    (o.size, o.group, o.period, o.function) = (size, size, size, -1)
    if let gate = operand.gate {
      o.gate = 1
      o.z = places.vector(gate.vector)
      o.function = function(gate.activation)
    }
    if let attention = operand.attention {
      o.kind = Int32(GYRE_TOKEN_ATTENTION)
      (o.x, o.score) = places.parts
      o.splits = Int32(Self.splits(attention, batch: batch, blocks: blocks))
      o.value_size = Int32(attention.size)
    }
    guard let norm = operand.norm else { return o }
    o.kind = Int32(GYRE_TOKEN_NORM)
    o.centers = norm.centers ? 1 : 0
    o.group = norm.group.map(Int32.init) ?? size
    o.epsilon = Float(norm.epsilon)
    if let weight = norm.weight {
      o.weight = places.array(weight)
      o.period = Int32(weight.elementCount)
    }
    if let bias = norm.bias {
      o.bias = places.array(bias)
      o.period = Int32(bias.elementCount)
    }
    if let weight = norm.weight, let bias = norm.bias, weight.elementCount != bias.elementCount {
      isCovered = false
    }
    if let gate = norm.gate {
      o.gate = gate.place == .before ? 2 : 1
      o.z = places.vector(gate.vector)
      o.function = function(gate.activation)
    }
    if let added = norm.added {
      o.v = places.vector(added.values)
      o.score = places.vector(added.scores)
    }
    ranges += [norm.weight, norm.bias].compactMap { $0 }
    return o
  }

  private mutating func add(_ step: TokenProgram.MatrixStep) {
    var p = gyre_token_phase()
    p.kind = Int32(GYRE_TOKEN_MATRIX_PHASE)
    p.waits = 1
    var m = gyre_token_matrix()
    guard step.keySize <= Int(GYRE_TOKEN_KEYS), moves.isEmpty,
      (step.convolution?.weight.shape[1] ?? 0) <= Int(GYRE_TOKEN_TAPS)
    else { return isCovered = false }
    (m.heads, m.key_heads) = (Int32(step.heads), Int32(step.keyHeads))
    (m.keys, m.values) = (Int32(step.keySize), Int32(step.valueSize))
    (m.q, m.k, m.v) = (Int32(step.q), Int32(step.k), Int32(step.v))
    m.x = places.vector(step.streams)
    m.function = function(step.activation)
    (m.scale, m.epsilon) = (Float(step.scale), Float(step.epsilon))
    m.state = places.array(step.state).data
    m.y = places.vector(step.output)
    (m.step_low, m.step_high) = (0, .infinity)
    var ranges = [step.state]
    if let convolution = step.convolution {
      m.taps = Int32(convolution.weight.shape[1])
      m.channels = Int32(convolution.weight.shape[0])
      m.taps_weight = places.array(convolution.weight)
      m.taps_bias = convolution.bias.map(places.array) ?? gyre_array()
      m.window = places.array(convolution.window).data
      ranges += [convolution.weight, convolution.window] + (convolution.bias.map { [$0] } ?? [])
    }
    if let gate = step.gate { m.gate = places.vector(gate) }
    for (tensor, path) in [
      (step.logRate, \gyre_token_matrix.log_rate), (step.stepBias, \.step_bias),
      (step.skip, \.skip),
    ] {
      guard let tensor else { continue }
      m[keyPath: path] = places.array(tensor)
      ranges.append(tensor)
    }
    if let skip = step.skip { m.skip_per_channel = skip.elementCount > step.heads ? 1 : 0 }
    switch step.rule {
    case .mamba2(let low, let high):
      m.rule = Int32(GYRE_TOKEN_LINEAR)
      m.step_low = Float(low)
      if let high { m.step_high = Float(high) }
    case .delta(let write, let isDoubled):
      m.rule = Int32(GYRE_TOKEN_DELTA)
      m.write = places.vector(write)
      m.writes_twice = isDoubled ? 1 : 0
    case .rwkv7(let r):
      m.rule = Int32(GYRE_TOKEN_RWKV7)
      (m.decay, m.rate) = (places.vector(r.decay), places.vector(r.rate))
      (m.mixed, m.first) = (places.vector(r.mixed), places.vector(r.first))
      (m.value, m.score) = (places.vector(r.value), places.vector(r.score))
      (m.key_scale, m.key_rate) = (places.array(r.keyScale), places.array(r.keyRate))
      m.bonus = places.array(r.bonus)
      m.is_first = r.isFirst ? 1 : 0
      ranges += [r.keyScale, r.keyRate, r.bonus]
    }
    p.matrix = m
    bring(ranges, &p)
    append(p)
  }

  private mutating func add(_ a: TokenProgram.Attention) {
    var p = gyre_token_phase()
    p.kind = Int32(GYRE_TOKEN_ATTENTION_PHASE)
    p.waits = 1
    guard a.size <= Int(GYRE_TOKEN_KEYS), a.size % 8 == 0, moves.isEmpty else {
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
    t.x = places.vector(a.streams)
    t.query_norm = a.queryNorm.map(places.array) ?? gyre_array()
    t.key_norm = a.keyNorm.map(places.array) ?? gyre_array()
    let caches = places.caches(a)
    (t.keys, t.values, t.capacity) = (caches.keys, caches.values, Int32(caches.capacity))
    (t.y, t.sums) = places.parts
    p.attention = t
    bring([a.queryNorm, a.keyNorm].compactMap { $0 }, &p)
    append(p)
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

  private func bring(_ tensors: [Tensor], _ p: inout gyre_token_phase) {
    for tensor in tensors where tensor.byteCount > 0 && p.ranges < Int32(GYRE_TOKEN_RANGES) {
      put(
        gyre_token_range(data: places.array(tensor).data, bytes: tensor.byteCount),
        at: Int(p.ranges), into: &p.range)
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
