import GyreCheckpoints
import GyreLayers
import GyreTensors

/// Parameters of a stored model. Problems are collected, so that one error names them all.
public final class CheckpointParameters: ParameterSource {
  private let source: any TensorSource
  private let device: any Device
  private let copies: Bool
  private let matrices: DType
  private var asked: Set<String> = []
  private var missing: [String] = []
  private var reshaped: [ShapeMismatch] = []
  private var failure: CheckpointError?

  /// - Parameter copies: whether values get memory of their own. Training needs that, since
  ///   optimisers write in place; without it float32 values of host devices stay in the mapped file.
  /// - Parameter matrices: element type of matrices on the device; bfloat16 where the device stores it
  ///   and no optimiser wants more.
  public init(
    _ source: any TensorSource, device: any Device, copies: Bool, matrices: DType = .float32
  ) {
    self.matrices = device.storesBFloat16 ? matrices : .float32
    self.source = source
    self.device = device
    self.copies = copies
  }

  public func value(name: String, shape: Shape, initializer: Initializer) -> Tensor? {
    asked.insert(name)
    guard source.contains(name) else {
      missing.append(name)
      return nil
    }
    do throws(CheckpointError) {
      let info = try source.info(name)
      guard info.shape == shape else {
        reshaped.append(ShapeMismatch(name: name, expected: shape, found: info.shape))
        return nil
      }
      if !copies, device is HostDevice, info.storedType == .float32,
        let borrowed = try borrowed(name, shape)
      {
        return borrowed
      }
      let values = try source.readFloat32(name)
      return Self.isMatrix(shape)
        ? Tensor(values, shape: shape, as: matrices, on: device)
        : Tensor(values, shape: shape, on: device)
    } catch {
      if failure == nil { failure = error }
      return nil
    }
  }

  /// The values where they lie in a mapped file; nil where they are not mapped or not aligned.
  private func borrowed(_ name: String, _ shape: Shape) throws(CheckpointError) -> Tensor? {
    guard let owner = try source.storageOwner(of: name) else { return nil }
    return try source.withBytes(name) { bytes in
      guard let base = bytes.baseAddress,
        UInt(bitPattern: base) % UInt(MemoryLayout<Float>.alignment) == 0
      else { return nil }
      return Tensor(
        shape: shape, dtype: .float32, device: device,
        buffer: BorrowedHostBuffer(bytes, owner: owner))
    }
  }

  /// Whether a parameter is a matrix of a product, rather than rows of taps or of heads.
  public static func isMatrix(_ shape: Shape) -> Bool {
    shape.rank == 2 && shape[0] >= 16 && shape[1] >= 16 && shape.elementCount >= 1 << 14
  }

  /// Stored tensors that the model did not ask for.
  public var unexpected: [String] { source.names.filter { !asked.contains($0) } }

  /// - Parameter allowsUnexpected: whether stored tensors beyond the model's are fine.
  /// - Throws: `mismatch` with every missing, unexpected and mis-shaped tensor, or the first
  ///   tensor that could not be read.
  public func finish(allowsUnexpected: Bool = false) throws(CheckpointError) {
    if let failure { throw failure }
    let unexpected = allowsUnexpected ? [] : self.unexpected
    guard missing.isEmpty, unexpected.isEmpty, reshaped.isEmpty else {
      throw .mismatch(missing: missing, unexpected: unexpected, reshaped: reshaped)
    }
  }
}

extension TensorSource {
  /// What keeps a tensor's mapped bytes alive; nil where they may move.
  fileprivate func storageOwner(of name: String) throws(CheckpointError) -> (any Sendable)? {
    if let assembled = self as? AssembledTensors {
      return try assembled.alias(of: name).flatMap { alias throws(CheckpointError) in
        try assembled.source.storageOwner(of: alias)
      }
    }
    if let file = self as? SafetensorsFile { return file.isMapped ? file : nil }
    if let folder = self as? CheckpointFolder {
      return folder.files.allSatisfy(\.isMapped) ? folder : nil
    }
    return nil
  }
}

extension Tensor {
  /// Values in float32 or, rounded, in bfloat16.
  public init(_ values: [Float], shape: Shape, as type: DType, on device: any Device) {
    guard type == .bfloat16 else {
      self.init(values, shape: shape, on: device)
      return
    }
    let bits = [UInt16](unsafeUninitializedCapacity: values.count) { memory, count in
      for i in 0..<values.count { memory[i] = BFloat16.bits(values[i]) }
      count = values.count
    }
    self = bits.withUnsafeBytes {
      Tensor(bytes: $0, spec: TensorSpec(shape, .bfloat16), on: device)
    }
  }
}

extension LanguageModel {
  /// A writer of all weights under their parameter names, float32.
  public func weights(
    metadata: [String: String] = [:]
  ) throws(CheckpointError) -> SafetensorsWriter {
    var writer = SafetensorsWriter(metadata: metadata)
    for parameter in parameters { try writer.add(parameter.name, values: parameter.value) }
    return writer
  }
}

extension SafetensorsWriter {
  /// Adds a float32 tensor, read from its device when it is written.
  ///
  /// - Throws: `invalid` for the name; when written, `invalid` with the device's failure.
  public mutating func add(_ name: String, values tensor: Tensor) throws(CheckpointError) {
    try add(name, dtype: .float32, shape: tensor.shape) { (sink) throws(CheckpointError) in
      let elements: [Float]
      do throws(DeviceError) { elements = try tensor.elements(Float.self) } catch {
        throw .invalid(subject: "tensor '\(name)'", reason: error.description)
      }
      try sink.write(elements)
    }
  }
}
