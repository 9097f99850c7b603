/// Counter-based random numbers: Philox 4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw,
/// "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Number i of stream s under seed k is a
/// pure function of (k, s, i), so every device and every order of evaluation gives the same.
public struct CounterGenerator: Sendable, Hashable {
  public var seed: UInt64
  public var stream: UInt64

  public init(seed: UInt64, stream: UInt64 = 0) {
    self.seed = seed
    self.stream = stream
  }

  /// A generator for a named purpose under the same seed.
  public init(seed: UInt64, name: String) {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325  // FNV-1a
    for byte in name.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    self.init(seed: seed, stream: hash)
  }

  /// Four 32-bit words for a counter value.
  public func words(_ counter: UInt64) -> SIMD4<UInt32> {
    var c = SIMD4<UInt32>(
      UInt32(truncatingIfNeeded: counter), UInt32(truncatingIfNeeded: counter >> 32),
      UInt32(truncatingIfNeeded: stream), UInt32(truncatingIfNeeded: stream >> 32))
    var k0 = UInt32(truncatingIfNeeded: seed)
    var k1 = UInt32(truncatingIfNeeded: seed >> 32)
    for _ in 0..<10 {
      let p0 = UInt64(0xD251_1F53) * UInt64(c[0])
      let p1 = UInt64(0xCD9E_8D57) * UInt64(c[2])
      c = SIMD4(
        UInt32(truncatingIfNeeded: p1 >> 32) ^ c[1] ^ k0, UInt32(truncatingIfNeeded: p1),
        UInt32(truncatingIfNeeded: p0 >> 32) ^ c[3] ^ k1, UInt32(truncatingIfNeeded: p0))
      k0 &+= 0x9E37_79B9
      k1 &+= 0xBB67_AE85
    }
    return c
  }

  /// Uniform 32-bit word number `index`.
  public func word(_ index: UInt64) -> UInt32 { words(index >> 2)[Int(index & 3)] }

  /// Uniform in (0, 1) with 24 bits, never 0 nor 1.
  public func uniform(_ index: UInt64) -> Float { CounterGenerator.unit(word(index)) }

  static func unit(_ word: UInt32) -> Float { (Float(word >> 9) + 0.5) * 0x1p-23 }

  /// `count` uniforms in (low, high).
  public func uniforms(_ count: Int, _ low: Float = 0, _ high: Float = 1) -> [Float] {
    fill(count) { words, out in
      for j in 0..<4 { out[j] = low + (high - low) * CounterGenerator.unit(words[j]) }
    }
  }

  /// `count` standard normals by Box–Muller, two from each pair of words.
  public func normals(_ count: Int) -> [Float] {
    fill(count) { words, out in
      for j in [0, 2] {
        let radius = (-2 * Functions.log(Double(CounterGenerator.unit(words[j])))).squareRoot()
        let angle = 2 * Double.pi * Double(CounterGenerator.unit(words[j + 1]))
        out[j] = Float(radius * Functions.cos(angle))
        out[j + 1] = Float(radius * Functions.cos(angle - Double.pi / 2))
      }
    }
  }

  /// Uniform integer in [0, bound) for `index`, without modulo bias beyond 2⁻³².
  public func integer(_ index: UInt64, below bound: Int) -> Int {
    Int((UInt64(word(index)) &* UInt64(bound)) >> 32)
  }

  private func fill(
    _ count: Int, _ body: (SIMD4<UInt32>, inout SIMD4<Float>) -> Void
  ) -> [Float] {
    [Float](unsafeUninitializedCapacity: count) { memory, n in
      var i = 0
      var counter: UInt64 = 0
      var block = SIMD4<Float>.zero
      while i < count {
        body(words(counter), &block)
        for j in 0..<min(4, count - i) { memory[i + j] = block[j] }
        i += 4
        counter += 1
      }
      n = count
    }
  }
}
