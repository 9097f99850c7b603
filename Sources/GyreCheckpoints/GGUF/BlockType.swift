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

  /// The type that tensors have; nil for int16, which none has.
  public var dtype: DType? {
    switch self {
    case .float32: .float32
    case .float16: .float16
    case .bfloat16: .bfloat16
    case .float64: .float64
    case .int8: .int8
    case .int16: nil
    case .int32: .int32
    case .int64: .int64
    case .q4_0: .q4_0
    case .q4_1: .q4_1
    case .q5_0: .q5_0
    case .q5_1: .q5_1
    case .q8_0: .q8_0
    case .q4_K: .q4_K
    case .q5_K: .q5_K
    case .q6_K: .q6_K
    }
  }

  /// Values of a block; rows are whole blocks.
  public var valuesPerBlock: Int { dtype?.valuesPerBlock ?? 1 }

  /// Bytes of a block.
  public var bytesPerBlock: Int { dtype?.byteCount ?? 2 }

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
  /// Whether values are floating point, in blocks or not.
  public var isFloat: Bool { dtype?.isFloat ?? false }

  /// Whether ``pack(_:)`` makes this type.
  public var canPack: Bool { isFloat && self != .float64 }

  /// Values as bytes of this type: rounded to nearest for plain types; for blocks, scales by each
  /// block's range and values rounded to the nearest level of the scales as stored.
  ///
  /// - Precondition: `canPack`, and the values are whole blocks.
  public func pack(_ values: UnsafeBufferPointer<Float>) -> [UInt8] {
    dtype?.packBlocks(values) ?? []
  }
}
