// One view of everything that holds named tensors: a file, a sharded folder, memory.

import GyreTensors

/// A read-only collection of named tensors.
public protocol TensorSource: Sendable {
  /// Names of all tensors, sorted.
  var names: [String] { get }

  /// Free texts that came with the tensors.
  var metadata: [String: String] { get }

  /// Whether there is a tensor of this name.
  func contains(_ name: String) -> Bool

  /// Type, shape and place of a tensor.
  ///
  /// - Throws: `notFound`, with path `file#name`.
  func info(_ name: String) throws(CheckpointError) -> TensorInfo

  /// Calls `body` with a tensor's bytes: little-endian, row-major, *possibly unaligned*, valid during the call only.
  ///
  /// - Throws: `notFound`, and what `body` throws.
  func withBytes<Result>(
    _ name: String, _ body: (UnsafeRawBufferPointer) throws(CheckpointError) -> Result
  ) throws(CheckpointError) -> Result
}

extension TensorSource {
  /// Reads a tensor of any float type as float32, row-major.
  ///
  /// bfloat16 and float16 convert exactly; float64 rounds to nearest (beyond float32's range to ±∞).
  ///
  /// - Throws: `notFound`; `unsupported` if the tensor is not float16, bfloat16, float32 or float64.
  public func readFloat32(_ name: String) throws(CheckpointError) -> [Float] {
    let info = try info(name)
    let count = try FloatConversion.elementCount(info)
    return try withBytes(name) { bytes in
      Array(unsafeUninitializedCapacity: count) { buffer, initialized in
        FloatConversion.convert(bytes, of: info, to: buffer.baseAddress, count: count)
        initialized = count
      }
    }
  }

  /// Reads a tensor of any float type as float32 into memory of the caller.
  ///
  /// - Throws: as ``readFloat32(_:)``; `mismatch` if `destination.count` is not the number of elements.
  public func readFloat32(
    _ name: String, into destination: UnsafeMutableBufferPointer<Float>
  ) throws(CheckpointError) {
    let info = try info(name)
    let count = try FloatConversion.elementCount(info)
    guard destination.count == count else {
      throw .mismatch(
        missing: [], unexpected: [],
        reshaped: [ShapeMismatch(name: name, expected: [destination.count], found: info.shape)])
    }
    try withBytes(name) { bytes in
      FloatConversion.convert(bytes, of: info, to: destination.baseAddress, count: count)
    }
  }

  /// Reads a tensor of any integer or boolean type as int32, row-major.
  ///
  /// - Throws: `notFound`; `unsupported` for other types and for values outside int32.
  public func readInt32(_ name: String) throws(CheckpointError) -> [Int32] {
    let info = try info(name)
    return try withBytes(name) { (bytes) throws(CheckpointError) in
      switch info.storedType {
      case .int32: try IntegerConversion.read(Int32.self, bytes, info)
      case .int64: try IntegerConversion.read(Int64.self, bytes, info)
      case .int16: try IntegerConversion.read(Int16.self, bytes, info)
      case .int8: try IntegerConversion.read(Int8.self, bytes, info)
      case .uint64: try IntegerConversion.read(UInt64.self, bytes, info)
      case .uint32: try IntegerConversion.read(UInt32.self, bytes, info)
      case .uint16: try IntegerConversion.read(UInt16.self, bytes, info)
      case .uint8, .bool: try IntegerConversion.read(UInt8.self, bytes, info)
      default:
        throw .unsupported(
          file: info.file, subject: "tensor '\(info.name)' as int32",
          reason: "it is \(info.typeName)")
      }
    }
  }

  /// Compares names and shapes with those a model expects; all problems in one error.
  ///
  /// - Parameters:
  ///   - expected: shape of every parameter by name.
  ///   - allowsUnexpected: whether tensors that are not in `expected` are fine.
  /// - Throws: `mismatch`.
  public func check(
    against expected: [String: Shape], allowsUnexpected: Bool = false
  ) throws(CheckpointError) {
    var missing: [String] = []
    var reshaped: [ShapeMismatch] = []
    for (name, shape) in expected {
      guard contains(name) else {
        missing.append(name)
        continue
      }
      let found = try info(name).shape
      if found != shape {
        reshaped.append(ShapeMismatch(name: name, expected: shape, found: found))
      }
    }
    let unexpected = allowsUnexpected ? [] : names.filter { expected[$0] == nil }
    guard missing.isEmpty && unexpected.isEmpty && reshaped.isEmpty else {
      throw .mismatch(
        missing: missing.sorted(), unexpected: unexpected,
        reshaped: reshaped.sorted { $0.name < $1.name })
    }
  }
}

/// Named tensors in memory, for tests and for models that were never saved.
public struct MemoryTensors: TensorSource {
  public var metadata: [String: String]
  private var tensors: [String: (info: TensorInfo, bytes: [UInt8])] = [:]

  public init(metadata: [String: String] = [:]) { self.metadata = metadata }

  /// Adds a tensor.
  ///
  /// - Parameters:
  ///   - bytes: the values, little-endian, row-major; as many as `type` and `shape` need.
  /// - Throws: `invalid` for a name that is taken or bytes that do not fit.
  public mutating func add(
    _ name: String, type: StoredType, shape: Shape, bytes: [UInt8]
  ) throws(CheckpointError) {
    guard tensors[name] == nil else {
      throw .invalid(subject: "tensor '\(name)'", reason: "the name is taken")
    }
    guard shape.dimensions.allSatisfy({ $0 >= 0 }), type.byteCount(of: shape) == bytes.count else {
      throw .invalid(
        subject: "tensor '\(name)'",
        reason: "\(bytes.count) bytes do not make \(type.rawValue) \(shape)")
    }
    let info = TensorInfo(
      name: name, typeName: type.rawValue, shape: shape, file: "memory", byteRange: 0..<bytes.count)
    tensors[name] = (info, bytes)
  }

  /// Adds a float32 tensor.
  public mutating func add(_ name: String, shape: Shape, _ values: [Float]) throws(CheckpointError)
  {
    try add(
      name, type: .float32, shape: shape,
      bytes: values.withUnsafeBufferPointer { [UInt8](UnsafeRawBufferPointer($0)) })
  }

  public var names: [String] { tensors.keys.sorted() }

  public func contains(_ name: String) -> Bool { tensors[name] != nil }

  public func info(_ name: String) throws(CheckpointError) -> TensorInfo { try find(name).info }

  public func withBytes<Result>(
    _ name: String, _ body: (UnsafeRawBufferPointer) throws(CheckpointError) -> Result
  ) throws(CheckpointError) -> Result {
    try find(name).bytes.withUnsafeBufferPointer { (bytes) throws(CheckpointError) in
      try body(UnsafeRawBufferPointer(bytes))
    }
  }

  private func find(_ name: String) throws(CheckpointError) -> (info: TensorInfo, bytes: [UInt8]) {
    guard let tensor = tensors[name] else { throw .notFound(path: "memory#\(name)") }
    return tensor
  }
}
