import GyreTensors

/// Where parameter values come from: random numbers, a checkpoint, nothing (counting).
public protocol ParameterSource: AnyObject {
  /// The value of a parameter, or nil where the source has none; the source remembers that.
  func value(name: String, shape: Shape, initializer: Initializer) -> Tensor?
  /// The value of a matrix that only linear maps and look-ups of rows read. It may have the type that
  /// a checkpoint stores it in, where the device multiplies that.
  func matrix(name: String, shape: Shape, initializer: Initializer) -> Tensor?
}

extension ParameterSource {
  public func matrix(name: String, shape: Shape, initializer: Initializer) -> Tensor? {
    value(name: name, shape: shape, initializer: initializer)
  }
}

/// Fresh parameters: a pure function of seed, name and shape.
public final class RandomParameters: ParameterSource {
  private let seed: UInt64
  private let device: any Device
  public init(seed: UInt64, device: any Device) {
    self.seed = seed
    self.device = device
  }
  public func value(name: String, shape: Shape, initializer: Initializer) -> Tensor? {
    let generator = CounterGenerator(seed: seed, name: name)
    return Tensor(initializer.elements(shape, generator), shape: shape, on: device)
  }
}

/// Parameters without values, for counting and for predicting memory.
public final class UninitializedParameters: ParameterSource {
  private let device: any Device
  public init(device: any Device) { self.device = device }
  public func value(name: String, shape: Shape, initializer: Initializer) -> Tensor? {
    Tensor(emptyWith: TensorSpec(shape), on: device)
  }
}

/// Gives layers their parameters under the path of the layer and lists them in order.
public struct ParameterBuilder: ~Copyable {
  private let source: any ParameterSource
  private let device: any Device
  private var path: [String] = []
  private var byName: [String: Parameter] = [:]
  public private(set) var parameters: [Parameter] = []

  public init(source: any ParameterSource, device: any Device) {
    self.source = source
    self.device = device
  }

  /// A parameter of the current scope.
  ///
  /// - Throws: when an extent is not positive.
  public mutating func parameter(
    _ name: String, _ shape: Shape, _ initializer: Initializer, decay: WeightDecay? = nil,
    learningRateScale: Double = 1
  ) throws(ConfigurationError) -> Parameter {
    try make((path + [name]).joined(separator: "."), shape, initializer, decay, learningRateScale)
  }

  /// A parameter `[outputs, inputs]` that is read by `Tensor.linear` and `Tensor.rows` alone.
  ///
  /// - Throws: as `parameter`.
  public mutating func matrix(
    _ name: String, _ shape: Shape, _ initializer: Initializer, decay: WeightDecay? = nil
  ) throws(ConfigurationError) -> Parameter {
    try make(
      (path + [name]).joined(separator: "."), shape, initializer, decay, 1, isMatrix: true)
  }

  /// A parameter that several layers share: the name is absolute, the first use makes it.
  public mutating func shared(
    _ name: String, _ shape: Shape, _ initializer: Initializer, decay: WeightDecay? = nil
  ) throws(ConfigurationError) -> Parameter {
    if let present = byName[name] { return present }
    return try make(name, shape, initializer, decay, 1)
  }

  private mutating func make(
    _ full: String, _ shape: Shape, _ initializer: Initializer, _ decay: WeightDecay?,
    _ learningRateScale: Double, isMatrix: Bool = false
  ) throws(ConfigurationError) -> Parameter {
    try require(
      shape.dimensions.allSatisfy { $0 > 0 }, full, "shape \(shape) must have positive extents")
    try require(
      shape.checkedElementCount.map { $0 <= 1 << 40 } ?? false, full,
      "shape \(shape) has more elements than any memory")
    try require(byName[full] == nil, full, "two parameters of one name")
    let given =
      isMatrix
      ? source.matrix(name: full, shape: shape, initializer: initializer)
      : source.value(name: full, shape: shape, initializer: initializer)
    let value = given ?? .zeros(shape, on: device)
    let parameter = Parameter(
      name: full, value: value, decay: decay ?? (shape.rank >= 2 ? .matrix : .none),
      learningRateScale: learningRateScale)
    byName[full] = parameter
    parameters.append(parameter)
    return parameter
  }

  /// Runs `body` one level deeper; errors carry the path.
  public mutating func scoped<R>(
    _ name: String, _ body: (inout ParameterBuilder) throws(ConfigurationError) -> R
  ) throws(ConfigurationError) -> R {
    path.append(name)
    defer { path.removeLast() }
    return try body(&self)
  }
}
