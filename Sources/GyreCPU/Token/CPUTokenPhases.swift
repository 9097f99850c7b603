import CGyreKernels
import GyreRecurrence
import GyreTensors

/// The phases of a token program as the C kernels take them, and the memory that they point to.
final class CPUTokenPhases {
  let batch: Int
  /// Rows of the embedding.
  private(set) var tokens = 0
  private(set) var attentions:
    [(source: TokenProgram.Attention, kernel: UnsafeMutablePointer<ck_token_attention>)] = []
  private(set) var arguments = ck_token_step_args()
  private(set) var logits: UnsafeMutablePointer<Float>?

  /// Holds weights and states.
  private let program: TokenProgram
  private let device: CPUDevice
  private let position: Int
  private var buffers: [any DeviceBuffer] = []
  private var vectors: [ck_token_vector] = []
  private var rotations: [ck_token_rotation] = []
  private var rotationKeys: [RotationKey] = []
  private struct RotationKey: Equatable {
    let rotated: Int
    let base: Double
  }
  private var isCovered = true

  /// - Returns: nil where the kernels do not cover the program.
  init?(
    _ program: TokenProgram, logits: TokenProgram.Vector, on device: CPUDevice, position: Int
  ) throws(DeviceError) {
    self.program = program
    self.device = device
    self.position = position
    batch = program.batch
    for width in program.widths {
      vectors.append(ck_token_vector(data: try make(batch * width), stride: width))
    }
    var phases: [ck_token_phase] = []
    for phase in program.phases {
      switch phase {
      case .embedding(let e): phases.append(.init(kind: CK_TOKEN_EMBED, work: try add(e)))
      case .products(let p): phases.append(.init(kind: CK_TOKEN_MULTIPLY, work: try add(p)))
      case .matrix(let m): phases.append(.init(kind: CK_TOKEN_STEP, work: try add(m)))
      case .attention(let a): phases.append(.init(kind: CK_TOKEN_ATTEND, work: try add(a)))
      }
      guard isCovered else { return nil }
    }
    arguments.phases = UnsafePointer(try copy(phases))
    arguments.phase_count = phases.count
    arguments.rotations = UnsafePointer(try copy(rotations))
    arguments.rotation_count = rotations.count
    arguments.batch = batch
    self.logits = vector(logits).data
  }

  // MARK: - Memory

  /// Zeros that live as long as the phases.
  private func make<Element: BitwiseCopyable>(
    _ count: Int, of: Element.Type = Float.self
  ) throws(DeviceError) -> UnsafeMutablePointer<Element> {
    let bytes = max(count, 1) * MemoryLayout<Element>.stride
    let buffer = try device.allocate(byteCount: bytes)
    guard let pointer = buffer.hostPointer else {
      throw .outOfMemory(requested: bytes, inUse: device.memory.inUse, device: device.id.name)
    }
    pointer.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
    buffers.append(buffer)
    return pointer.assumingMemoryBound(to: Element.self)
  }

  private func copy<Element: BitwiseCopyable>(
    _ elements: [Element]
  ) throws(DeviceError) -> UnsafeMutablePointer<Element> {
    let pointer = try make(elements.count, of: Element.self)
    elements.withUnsafeBytes {
      if let from = $0.baseAddress {
        UnsafeMutableRawPointer(pointer).copyMemory(from: from, byteCount: $0.count)
      }
    }
    return pointer
  }

  private func vector(_ v: TokenProgram.Vector) -> ck_token_vector {
    var found = vectors[v.index]
    found.data += v.offset
    return found
  }

  /// A small tensor, which must be float32.
  private func array(_ tensor: Tensor?) -> UnsafeMutablePointer<Float>? {
    guard let tensor else { return nil }
    if tensor.f32 == nil { isCovered = false }
    return tensor.f32
  }
  private func read(_ tensor: Tensor?) -> UnsafePointer<Float>? {
    array(tensor).map { UnsafePointer($0) }
  }

  private func weight(_ tensor: Tensor) -> ck_token_weight {
    var w = ck_token_weight()
    w.data = UnsafeRawPointer(tensor.hostAddress)
    if let block = tensor.dtype.block {
      (w.is_blocks, w.block) = (true, block)
    } else if let type = tensor.dtype.gemm {
      w.type = type
    } else {
      isCovered = false
    }
    if w.data == nil { isCovered = false }
    return w
  }

  private func function(_ kind: Unary.Kind?) -> Int32 {
    kind.map { Int32($0.c.rawValue) } ?? Int32(CK_TOKEN_NO_FUNCTION)
  }

  private func needs(_ floats: Int, largest: Int) {
    arguments.operand_floats = max(arguments.operand_floats, floats)
    arguments.size = max(arguments.size, largest)
  }

  // MARK: - Phases

  private func add(_ e: TokenProgram.Embedding) throws(DeviceError) -> UnsafeRawPointer {
    var c = ck_token_embedding()
    c.table = weight(e.table)
    tokens = e.table.shape[0]
    c.size = e.table.shape[1]
    c.factor = Float(e.factor)
    c.y = vector(e.output)
    if let norm = e.norm {
      c.norm = norm.centers ? 2 : 1
      (c.weight, c.bias) = (read(norm.weight), read(norm.bias))
      c.epsilon = Float(norm.epsilon)
      for part in [norm.weight, norm.bias] where part.map({ $0.elementCount != c.size }) ?? false {
        isCovered = false
      }
    }
    needs(0, largest: c.size)
    return UnsafeRawPointer(try copy([c]))
  }

  private func add(_ p: TokenProgram.Products) throws(DeviceError) -> UnsafeRawPointer {
    var c = ck_token_products()
    let operands = try p.operands.map { o throws(DeviceError) in try operand(o) }
    var sizes = operands.map(\.size)
    if let shift = p.shift {
      guard operands.count == 1, shift.mixes.count <= Int(CK_TOKEN_OPERANDS),
        let last = array(shift.last), shift.last.elementCount == batch * operands[0].size,
        shift.mixes.allSatisfy({ $0.elementCount == operands[0].size })
      else { return unsupported() }
      let count = batch * operands[0].size
      c.last = try make(2 * count)
      // The kernel reads and writes the two in turn, by the parity of the position.
      (c.last + position % 2 * count).update(from: last, count: count)
      c.mixes = UnsafePointer(try copy(shift.mixes.map { read($0) }))
      c.mix_count = shift.mixes.count
      sizes = shift.mixes.map { _ in operands[0].size }
    }
    guard operands.count <= Int(CK_TOKEN_OPERANDS) else { return unsupported() }
    var products: [ck_token_product] = []
    for product in p.products {
      guard sizes.indices.contains(product.operand), product.columns == sizes[product.operand]
      else { return unsupported() }
      products.append(self.product(product))
    }
    let moves = p.windows.map { window, from in
      ck_token_move(
        from: vector(from), window: array(window), taps: window.shape[1] + 1,
        channels: window.shape[2])
    }
    c.operands = UnsafePointer(try copy(operands))
    c.products = UnsafePointer(try copy(products))
    c.moves = UnsafePointer(try copy(moves))
    (c.operand_count, c.product_count, c.move_count) =
      (operands.count, products.count, moves.count)
    needs(sizes.reduce(0, +), largest: sizes.max() ?? 0)
    return UnsafeRawPointer(try copy([c]))
  }

  /// Notes that the kernels do not cover the program, which then is not run.
  private func unsupported() -> UnsafeRawPointer {
    isCovered = false
    return UnsafeRawPointer(vectors[0].data)
  }

  private func product(_ p: TokenProgram.Product) -> ck_token_product {
    var c = ck_token_product()
    c.weight = weight(p.weight)
    c.bias = read(p.bias)
    (c.rows, c.columns, c.operand) = (p.rows, p.columns, Int32(p.operand))
    c.y = vector(p.output)
    (c.alpha, c.beta, c.function) = (1, 1, Int32(CK_TOKEN_NO_FUNCTION))
    switch p.finish {
    case .set(let f): (c.rule, c.function) = (CK_TOKEN_SET, function(f))
    case .add(let alpha, let beta):
      (c.rule, c.alpha, c.beta) = (CK_TOKEN_ADD, Float(alpha), Float(beta))
    case .gated(let f): (c.rule, c.function) = (CK_TOKEN_GATED, function(f))
    case .minGRU(let state):
      c.rule = CK_TOKEN_MIN_GRU
      c.state = ck_token_vector(data: array(state), stride: p.rows)
    case .capped(let cap): (c.rule, c.alpha) = (CK_TOKEN_CAP, Float(cap))
    }
    return c
  }

  private func operand(_ o: TokenProgram.Operand) throws(DeviceError) -> ck_token_operand {
    var c = ck_token_operand()
    (c.size, c.group, c.period) = (o.size, o.size, o.size)
    c.x = vector(o.vector)
    c.function = Int32(CK_TOKEN_NO_FUNCTION)
    if let attention = o.attention {
      guard let kernel = attentions.first(where: { $0.source.index == attention.index })?.kernel
      else {
        isCovered = false
        return c
      }
      c.attention = UnsafePointer(kernel)
    }
    func gate(_ vector: TokenProgram.Vector, _ f: Unary.Kind?, _ place: ck_token_gate) {
      (c.z, c.function, c.gate) = (self.vector(vector), function(f), place)
    }
    if let (vector, f) = o.gate { gate(vector, f, CK_TOKEN_GATE_AFTER) }
    guard let norm = o.norm else { return c }
    (c.norms, c.centers, c.epsilon) = (true, norm.centers, Float(norm.epsilon))
    c.group = norm.group ?? o.size
    (c.weight, c.bias) = (read(norm.weight), read(norm.bias))
    let periods = [norm.weight, norm.bias].compactMap { $0?.elementCount }
    c.period = periods.first ?? c.group
    // Weights are of one group or of all channels.
    if c.group < 1 || o.size % c.group != 0 || periods.contains(where: { $0 != c.period })
      || (c.period != o.size && c.period != c.group)
    {
      isCovered = false
    }
    if let (vector, f, place) = norm.gate {
      gate(vector, f, place == .before ? CK_TOKEN_GATE_BEFORE : CK_TOKEN_GATE_AFTER)
    }
    if let added = norm.added {
      (c.v, c.score) = (vector(added.values), vector(added.scores))
    }
    return c
  }

  private func add(_ m: TokenProgram.MatrixStep) throws(DeviceError) -> UnsafeRawPointer {
    var c = ck_token_matrix()
    (c.heads, c.key_heads, c.keys, c.values) = (m.heads, m.keyHeads, m.keySize, m.valueSize)
    (c.q, c.k, c.v) = (m.q, m.k, m.v)
    c.x = vector(m.streams)
    c.function = function(m.activation)
    (c.scale, c.epsilon) = (Float(m.scale), Float(m.epsilon))
    (c.step_low, c.step_high) = (0, .infinity)
    c.state = array(m.state)
    c.y = vector(m.output)
    if let convolution = m.convolution {
      guard let weight = array(convolution.weight) else { return unsupported() }
      (c.channels, c.taps) = (convolution.weight.shape[0], convolution.weight.shape[1])
      let turned: UnsafeMutablePointer<Float> = try make(c.taps * c.channels)
      for channel in 0..<c.channels {
        for tap in 0..<c.taps {
          turned[tap * c.channels + channel] = weight[channel * c.taps + tap]
        }
      }
      c.taps_weight = UnsafePointer(turned)
      c.taps_bias = read(convolution.bias)
      c.window = read(convolution.window)
    }
    if let gate = m.gate { c.gate = vector(gate) }
    (c.log_rate, c.step_bias, c.skip) = (read(m.logRate), read(m.stepBias), read(m.skip))
    c.skip_per_channel = (m.skip?.elementCount ?? 0) > m.heads
    switch m.rule {
    case .mamba2(let low, let high):
      c.rule = CK_TOKEN_MAMBA2
      c.step_low = Float(low)
      c.step_high = high.map { Float($0) } ?? .infinity
    case .delta(let write, let isDoubled):
      c.rule = CK_TOKEN_DELTA
      (c.write, c.writes_twice) = (vector(write), isDoubled)
    case .rwkv7(let r):
      c.rule = CK_TOKEN_RWKV7
      (c.decay, c.rate) = (vector(r.decay), vector(r.rate))
      (c.mixed, c.first) = (vector(r.mixed), vector(r.first))
      (c.value, c.score) = (vector(r.value), vector(r.score))
      (c.key_scale, c.key_rate, c.bonus) = (read(r.keyScale), read(r.keyRate), read(r.bonus))
      c.is_first = r.isFirst
    }
    if m.keyHeads < 1 || m.heads % m.keyHeads != 0 || m.state.elementCount == 0
      || (c.rule != CK_TOKEN_RWKV7 && (m.gate == nil || m.logRate == nil))
    {
      isCovered = false
    }
    return UnsafeRawPointer(try copy([c]))
  }

  private func add(_ a: TokenProgram.Attention) throws(DeviceError) -> UnsafeRawPointer {
    var c = ck_token_attention()
    (c.heads, c.key_heads, c.size) = (a.heads, a.keyHeads, a.size)
    c.window = a.window ?? 0
    (c.q, c.k, c.v) = (a.q, a.k, a.v)
    (c.scale, c.epsilon) = (Float(a.scale), Float(a.epsilon))
    (c.rotated, c.interleaved) = (a.rotated, a.interleaved)
    (c.query_norm, c.key_norm) = (read(a.queryNorm), read(a.keyNorm))
    c.x = vector(a.streams)
    if a.rotated > 0 {
      let rotation = try rotation(.init(rotated: a.rotated, base: a.rotaryBase))
      (c.cosines, c.sines) = (UnsafePointer(rotation.cosines), UnsafePointer(rotation.sines))
    }
    let pointer = try copy([c])
    attentions.append((a, pointer))
    return UnsafeRawPointer(pointer)
  }

  private func rotation(_ key: RotationKey) throws(DeviceError) -> ck_token_rotation {
    if let index = rotationKeys.firstIndex(of: key) { return rotations[index] }
    let pairs = key.rotated / 2
    let rates = (0..<pairs).map {
      Functions.exp(-2 * Double($0) / Double(key.rotated) * Functions.log(max(key.base, 1e-300)))
    }
    let made = ck_token_rotation(
      pairs: pairs, rates: UnsafePointer(try copy(rates)), cosines: try make(pairs),
      sines: try make(pairs))
    rotations.append(made)
    rotationKeys.append(key)
    return made
  }
}
