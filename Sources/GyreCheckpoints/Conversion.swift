// Conversion of stored elements to float32 and int32. Sources may be unaligned.

import GyreTensors

#if _endian(big)
  #error("safetensors is little-endian; loads here do not swap bytes")
#endif

enum FloatConversion {
  /// The number of elements, if the tensor has a float type.
  static func elementCount(_ info: TensorInfo) throws(CheckpointError) -> Int {
    switch info.storedType {
    case .float32: info.byteCount / 4
    case .float64: info.byteCount / 8
    case .float16, .bfloat16: info.byteCount / 2
    case nil where info.blockType?.isQuantized == true: info.shape.elementCount
    default:
      throw .unsupported(
        file: info.file, subject: "tensor '\(info.name)' as float32",
        reason: "it is \(info.typeName)")
    }
  }

  /// Converts `count` elements; types that `elementCount` refuses are left out.
  static func convert(
    _ source: UnsafeRawBufferPointer, of info: TensorInfo,
    to destination: UnsafeMutablePointer<Float>?,
    count: Int
  ) {
    guard let source = source.baseAddress, let destination, count > 0 else { return }
    switch info.storedType {
    case nil:
      if let type = info.blockType?.dtype, type.isQuantized {
        type.unpackBlocks(source, count: count, to: destination)
      }
    case .float32:
      UnsafeMutableRawPointer(destination).copyMemory(from: source, byteCount: 4 * count)
    case .bfloat16:
      for i in 0..<count {
        let bits = source.loadUnaligned(fromByteOffset: 2 &* i, as: UInt16.self)
        destination[i] = Float(bitPattern: UInt32(bits) &<< 16)
      }
    case .float16:
      for i in 0..<count {
        destination[i] = float32(
          half: source.loadUnaligned(fromByteOffset: 2 &* i, as: UInt16.self))
      }
    case .float64:
      for i in 0..<count {
        destination[i] = Float(source.loadUnaligned(fromByteOffset: 8 &* i, as: Double.self))
      }
    default: break
    }
  }

  /// float16 → float32, exact, NaN payloads kept; only selects, so that loops over it become vector code
  /// (a conversion by `Float16` is a library call per element on baseline x86-64).
  @inline(__always)
  static func float32(half bits: UInt16) -> Float {
    let sign = UInt32(bits & 0x8000) &<< 16
    let shifted = UInt32(bits & 0x7fff) &<< 13
    let exponent = shifted & 0x0f80_0000
    let normal = shifted &+ 112 &<< 23
    let special = shifted | 0x7f80_0000
    // A subnormal gets an exponent by subtracting the implicit bit that it does not have.
    let magic = Float(bitPattern: 113 &<< 23)
    let subnormal = (Float(bitPattern: shifted &+ 113 &<< 23) - magic).bitPattern
    let magnitude = exponent == 0 ? subnormal : exponent == 0x0f80_0000 ? special : normal
    return Float(bitPattern: sign | magnitude)
  }
}

enum IntegerConversion {
  static func read<Stored: FixedWidthInteger & BitwiseCopyable>(
    _: Stored.Type, _ bytes: UnsafeRawBufferPointer, _ info: TensorInfo
  ) throws(CheckpointError) -> [Int32] {
    let size = MemoryLayout<Stored>.size
    let count = bytes.count / size
    var result: [Int32] = []
    result.reserveCapacity(count)
    for i in 0..<count {
      let value = bytes.loadUnaligned(fromByteOffset: i * size, as: Stored.self)
      guard let exact = Int32(exactly: value) else {
        throw .unsupported(
          file: info.file, subject: "tensor '\(info.name)' as int32",
          reason: "element \(i) is \(value)")
      }
      result.append(exact)
    }
    return result
  }
}
