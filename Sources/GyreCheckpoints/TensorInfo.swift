// What a file says about a tensor: element type, shape, place. No values.

import GyreTensors

/// Element types of the safetensors format, in the order by which the public library sorts (ascending).
///
/// A superset of `DType`: types that Gyre does not compute with can still be inspected, copied and written.
public enum StoredType: String, Sendable, Hashable, CaseIterable {
  case bool = "BOOL"
  case float4 = "F4"
  case float6E2M3 = "F6_E2M3"
  case float6E3M2 = "F6_E3M2"
  case uint8 = "U8"
  case int8 = "I8"
  case float8E5M2 = "F8_E5M2"
  case float8E4M3 = "F8_E4M3"
  case float8E8M0 = "F8_E8M0"
  case float8E4M3FNUZ = "F8_E4M3FNUZ"
  case float8E5M2FNUZ = "F8_E5M2FNUZ"
  case int16 = "I16"
  case uint16 = "U16"
  case float16 = "F16"
  case bfloat16 = "BF16"
  case int32 = "I32"
  case uint32 = "U32"
  case float32 = "F32"
  case complex64 = "C64"
  case float64 = "F64"
  case int64 = "I64"
  case uint64 = "U64"

  /// The stored type of a computing type; the inverse of ``dtype``. Nil for quantised types, which
  /// only GGUF files hold.
  public init?(_ dtype: DType) {
    switch dtype {
    case .float32: self = .float32
    case .bfloat16: self = .bfloat16
    case .float16: self = .float16
    case .float64: self = .float64
    case .int8: self = .int8
    case .uint8: self = .uint8
    case .int32: self = .int32
    case .int64: self = .int64
    case .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q4_K, .q5_K, .q6_K: return nil
    }
  }

  /// The computing type, nil for types that only travel through.
  public var dtype: DType? {
    switch self {
    case .float32: .float32
    case .bfloat16: .bfloat16
    case .float16: .float16
    case .float64: .float64
    case .int8: .int8
    case .uint8: .uint8
    case .int32: .int32
    case .int64: .int64
    default: nil
    }
  }

  /// Bits of one element.
  public var bitCount: Int {
    switch self {
    case .float4: 4
    case .float6E2M3, .float6E3M2: 6
    case .bool, .uint8, .int8, .float8E5M2, .float8E4M3, .float8E8M0, .float8E4M3FNUZ,
      .float8E5M2FNUZ:
      8
    case .int16, .uint16, .float16, .bfloat16: 16
    case .int32, .uint32, .float32: 32
    case .complex64, .float64, .int64, .uint64: 64
    }
  }

  /// Bytes of a tensor of this shape; nil if that overflows or is not whole.
  ///
  /// Zero extents do not hide an overflow of the others: strides of such a shape would overflow too.
  func byteCount(of shape: Shape) -> Int? {
    var product = bitCount
    for extent in shape.dimensions where extent != 0 {
      let (next, overflow) = product.multipliedReportingOverflow(by: extent)
      guard !overflow else { return nil }
      product = next
    }
    if shape.dimensions.contains(0) { return 0 }
    return product % 8 == 0 ? product / 8 : nil
  }
}

/// Name, element type, shape and place of a stored tensor.
public struct TensorInfo: Sendable, Hashable {
  /// Name as in the file.
  public let name: String
  /// Element type as the file spells it, e.g. `"BF16"`; kept even if unknown.
  public let typeName: String
  /// Extents, outermost first; their product is known not to overflow.
  public let shape: Shape
  /// The file that holds the values, as errors name it.
  public let file: String
  /// Where the values are, in bytes from the start of the file.
  public let byteRange: Range<Int>

  /// Describes a tensor of a source other than a file.
  public init(name: String, typeName: String, shape: Shape, file: String, byteRange: Range<Int>) {
    self.name = name
    self.typeName = typeName
    self.shape = shape
    self.file = file
    self.byteRange = byteRange
  }

  /// Bytes of all values.
  public var byteCount: Int { byteRange.count }
  /// The element type, nil if this version does not know it.
  public var storedType: StoredType? { StoredType(rawValue: typeName) }
  /// The computing type, nil if Gyre has none for it.
  public var dtype: DType? { storedType?.dtype ?? blockType?.dtype }
  /// The type as GGUF files know it, quantised ones included; nil if they do not.
  public var blockType: BlockType? { BlockType(name: typeName) }
}
