// Metadata of a GGUF file.

/// A value of GGUF metadata; integers of every width are one case.
public enum GGUFValue: Sendable, Hashable {
  case integer(Int64)
  /// Only values that no `Int64` holds.
  case unsigned(UInt64)
  case float(Double)
  case bool(Bool)
  case string(String)
  case array([GGUFValue])

  public var int: Int? {
    if case .integer(let v) = self { return Int(exactly: v) }
    return nil
  }
  public var double: Double? {
    switch self {
    case .float(let v): v
    case .integer(let v): Double(v)
    default: nil
    }
  }
  public var bool: Bool? {
    if case .bool(let v) = self { return v }
    return nil
  }
  public var string: String? {
    if case .string(let v) = self { return v }
    return nil
  }
  public var array: [GGUFValue]? {
    if case .array(let v) = self { return v }
    return nil
  }
}

/// Type numbers of the format's values.
enum GGUFValueType: UInt32 {
  case uint8, int8, uint16, int16, uint32, int32, float32, bool, string, array, uint64, int64
  case float64

  /// Bytes of the smallest value of the type.
  var minimumByteCount: Int {
    switch self {
    case .uint8, .int8, .bool: 1
    case .uint16, .int16: 2
    case .uint32, .int32, .float32: 4
    case .string, .uint64, .int64, .float64: 8
    case .array: 12
    }
  }
}
