// Quantising float32 values into GGUF's blocks.

extension BlockType {
  /// Whether ``pack(_:)`` makes this type.
  public var canPack: Bool {
    switch self {
    case .q4_0, .q4_1, .q8_0, .q4_K, .q5_K, .q6_K, .float32, .float16, .bfloat16: true
    default: false
    }
  }

  /// Values as bytes of this type: rounded to nearest for plain types; for blocks, scales by each
  /// block's range and values rounded to the nearest level of the scales as stored.
  ///
  /// - Precondition: `canPack`, and the values are whole blocks.
  public func pack(_ values: UnsafeBufferPointer<Float>) -> [UInt8] {
    var out: [UInt8] = []
    out.reserveCapacity(values.count / valuesPerBlock * bytesPerBlock)
    var start = 0
    while start < values.count {
      let block = UnsafeBufferPointer(rebasing: values[start..<start + valuesPerBlock])
      BlockPacker(x: block).append(self, to: &out)
      start += valuesPerBlock
    }
    return out
  }
}

private struct BlockPacker {
  let x: UnsafeBufferPointer<Float>

  func append(_ type: BlockType, to out: inout [UInt8]) {
    switch type {
    case .float32: append(x[0].bitPattern, to: &out)
    case .float16: append(HalfRounding.float16(x[0]), to: &out)
    case .bfloat16: append(HalfRounding.bfloat16(x[0]), to: &out)
    case .q8_0: q8_0(&out)
    case .q4_0: q4_0(&out)
    case .q4_1: q4_1(&out)
    case .q4_K: runs(levels: 15, &out)
    case .q5_K: runs(levels: 31, &out)
    case .q6_K: q6_K(&out)
    default: preconditionFailure("\(type.name) cannot be packed")
    }
  }

  private func append<T: FixedWidthInteger>(_ value: T, to out: inout [UInt8]) {
    withUnsafeBytes(of: value.littleEndian) { out.append(contentsOf: $0) }
  }

  /// A number as float16, and what that is.
  private func half(_ value: Float) -> (bits: UInt16, value: Float) {
    let bits = HalfRounding.float16(value)
    return (bits, FloatConversion.float32(half: bits))
  }

  private func level(_ value: Float, _ low: Int, _ high: Int) -> Int {
    guard value.isFinite else { return 0 }
    return Int(min(max(value.rounded(), Float(low)), Float(high)))
  }

  private func inverse(_ d: Float) -> Float { d == 0 ? 0 : 1 / d }

  /// The value of largest magnitude, with its sign.
  private func extreme(_ range: Range<Int>) -> Float {
    range.reduce(Float(0)) { abs(x[$1]) > abs($0) ? x[$1] : $0 }
  }

  private func q8_0(_ out: inout [UInt8]) {
    let d = half(abs(extreme(0..<32)) / 127)
    append(d.bits, to: &out)
    for v in x { out.append(UInt8(bitPattern: Int8(level(v * inverse(d.value), -127, 127)))) }
  }

  private func q4_0(_ out: inout [UInt8]) {
    let d = half(extreme(0..<32) / -8)
    append(d.bits, to: &out)
    let q = x.map { UInt8(level($0 * inverse(d.value), -8, 7) + 8) }
    for i in 0..<16 { out.append(q[i] | q[i + 16] << 4) }
  }

  private func q4_1(_ out: inout [UInt8]) {
    let (low, high) = (x.min() ?? 0, x.max() ?? 0)
    let m = half(low)
    let d = half((high - m.value) / 15)
    append(d.bits, to: &out)
    append(m.bits, to: &out)
    let q = x.map { UInt8(level(($0 - m.value) * inverse(d.value), 0, 15)) }
    for i in 0..<16 { out.append(q[i] | q[i + 16] << 4) }
  }

  /// Q4_K and Q5_K: x = d·s·q − dmin·m, s and m six bits for each run of 32.
  private func runs(levels: Float, _ out: inout [UInt8]) {
    let ranges = (0..<8).map { run in
      let part = x[run * 32..<run * 32 + 32]
      let low = min(part.min() ?? 0, 0)
      return (scale: ((part.max() ?? 0) - low) / levels, minimum: -low)
    }
    let d = half((ranges.map(\.scale).max() ?? 0) / 63)
    let least = half((ranges.map(\.minimum).max() ?? 0) / 63)
    let scales = ranges.map { UInt8(level($0.scale * inverse(d.value), 0, 63)) }
    let minima = ranges.map { UInt8(level($0.minimum * inverse(least.value), 0, 63)) }
    append(d.bits, to: &out)
    append(least.bits, to: &out)
    for j in 0..<4 { out.append(scales[j] | (scales[j + 4] >> 4) << 6) }
    for j in 0..<4 { out.append(minima[j] | (minima[j + 4] >> 4) << 6) }
    for j in 4..<8 { out.append(scales[j] & 15 | minima[j] << 4) }
    let q = (0..<256).map { i in
      let run = i / 32
      let (scale, offset) = (d.value * Float(scales[run]), least.value * Float(minima[run]))
      return UInt8(level((x[i] + offset) * inverse(scale), 0, Int(levels)))
    }
    if levels == 31 {
      for i in 0..<32 {
        out.append((0..<8).reduce(0) { $0 | (q[$1 * 32 + i] >> 4) << UInt8($1) })
      }
    }
    for pair in 0..<4 {
      for i in 0..<32 { out.append(q[pair * 64 + i] & 15 | (q[pair * 64 + 32 + i] & 15) << 4) }
    }
  }

  private func q6_K(_ out: inout [UInt8]) {
    let steps = (0..<16).map { extreme($0 * 16..<$0 * 16 + 16) / -32 }
    let largest = steps.reduce(Float(0)) { abs($1) > abs($0) ? $1 : $0 }
    let d = half(largest / -128)
    let scales = steps.map { level($0 * inverse(d.value), -128, 127) }
    let q = (0..<256).map { i in
      UInt8(level(x[i] * inverse(d.value * Float(scales[i / 16])), -32, 31) + 32)
    }
    for part in 0..<2 {
      for i in 0..<64 {
        out.append(q[part * 128 + i] & 15 | (q[part * 128 + 64 + i] & 15) << 4)
      }
    }
    for part in 0..<2 {
      for i in 0..<32 {
        out.append((0..<4).reduce(0) { $0 | (q[part * 128 + $1 * 32 + i] >> 4) << UInt8(2 * $1) })
      }
    }
    for s in scales { out.append(UInt8(bitPattern: Int8(s))) }
    append(d.bits, to: &out)
  }
}

/// float32 to the two half-width types, to nearest, ties to even.
enum HalfRounding {
  static func bfloat16(_ value: Float) -> UInt16 {
    let bits = value.bitPattern
    if value.isNaN { return UInt16(truncatingIfNeeded: bits >> 16) | 0x40 }
    return UInt16(truncatingIfNeeded: (bits + 0x7fff + (bits >> 16 & 1)) >> 16)
  }

  static func float16(_ value: Float) -> UInt16 {
    let bits = value.bitPattern
    let sign = UInt16(truncatingIfNeeded: bits >> 16) & 0x8000
    let magnitude = bits & 0x7fff_ffff
    if magnitude > 0x7f80_0000 { return sign | 0x7e00 }
    if magnitude >= 0x477f_f000 { return sign | 0x7c00 }
    if magnitude < 0x3880_0000 {
      // Adding 0.5 leaves the subnormal's bits, rounded, at the end of the significand.
      let sum = Float(bitPattern: magnitude) + 0.5
      return sign | UInt16(truncatingIfNeeded: sum.bitPattern &- Float(0.5).bitPattern)
    }
    let rounded = magnitude + 0xfff + (magnitude >> 13 & 1)
    return sign | UInt16(truncatingIfNeeded: (rounded - 0x3800_0000) >> 13)
  }
}
