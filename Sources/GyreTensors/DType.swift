/// Element types of tensors and of checkpoint files.
public enum DType: String, Sendable, Hashable, Codable, CaseIterable {
  case float32, bfloat16, float16, int8, int32, uint8, float64, int64

  /// Bytes of one element.
  public var byteCount: Int {
    switch self {
    case .int8, .uint8: 1
    case .bfloat16, .float16: 2
    case .float32, .int32: 4
    case .float64, .int64: 8
    }
  }

  /// Whether values are floating point.
  public var isFloat: Bool {
    switch self {
    case .float32, .bfloat16, .float16, .float64: true
    case .int8, .int32, .uint8, .int64: false
    }
  }
}
