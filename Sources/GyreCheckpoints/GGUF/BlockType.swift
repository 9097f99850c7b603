// Element types of GGUF files: plain ones and blocks of quantised values.

import GyreTensors

/// An element type of the GGUF format. Quantised types store blocks of 32 or 256 values with their
/// scales, x = d·q + m.
public enum BlockType: UInt32, Sendable, Hashable, CaseIterable {
  case float32 = 0
  case float16 = 1
  case q4_0 = 2
  case q4_1 = 3
  case q5_0 = 6
  case q5_1 = 7
  case q8_0 = 8
  case q4_K = 12
  case q5_K = 13
  case q6_K = 14
  case int8 = 24
  case int16 = 25
  case int32 = 26
  case int64 = 27
  case float64 = 28
  case bfloat16 = 30

  /// The name in reports and in ``TensorInfo/typeName``: safetensors' where it has one.
  public var name: String {
    switch self {
    case .float32: "F32"
    case .float16: "F16"
    case .bfloat16: "BF16"
    case .float64: "F64"
    case .int8: "I8"
    case .int16: "I16"
    case .int32: "I32"
    case .int64: "I64"
    case .q4_0: "Q4_0"
    case .q4_1: "Q4_1"
    case .q5_0: "Q5_0"
    case .q5_1: "Q5_1"
    case .q8_0: "Q8_0"
    case .q4_K: "Q4_K"
    case .q5_K: "Q5_K"
    case .q6_K: "Q6_K"
    }
  }

  public init?(name: String) {
    guard let found = Self.allCases.first(where: { $0.name == name }) else { return nil }
    self = found
  }

  /// Values of a block; rows are whole blocks.
  public var valuesPerBlock: Int {
    switch self {
    case .q4_0, .q4_1, .q5_0, .q5_1, .q8_0: 32
    case .q4_K, .q5_K, .q6_K: 256
    default: 1
    }
  }

  /// Bytes of a block.
  public var bytesPerBlock: Int {
    switch self {
    case .q4_0: 18
    case .q4_1: 20
    case .q5_0: 22
    case .q5_1: 24
    case .q8_0: 34
    case .q4_K: 144
    case .q5_K: 176
    case .q6_K: 210
    case .int8: 1
    case .float16, .bfloat16, .int16: 2
    case .float32, .int32: 4
    case .float64, .int64: 8
    }
  }

  public var isQuantized: Bool { valuesPerBlock > 1 }

  /// Bytes of a tensor whose rows (last axis) are whole blocks; nil where they are not or where the
  /// count overflows.
  public func byteCount(of shape: Shape) -> Int? {
    guard let count = shape.checkedElementCount, shape.last % valuesPerBlock == 0 else {
      return nil
    }
    let (bytes, overflows) = (count / valuesPerBlock).multipliedReportingOverflow(by: bytesPerBlock)
    return overflows ? nil : bytes
  }
}

extension BlockType {
  /// Unpacks blocks of a quantised type to float32.
  ///
  /// - Precondition: the type is quantised; `source` holds `count` values, a multiple of a block.
  func unpack(
    _ source: UnsafeRawPointer, count: Int, to destination: UnsafeMutablePointer<Float>
  ) {
    let blocks = count / valuesPerBlock
    for b in 0..<blocks {
      let block = BlockReader(source + b * bytesPerBlock)
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
      default: preconditionFailure("\(name) has no blocks")
      }
    }
  }
}

/// One block; byte layouts as GGUF files hold them.
private struct BlockReader {
  private let p: UnsafeRawPointer
  init(_ p: UnsafeRawPointer) { self.p = p }

  private func half(_ offset: Int) -> Float {
    FloatConversion.float32(half: p.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
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
