import CGyreKernels
import GyreRecurrence
import GyreTensors

/// A token program on a processor: a team of threads walks the phases of the whole model, waiting for
/// each other between phases, in one call a token (`ck_token`).
///
/// Weights are multiplied as they are stored, in any precision: a row of activations is not what
/// bfloat16 products would speed up.
final class CPUTokenRunner: TokenRunner {
  private let device: CPUDevice
  private let phases: CPUTokenPhases
  private let vocabulary: Int
  private var position: Int
  private var caches: [Cache] = []
  private var parts: (any DeviceBuffer)?

  private struct Cache {
    let attention: UnsafeMutablePointer<ck_token_attention>
    var keys, values: any DeviceBuffer
  }

  let launches = 1

  /// Nil where the kernels do not cover the program or memory is short; the device then keeps no error.
  init?(
    _ device: CPUDevice, _ program: TokenProgram, logits: TokenProgram.Vector, vocabulary: Int,
    position: Int
  ) {
    let made: CPUTokenPhases?
    do throws(DeviceError) {
      made = try CPUTokenPhases(program, logits: logits, on: device, position: position)
    } catch { return nil }
    guard let made else { return nil }
    self.device = device
    self.vocabulary = vocabulary
    self.position = position
    phases = made
    do throws(DeviceError) {
      for (source, attention) in made.attentions {
        let capacity = source.window ?? Self.capacity(for: position + 1)
        attention.pointee.capacity = capacity
        let bytes = 4 * program.batch * capacity * source.keyHeads * source.size
        let cache = Cache(
          attention: attention, keys: try device.allocate(byteCount: max(bytes, 4)),
          values: try device.allocate(byteCount: max(bytes, 4)))
        for (tensor, buffer) in [(source.keys, cache.keys), (source.values, cache.values)] {
          guard let tensor else { continue }
          guard let from = tensor.f32, let to = buffer.hostPointer else { return nil }
          fill(to.assumingMemoryBound(to: Float.self), from, tensor.shape[1], attention.pointee)
        }
        caches.append(cache)
      }
      try place()
    } catch { return nil }
  }

  /// Tokens of room for a sequence of `count`: twice as many, or a block of 65,536 more.
  private static func capacity(for count: Int) -> Int {
    var capacity = 256
    while capacity < count { capacity += min(capacity, 65_536) }
    return capacity
  }

  /// Cached tokens `[B, count, …]` where the kernel looks for them: in a ring at the remainders of
  /// their positions.
  private func fill(
    _ target: UnsafeMutablePointer<Float>, _ source: UnsafeMutablePointer<Float>, _ count: Int,
    _ a: ck_token_attention
  ) {
    let width = a.key_heads * a.size
    for b in 0..<phases.batch {
      for i in max(0, count - a.capacity)..<count {
        let slot = a.window > 0 ? (position - count + i) % a.capacity : i
        (target + (b * a.capacity + slot) * width).update(
          from: source + (b * count + i) * width, count: width)
      }
    }
  }

  /// Tells the kernel where caches lie, and gives the parts of attentions room for all of them.
  private func place() throws(DeviceError) {
    var floats = 0
    for cache in caches {
      let a = cache.attention
      a.pointee.keys = cache.keys.hostPointer?.assumingMemoryBound(to: Float.self)
      a.pointee.values = cache.values.hostPointer?.assumingMemoryBound(to: Float.self)
      let pieces = (a.pointee.capacity + Int(CK_TOKEN_PIECE) - 1) / Int(CK_TOKEN_PIECE)
      floats = max(floats, pieces * a.pointee.heads * (a.pointee.size + 2))
    }
    guard floats > 0 else { return }
    parts = try device.allocate(byteCount: 4 * phases.batch * floats)
    for cache in caches {
      cache.attention.pointee.parts = parts?.hostPointer?.assumingMemoryBound(to: Float.self)
    }
  }

  /// Room for the next token in caches without a window.
  private func grow() throws(DeviceError) {
    var hasGrown = false
    for i in caches.indices {
      let a = caches[i].attention
      let old = a.pointee.capacity
      guard a.pointee.window == 0, old <= position else { continue }
      let capacity = Self.capacity(for: position + 1)
      let row = 4 * a.pointee.key_heads * a.pointee.size
      for path in [\Cache.keys, \Cache.values] {
        let target = try device.allocate(byteCount: phases.batch * capacity * row)
        for b in 0..<phases.batch {
          guard let to = target.hostPointer, let from = caches[i][keyPath: path].hostPointer
          else { continue }
          (to + b * capacity * row).copyMemory(from: from + b * old * row, byteCount: old * row)
        }
        caches[i][keyPath: path] = target
      }
      a.pointee.capacity = capacity
      hasGrown = true
    }
    if hasGrown { try place() }
  }

  func logits(after tokens: [Int32]) throws(DeviceError) -> [Float] {
    try device.synchronize()
    guard tokens.count == phases.batch,
      tokens.allSatisfy({ (0..<phases.tokens).contains(Int($0)) })
    else {
      throw .kernelFailed(
        kernel: "token program", device: device.id.name,
        reason: "\(phases.batch) tokens below \(phases.tokens) belong here, not \(tokens)")
    }
    try grow()
    tokens.withUnsafeBufferPointer { tokens in
      var a = phases.arguments
      a.position = position
      a.tokens = tokens.baseAddress
      a.threads = CPUDevice.threadCount
      a.unary = device.kernels.pointwise.unary
      device.kernels.token.step(&a)
    }
    position += 1
    return [Float](UnsafeBufferPointer(start: phases.logits, count: phases.batch * vocabulary))
  }
}

extension CPUDevice: TokenProgramDevice {
  public func makeRunner(
    _ program: TokenProgram, logits: TokenProgram.Vector, vocabulary: Int, position: Int,
    precision: ComputePrecision, draw: TokenDraw
  ) -> (any TokenRunner)? {
    CPUTokenRunner(
      self, program, logits: logits, vocabulary: vocabulary, position: position)
  }
}
