// Quantising float32 values into GGUF's blocks.

extension DType {
  /// Values as bytes of a plain float type or in blocks: scales by each block's range, values rounded
  /// to the nearest level of the scales as stored.
  ///
  /// - Precondition: whole blocks; float32, float16, bfloat16 or a quantised type.
  package func packBlocks(_ values: UnsafeBufferPointer<Float>) -> [UInt8] {
    var out: [UInt8] = []
    out.reserveCapacity(values.count / valuesPerBlock * byteCount)
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

  func append(_ type: DType, to out: inout [UInt8]) {
    switch type {
    case .float32: append(x[0].bitPattern, to: &out)
    case .float16: append(Half.bits(x[0]), to: &out)
    case .bfloat16: append(BFloat16.bits(x[0]), to: &out)
    case .q8_0: q8_0(&out)
    case .q4_0: q4_0(&out)
    case .q4_1: q4_1(&out)
    case .q5_0: q5_0(&out)
    case .q5_1: q5_1(&out)
    case .q4_K: runs(levels: 15, &out)
    case .q5_K: runs(levels: 31, &out)
    case .q6_K: q6_K(&out)
    default: preconditionFailure("\(type.rawValue) has no blocks")
    }
  }

  private func append<T: FixedWidthInteger>(_ value: T, to out: inout [UInt8]) {
    withUnsafeBytes(of: value.littleEndian) { out.append(contentsOf: $0) }
  }

  /// A number as float16, and what that is.
  private func half(_ value: Float) -> (bits: UInt16, value: Float) {
    let bits = Half.bits(value)
    return (bits, Half.float(bits))
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

  private func q4_0(_ out: inout [UInt8]) { append(symmetric(half: 8, &out), to: &out) }

  private func q4_1(_ out: inout [UInt8]) { append(offset(levels: 15, &out), to: &out) }

  private func q5_0(_ out: inout [UInt8]) {
    let q = symmetric(half: 16, &out)
    appendFifthBits(q, to: &out)
    append(q, to: &out)
  }

  private func q5_1(_ out: inout [UInt8]) {
    let q = offset(levels: 31, &out)
    appendFifthBits(q, to: &out)
    append(q, to: &out)
  }

  /// x = d (q − half): the value of largest magnitude is a level. Writes d.
  private func symmetric(half levels: Int, _ out: inout [UInt8]) -> [UInt8] {
    let d = half(extreme(0..<32) / -Float(levels))
    append(d.bits, to: &out)
    return x.map { UInt8(level($0 * inverse(d.value), -levels, levels - 1) + levels) }
  }

  /// x = d q + m: levels from the least to the largest value. Writes d and m.
  private func offset(levels: Int, _ out: inout [UInt8]) -> [UInt8] {
    let (low, high) = (x.min() ?? 0, x.max() ?? 0)
    let m = half(low)
    let d = half((high - m.value) / Float(levels))
    append(d.bits, to: &out)
    append(m.bits, to: &out)
    return x.map { UInt8(level(($0 - m.value) * inverse(d.value), 0, levels)) }
  }

  /// Low nibbles are values 0 to 15, high ones 16 to 31.
  private func append(_ q: [UInt8], to out: inout [UInt8]) {
    for i in 0..<16 { out.append(q[i] & 15 | q[i + 16] << 4) }
  }

  private func appendFifthBits(_ q: [UInt8], to out: inout [UInt8]) {
    append((0..<32).reduce(UInt32(0)) { $0 | UInt32(q[$1] >> 4) << UInt32($1) }, to: &out)
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
