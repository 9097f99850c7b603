import FoundationEssentials
import GyreCheckpoints
import GyreInference
import GyreRecurrence
import GyreTensors
import GyreTokenizers

/// EGG's weights on a device.
public struct EggModel: Sendable {
  public static let type = "egg"
  public let shape: EggShape
  /// int8 `[parameterCount]`, in the order of `EggShape.leaves`. Evolution writes into it.
  public let weights: Tensor

  /// Matrices round(deviation z) with z standard normal, clipped to ±127; norms 16, which is one; biases 0.
  public init(
    _ shape: EggShape, deviation: Double = 16, seed: UInt64, device: any Device
  ) {
    self.shape = shape
    var values: [Int8] = []
    values.reserveCapacity(shape.parameterCount)
    for leaf in shape.leaves {
      let count = leaf.shape.elementCount
      if leaf.isMatrix {
        let z = CounterGenerator(seed: seed, name: leaf.name).normals(count)
        values += z.map {
          Int8(min(max((Float(deviation) * $0).rounded(.toNearestOrEven), -127), 127))
        }
      } else {
        let isBias = leaf.name.hasSuffix("bf") || leaf.name.hasSuffix("bh")
        values += [Int8](repeating: isBias ? 0 : 16, count: count)
      }
    }
    weights = Tensor(values, shape: [values.count], on: device)
  }

  /// The weights of a file that `writer` wrote.
  ///
  /// - Throws: `CheckpointError` naming the tensor that is absent or does not fit.
  public init(
    _ shape: EggShape, file: SafetensorsFile, device: any Device
  ) throws(CheckpointError) {
    self.shape = shape
    let leaves = shape.leaves
    try file.check(
      against: Dictionary(uniqueKeysWithValues: leaves.map { ($0.name, $0.shape) }))
    var values: [Int8] = []
    values.reserveCapacity(shape.parameterCount)
    for leaf in leaves {
      for value in try file.readInt32(leaf.name) {
        guard let small = Int8(exactly: value), small != -128 else {
          throw .invalid(
            subject: "\(file.name)#\(leaf.name)", reason: "holds \(value), must be in -127...127")
        }
        values.append(small)
      }
    }
    weights = Tensor(values, shape: [values.count], on: device)
  }

  /// Every parameter under its name, int8.
  public func writer() throws -> SafetensorsWriter {
    let values = try weights.elements(Int8.self)
    var writer = SafetensorsWriter(metadata: ["model_type": EggModel.type])
    for leaf in shape.leaves {
      try writer.add(
        leaf.name, dtype: .int8, shape: leaf.shape, values: Array(values[leaf.weights]))
    }
    return writer
  }

  // MARK: - Run folders

  private struct Header: Codable {
    var modelType: String
    var width: Int?
    var layers: Int?
    enum CodingKeys: String, CodingKey {
      case width, layers
      case modelType = "model_type"
    }
  }

  /// The text of `config.json`.
  public func configurationJSON() throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    let header = Header(modelType: EggModel.type, width: shape.width, layers: shape.layers)
    return String(decoding: try encoder.encode(header), as: UTF8.self) + "\n"
  }

  /// The sizes that a folder's `config.json` gives; nil where it describes another kind of model.
  ///
  /// - Throws: `file` for sizes that cannot be.
  public static func shape(folder: String) throws(EvolutionError) -> EggShape? {
    let path = folder + "/config.json"
    guard let file = try? MappedFile(path: path),
      let header = try? JSONDecoder().decode(
        Header.self, from: Data(file.withUnsafeBytes { Array($0) })),
      header.modelType == EggModel.type
    else { return nil }
    guard let width = header.width, let layers = header.layers, (1...4096).contains(width),
      (0...1024).contains(layers)
    else {
      throw .file(path: path, reason: "width must be in 1...4096 and layers in 0...1024")
    }
    return EggShape(width: width, layers: layers)
  }

  /// The model of a run folder; nil where the folder holds another kind of model.
  public static func load(folder: String, device: any Device) throws -> EggModel? {
    guard let shape = try shape(folder: folder) else { return nil }
    return try EggModel(
      shape, file: SafetensorsFile(path: folder + "/model.safetensors"), device: device)
  }

  // MARK: - Use

  public func state(members: Int) -> Tensor {
    let shape: Shape = [members, shape.layers, shape.width]
    return .zeros(shape, .int8, on: weights.device)
  }

  /// How well the model predicts a text, all bytes but the first. The text is read as up to 64 streams,
  /// each from a state of zeros.
  public func score(_ text: [UInt8]) throws -> (bits: Double, bytes: Int) {
    let targets = text.count - 1
    guard targets > 0 else { return (0, 0) }
    let streams = min(64, max(1, targets / 1024))
    let length = targets / streams
    var total = 0
    // What does not divide evenly is read by the last stream alone.
    let window = 4096
    for (first, count, rows) in [(0, length, streams), (streams * length, targets % streams, 1)] {
      var state = state(members: rows)
      var at = 0
      while at < count {
        let n = min(window, count - at)
        var bytes: [UInt8] = []
        for row in 0..<rows {
          let start = first + row * length + at
          bytes += text[start...start + n]
        }
        let tokens = Tensor(bytes, shape: [rows, n + 1], on: weights.device)
        let found = apply(EggForward(shape), [weights, tokens, state])
        for sum in try found[0].elements(Int32.self) { total += Int(sum) }
        state = found[1]
        at += n
      }
    }
    return (-Double(total) / 16, targets)
  }
}

/// A text read by EGG: one member, no perturbation.
public struct EggReader: TokenReader {
  private let model: EggModel
  private var state: Tensor

  public init(_ model: EggModel) {
    self.model = model
    state = model.state(members: 1)
  }

  public mutating func read(_ tokens: [TokenID]) throws(InferenceError) -> [Float] {
    // The last byte is followed by one that only the score would look at.
    let bytes = tokens.map { UInt8(truncatingIfNeeded: $0) } + [0]
    let found = apply(
      EggForward(model.shape, keepsLogits: true),
      [model.weights, Tensor(bytes, shape: [1, bytes.count], on: model.weights.device), state])
    state = found[1]
    do throws(DeviceError) {
      // A logit is in sixteenths of a bit.
      return try found[2].elements(Int8.self).map { Float($0) * 0.043_321_698_785 }
    } catch { throw .device(error) }
  }
}
