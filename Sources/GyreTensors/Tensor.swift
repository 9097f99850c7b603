import Synchronization

/// Identifies a value for the tape. Unique in a process.
public struct TensorID: Hashable, Sendable {
  let value: UInt64
  private static let next = Atomic<UInt64>(0)
  static func make() -> TensorID {
    TensorID(value: next.wrappingAdd(1, ordering: .relaxed).newValue)
  }
}

/// Shape and element type.
public struct TensorSpec: Sendable, Hashable, CustomStringConvertible {
  public var shape: Shape
  public var dtype: DType
  public init(_ shape: Shape, _ dtype: DType = .float32) {
    self.shape = shape
    self.dtype = dtype
  }
  public var byteCount: Int { dtype.byteCount(of: shape.elementCount) }
  public var description: String { "\(dtype.rawValue)\(shape)" }
}

/// A value: element type, shape and shared storage on a device, row-major and contiguous.
///
/// Copies are O(1). Ops make new tensors; only a `Parameter`'s optimiser and explicit in-place ops
/// write into existing storage.
public struct Tensor: Sendable {
  public let id: TensorID
  public let shape: Shape
  public let dtype: DType
  public let device: any Device
  /// Nil for a tensor whose storage the tape did not keep (its shape and identity remain) and on
  /// devices that failed to allocate.
  package let buffer: (any DeviceBuffer)?
  /// Offset into the buffer in bytes.
  package let byteOffset: Int
  /// What is known about where the value comes from or lies; only makes things faster.
  package let note: (any TensorNote)?

  package init(
    shape: Shape, dtype: DType, device: any Device, buffer: (any DeviceBuffer)?,
    byteOffset: Int = 0, id: TensorID = .make(), note: (any TensorNote)? = nil
  ) {
    self.note = note
    self.id = id
    self.shape = shape
    self.dtype = dtype
    self.device = device
    self.buffer = buffer
    self.byteOffset = byteOffset
  }

  /// Uninitialised storage. On failure the device keeps the error.
  public init(emptyWith spec: TensorSpec, on device: any Device) {
    var buffer: (any DeviceBuffer)?
    do { buffer = try device.allocate(byteCount: max(spec.byteCount, 1)) } catch {
      device.fail(error)
    }
    self.init(shape: spec.shape, dtype: spec.dtype, device: device, buffer: buffer)
  }

  public var spec: TensorSpec { TensorSpec(shape, dtype) }
  public var elementCount: Int { shape.elementCount }
  public var byteCount: Int { spec.byteCount }

  /// The same value without its storage.
  package var shell: Tensor {
    Tensor(shape: shape, dtype: dtype, device: device, buffer: nil, id: id)
  }

  /// The same storage under another shape and a new identity, not seen by the tape.
  package func aliased(as shape: Shape, byteOffset: Int? = nil) -> Tensor {
    Tensor(
      shape: shape, dtype: dtype, device: device, buffer: buffer,
      byteOffset: byteOffset ?? self.byteOffset)
  }
}

extension Tensor {
  /// Copies the elements of `other` into this tensor's storage, in the device's queue; nothing where
  /// they lie there already.
  ///
  /// - Precondition: equal shapes.
  package func assign(_ other: Tensor) {
    precondition(shape == other.shape, "assign: \(other.shape) to \(shape)")
    if let buffer, buffer === other.buffer, byteOffset == other.byteOffset, dtype == other.dtype {
      return
    }
    device.launch(
      KernelCall(op: Affine(scale: 1, shift: 0), inputs: [other], outputs: [self]))
  }
}

extension Tensor {
  /// Sets all elements of this tensor's storage, in the device's queue.
  package func fill(_ value: Double) {
    device.launch(KernelCall(op: Fill(value: value, spec: spec), inputs: [], outputs: [self]))
  }
}

// MARK: - Host access

/// Swift types that hold tensor elements on the host.
public protocol HostScalar: Sendable, BitwiseCopyable {
  static var dtype: DType { get }
}
extension Float: HostScalar { public static var dtype: DType { .float32 } }
extension Double: HostScalar { public static var dtype: DType { .float64 } }
extension Int32: HostScalar { public static var dtype: DType { .int32 } }
extension Int64: HostScalar { public static var dtype: DType { .int64 } }
extension Int8: HostScalar { public static var dtype: DType { .int8 } }
extension UInt8: HostScalar { public static var dtype: DType { .uint8 } }

extension Tensor {
  /// A tensor with the given elements in row-major order.
  ///
  /// - Precondition: as many elements as the shape has.
  public init<S: HostScalar>(_ elements: [S], shape: Shape, on device: any Device) {
    precondition(
      elements.count == shape.elementCount,
      "tensor: \(elements.count) elements for shape \(shape)")
    self.init(emptyWith: TensorSpec(shape, S.dtype), on: device)
    guard let buffer else { return }
    elements.withUnsafeBytes { device.write($0, to: buffer, offset: 0) }
  }

  /// A tensor whose bytes come from elsewhere, such as a checkpoint.
  public init(bytes: UnsafeRawBufferPointer, spec: TensorSpec, on device: any Device) {
    precondition(bytes.count == spec.byteCount, "tensor: \(bytes.count) bytes for \(spec)")
    self.init(emptyWith: spec, on: device)
    guard let buffer else { return }
    device.write(bytes, to: buffer, offset: 0)
  }

  /// All elements zero.
  public static func zeros(_ shape: Shape, _ dtype: DType = .float32, on device: any Device)
    -> Tensor
  {
    full(0, shape, dtype, on: device)
  }

  /// All elements equal to `value`.
  public static func full(
    _ value: Double, _ shape: Shape, _ dtype: DType = .float32, on device: any Device
  ) -> Tensor {
    let t = Tensor(emptyWith: TensorSpec(shape, dtype), on: device)
    t.fill(value)
    return t
  }

  /// The elements, copied to the host after all queued work.
  ///
  /// - Precondition: `S` is the tensor's element type.
  /// - Throws: the device's first failure since it was last asked.
  public func elements<S: HostScalar>(_: S.Type = S.self) throws(DeviceError) -> [S] {
    precondition(S.dtype == dtype, "elements: \(S.dtype.rawValue) asked of \(spec)")
    try device.synchronize()
    guard let buffer else {
      throw .kernelFailed(kernel: "read", device: device.id.name, reason: "no storage")
    }
    var failure: DeviceError?
    let values = [S](unsafeUninitializedCapacity: elementCount) { memory, count in
      do throws(DeviceError) {
        try device.read(buffer, offset: byteOffset, into: UnsafeMutableRawBufferPointer(memory))
      } catch { failure = error }
      count = elementCount
    }
    if let failure { throw failure }
    return values
  }

  /// The elements as Float whatever the element type.
  public func floats() throws(DeviceError) -> [Float] {
    if dtype == .float32 { return try elements(Float.self) }
    return try doubles().map(Float.init)
  }

  /// The elements as Double whatever the element type.
  public func doubles() throws(DeviceError) -> [Double] {
    try device.synchronize()
    guard let buffer else {
      throw .kernelFailed(kernel: "read", device: device.id.name, reason: "no storage")
    }
    let bytes = UnsafeMutableRawBufferPointer.allocate(
      byteCount: max(byteCount, 1), alignment: 64)
    defer { bytes.deallocate() }
    try device.read(
      buffer, offset: byteOffset, into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<byteCount])
    )
    return ElementCoding.decode(UnsafeRawPointer(bytes.baseAddress!), dtype, elementCount)
  }

  /// The single element of a one-element tensor.
  public func item() throws(DeviceError) -> Double {
    precondition(elementCount == 1, "item: \(spec) has \(elementCount) elements")
    return try doubles()[0]
  }

  /// The address of the first element on host devices.
  package var hostAddress: UnsafeMutableRawPointer? {
    buffer?.hostPointer.map { $0 + byteOffset }
  }
}

/// Conversion between stored elements and Double.
package enum ElementCoding {
  /// The elements of a float64 tensor's bytes.
  package static func doubles(_ bytes: [UInt8]) -> [Double] {
    bytes.withUnsafeBytes { bytes in
      (0..<bytes.count / 8).map { bytes.loadUnaligned(fromByteOffset: 8 * $0, as: Double.self) }
    }
  }

  package static func decode(_ p: UnsafeRawPointer, _ dtype: DType, _ count: Int) -> [Double] {
    switch dtype {
    case .float32: gather(p, count) { (x: Float) in Double(x) }
    case .float64: gather(p, count) { (x: Double) in x }
    case .int32: gather(p, count) { (x: Int32) in Double(x) }
    case .int64: gather(p, count) { (x: Int64) in Double(x) }
    case .int8: gather(p, count) { (x: Int8) in Double(x) }
    case .uint8: gather(p, count) { (x: UInt8) in Double(x) }
    case .bfloat16: gather(p, count) { (x: UInt16) in Double(BFloat16.float(x)) }
    case .float16: gather(p, count) { (x: UInt16) in Double(Half.float(x)) }
    case .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q4_K, .q5_K, .q6_K:
      [Float](unsafeUninitializedCapacity: count) { memory, n in
        if let base = memory.baseAddress { dtype.unpackBlocks(p, count: count, to: base) }
        n = count
      }.map(Double.init)
    }
  }

  package static func encode(
    _ values: [Double], to p: UnsafeMutableRawPointer, _ dtype: DType
  ) {
    switch dtype {
    case .float32: scatter(values, p) { Float($0) }
    case .float64: scatter(values, p) { $0 }
    case .int32: scatter(values, p) { Int32(clamping($0, -2_147_483_648, 2_147_483_647)) }
    case .int64: scatter(values, p) { Int64(clamping($0, -9e18, 9e18)) }
    case .int8: scatter(values, p) { Int8(clamping($0, -128, 127)) }
    case .uint8: scatter(values, p) { UInt8(clamping($0, 0, 255)) }
    case .bfloat16: scatter(values, p) { BFloat16.bits(Float($0)) }
    case .float16: scatter(values, p) { Half.bits(Float($0)) }
    case .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q4_K, .q5_K, .q6_K:
      let bytes = values.map(Float.init).withUnsafeBufferPointer { dtype.packBlocks($0) }
      bytes.withUnsafeBytes {
        if let base = $0.baseAddress { p.copyMemory(from: base, byteCount: $0.count) }
      }
    }
  }

  private static func clamping(_ x: Double, _ low: Double, _ high: Double) -> Double {
    x.isNaN ? 0 : min(max(x.rounded(.towardZero), low), high)
  }

  private static func gather<S: BitwiseCopyable>(
    _ p: UnsafeRawPointer, _ count: Int, _ f: (S) -> Double
  ) -> [Double] {
    let s = p.assumingMemoryBound(to: S.self)
    return [Double](unsafeUninitializedCapacity: count) { memory, n in
      for i in 0..<count { memory[i] = f(s[i]) }
      n = count
    }
  }

  private static func scatter<S: BitwiseCopyable>(
    _ values: [Double], _ p: UnsafeMutableRawPointer, _ f: (Double) -> S
  ) {
    let s = p.assumingMemoryBound(to: S.self)
    for i in 0..<values.count { s[i] = f(values[i]) }
  }
}

/// bfloat16 as its bit pattern.
public enum BFloat16 {
  public static func float(_ bits: UInt16) -> Float { Float(bitPattern: UInt32(bits) << 16) }
  /// Rounds to nearest, ties to even; NaN stays NaN.
  public static func bits(_ x: Float) -> UInt16 {
    let b = x.bitPattern
    if x.isNaN { return UInt16(truncatingIfNeeded: b >> 16) | 0x40 }
    return UInt16(truncatingIfNeeded: (b &+ 0x7FFF &+ ((b >> 16) & 1)) >> 16)
  }
}

/// IEEE half precision as its bit pattern, in integer arithmetic (Float16 is absent on x86 macOS).
public enum Half {
  public static func float(_ bits: UInt16) -> Float {
    let sign = UInt32(bits & 0x8000) << 16
    let exponent = UInt32(bits >> 10) & 0x1F
    let mantissa = UInt32(bits & 0x3FF)
    if exponent == 0 {
      let magnitude = Float(mantissa) * 0x1p-24
      return sign == 0 ? magnitude : -magnitude
    }
    if exponent == 31 { return Float(bitPattern: sign | 0x7F80_0000 | mantissa << 13) }
    return Float(bitPattern: sign | (exponent + 112) << 23 | mantissa << 13)
  }

  /// Rounds to nearest, ties to even; overflow gives infinity.
  public static func bits(_ x: Float) -> UInt16 {
    let b = x.bitPattern
    let sign = UInt16(truncatingIfNeeded: b >> 16) & 0x8000
    let magnitude = b & 0x7FFF_FFFF
    if magnitude > 0x7F80_0000 { return sign | 0x7E00 }
    if magnitude >= 0x477F_F000 { return sign | 0x7C00 }
    if magnitude < 0x3880_0000 {
      let scaled = Float(bitPattern: magnitude) * 0x1p24
      return sign | UInt16(scaled.rounded(.toNearestOrEven))
    }
    let rounded = magnitude &+ 0xFFF &+ ((magnitude >> 13) & 1)
    return sign | UInt16(truncatingIfNeeded: (rounded &- (112 << 23)) >> 13)
  }
}
