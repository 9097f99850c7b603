/// Element types of tensors and of checkpoint files.
public enum DType: String, Sendable, Hashable, Codable, CaseIterable {
  case float32, bfloat16, float16, int8, int32, uint8, float64, int64
  /// Blocks of 32 values with a scale, of 256 for the K kinds: x = d·q + m, as GGUF files store
  /// weights. Only matrices of linear maps and tables of embeddings have these types, and only where
  /// the device `multiplies(stored:)` them; rows are whole blocks.
  case q4_0, q4_1, q5_0, q5_1, q8_0, q4_K, q5_K, q6_K

  /// Bytes of one element, of a whole block for the types that have blocks.
  public var byteCount: Int {
    switch self {
    case .int8, .uint8: 1
    case .bfloat16, .float16: 2
    case .float32, .int32: 4
    case .float64, .int64: 8
    case .q4_0: 18
    case .q4_1: 20
    case .q5_0: 22
    case .q5_1: 24
    case .q8_0: 34
    case .q4_K: 144
    case .q5_K: 176
    case .q6_K: 210
    }
  }

  /// Values of a block; 1 for plain types.
  public var valuesPerBlock: Int {
    switch self {
    case .q4_0, .q4_1, .q5_0, .q5_1, .q8_0: 32
    case .q4_K, .q5_K, .q6_K: 256
    default: 1
    }
  }

  /// Whether values are quantised in blocks.
  public var isQuantized: Bool { valuesPerBlock > 1 }

  /// Bytes of `count` elements, whole blocks.
  public func byteCount(of count: Int) -> Int { count / valuesPerBlock * byteCount }

  /// Whether values are floating point.
  public var isFloat: Bool {
    switch self {
    case .int8, .int32, .uint8, .int64: false
    default: true
    }
  }
}
