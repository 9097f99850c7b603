import GyreCheckpoints
import GyreLayers
import GyreTensors

/// How a model that infers holds its matrices.
public enum MatrixStorage: Sendable {
  /// Widened: exact, and what training needs.
  case float32
  /// Rounded, on devices that store bfloat16; elsewhere float32.
  case bfloat16
  /// In the element type of the checkpoint where the device multiplies it (bfloat16, quantised blocks),
  /// in the mapped file where it is a host; else float32.
  case stored
}

/// Parameters of a stored model. Problems are collected, so that one error names them all.
public final class CheckpointParameters: ParameterSource {
  private let source: any TensorSource
  private let device: any Device
  private let copies: Bool
  private let matrices: MatrixStorage
  private var asked: Set<String> = []
  private var missing: [String] = []
  private var reshaped: [ShapeMismatch] = []
  private var failure: CheckpointError?

  /// - Parameter copies: whether values get memory of their own. Training needs that, since
  ///   optimisers write in place; without it values of host devices stay in the mapped file where
  ///   they have the type that is needed.
  /// - Parameter matrices: how matrices are held; other than in float32 for inference only.
  public init(
    _ source: any TensorSource, device: any Device, copies: Bool,
    matrices: MatrixStorage = .float32
  ) {
    self.source = source
    self.device = device
    self.copies = copies
    self.matrices = matrices
  }

  public func value(name: String, shape: Shape, initializer: Initializer) -> Tensor? {
    read(name, shape) { _ in false }
  }

  public func matrix(name: String, shape: Shape, initializer: Initializer) -> Tensor? {
    read(name, shape) { type in
      matrices == .stored && shape.rank == 2 && shape.last % type.valuesPerBlock == 0
        && device.multiplies(stored: type)
    }
  }

  /// A parameter's value, in its stored type where that `isKept`.
  private func read(_ name: String, _ shape: Shape, isKept: (DType) -> Bool) -> Tensor? {
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
      if let type = info.dtype, type == .float32 || isKept(type) {
        let spec = TensorSpec(shape, type)
        if !copies, device is HostDevice, let borrowed = try borrowed(name, spec) {
          return borrowed
        }
        if type != .float32 {
          return try source.withBytes(name) { Tensor(bytes: $0, spec: spec, on: device) }
        }
      }
      let values = try source.readFloat32(name)
      let isShort = matrices == .bfloat16 && device.storesBFloat16 && Self.isMatrix(shape)
      return Tensor(values, shape: shape, as: isShort ? .bfloat16 : .float32, on: device)
    } catch {
      if failure == nil { failure = error }
      return nil
    }
  }

  /// The values where they lie in a mapped file; nil where they are not mapped or not aligned.
  private func borrowed(_ name: String, _ spec: TensorSpec) throws(CheckpointError) -> Tensor? {
    guard let owner = try source.storageOwner(of: name) else { return nil }
    // Blocks are read byte by byte; elements lie at multiples of their size.
    let alignment = spec.dtype.isQuantized ? 1 : spec.dtype.byteCount
    return try source.withBytes(name) { bytes in
      guard let base = bytes.baseAddress, UInt(bitPattern: base) % UInt(alignment) == 0,
        bytes.count == spec.byteCount
      else { return nil }
      return Tensor(
        shape: spec.shape, dtype: spec.dtype, device: device,
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
    if let renamed = self as? GGUFTensors {
      return renamed.file.isMapped && renamed.isUnchanged(name) ? renamed.file : nil
    }
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
