// Blocks of quantised values as GGUF files hold them.

extension DType {
  /// Unpacks blocks of a quantised type to float32; other types are left to `ElementCoding`.
  ///
  /// - Precondition: `source` holds `count` values, a multiple of a block.
  package func unpackBlocks(
    _ source: UnsafeRawPointer, count: Int, to destination: UnsafeMutablePointer<Float>
  ) {
    let blocks = count / valuesPerBlock
    for b in 0..<blocks {
      let block = BlockReader(source + b * byteCount)
      let y = destination + b * valuesPerBlock
      switch self {
      case .q4_0: block.q4_0(y)
      case .q4_1: block.q4_1(y)
      case .q5_0: block.q5_0(y)
      case .q5_1: block.q5_1(y)
      case .q8_0: block.q8_0(y)
      case .q4_K: block.q4_K(y)
      case .q5_K: block.q5_K(y)
      case .q6_K: block.q6_K(y)
      default: return
      }
    }
  }
}

/// One block; byte layouts as GGUF files hold them.
private struct BlockReader {
  private let p: UnsafeRawPointer
  init(_ p: UnsafeRawPointer) { self.p = p }

  private func half(_ offset: Int) -> Float {
    Half.float(p.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
  }
  private func byte(_ offset: Int) -> UInt8 { p.load(fromByteOffset: offset, as: UInt8.self) }

  /// Low nibbles are values 0 to 15, high ones 16 to 31.
  func q4_0(_ y: UnsafeMutablePointer<Float>) {
    let d = half(0)
    for i in 0..<16 {
      let q = byte(2 + i)
      y[i] = Float(Int(q & 15) - 8) * d
      y[i + 16] = Float(Int(q >> 4) - 8) * d
    }
  }

  func q4_1(_ y: UnsafeMutablePointer<Float>) {
    let (d, m) = (half(0), half(2))
    for i in 0..<16 {
      let q = byte(4 + i)
      y[i] = Float(q & 15) * d + m
      y[i + 16] = Float(q >> 4) * d + m
    }
  }

  /// The fifth bits of all values are one word.
  private func fifth(_ offset: Int, _ i: Int) -> UInt8 {
    UInt8(p.loadUnaligned(fromByteOffset: offset, as: UInt32.self) >> UInt32(i) & 1) << 4
  }

  func q5_0(_ y: UnsafeMutablePointer<Float>) {
    let d = half(0)
    for i in 0..<16 {
      let q = byte(6 + i)
      y[i] = Float(Int(q & 15 | fifth(2, i)) - 16) * d
      y[i + 16] = Float(Int(q >> 4 | fifth(2, i + 16)) - 16) * d
    }
  }

  func q5_1(_ y: UnsafeMutablePointer<Float>) {
    let (d, m) = (half(0), half(2))
    for i in 0..<16 {
      let q = byte(8 + i)
      y[i] = Float(q & 15 | fifth(4, i)) * d + m
      y[i + 16] = Float(q >> 4 | fifth(4, i + 16)) * d + m
    }
  }

  func q8_0(_ y: UnsafeMutablePointer<Float>) {
    let d = half(0)
    for i in 0..<32 { y[i] = Float(Int8(bitPattern: byte(2 + i))) * d }
  }

  /// Scale and minimum of the j-th run of 32 values: six bits each, packed in twelve bytes.
  private func scales(_ j: Int) -> (scale: Float, minimum: Float) {
    let q = 4
    if j < 4 { return (Float(byte(q + j) & 63), Float(byte(q + j + 4) & 63)) }
    let high = byte(q + j + 4)
    return (
      Float(high & 15 | (byte(q + j - 4) >> 6) << 4), Float(high >> 4 | (byte(q + j) >> 6) << 4)
    )
  }

  func q4_K(_ y: UnsafeMutablePointer<Float>) { runs(y, values: 16, high: nil) }

  func q5_K(_ y: UnsafeMutablePointer<Float>) { runs(y, values: 48, high: 16) }

  /// Eight runs of 32; nibbles of two runs share bytes, fifth bits of all runs share 32 bytes.
  private func runs(_ y: UnsafeMutablePointer<Float>, values: Int, high: Int?) {
    let (d, minimum) = (half(0), half(2))
    for run in 0..<8 {
      let s = scales(run)
      let (scale, offset) = (d * s.scale, minimum * s.minimum)
      for i in 0..<32 {
        let packed = byte(values + run / 2 * 32 + i)
        var q = run % 2 == 0 ? packed & 15 : packed >> 4
        if let high { q |= (byte(high + i) >> UInt8(run) & 1) << 4 }
        y[run * 32 + i] = scale * Float(q) - offset
      }
    }
  }

  /// Four low bits in 128 bytes, two high bits in 64, sixteen signed scales, then d.
  func q6_K(_ y: UnsafeMutablePointer<Float>) {
    let d = half(208)
    for part in 0..<8 {
      let (half, quarter) = (part / 4, part % 4)
      for i in 0..<32 {
        let low = byte(half * 64 + quarter % 2 * 32 + i)
        let nibble = quarter < 2 ? low & 15 : low >> 4
        let top = byte(128 + half * 32 + i) >> UInt8(2 * quarter) & 3
        let scale = Int8(bitPattern: byte(192 + half * 8 + quarter * 2 + i / 16))
        y[part * 32 + i] = d * Float(scale) * Float(Int(nibble | top << 4) - 32)
      }
    }
  }
}
