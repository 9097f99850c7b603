import GyreLayers
import GyreRecurrence
import GyreTensors

/// The dropouts of a recurrent layer; all rates are 0, and all are off in evaluation.
public struct RecurrentDropout: Codable, Hashable, Sendable {
  /// Rate on the layer's input: a choice an element (Zaremba, Sutskever and Vinyals, 2014).
  public var input = 0.0
  /// Rate on the layer's input with one choice a channel for all tokens of a row, and the same on what
  /// the recurrent matrices multiply: variational dropout (Gal and Ghahramani, 2016).
  public var variational = 0.0
  public var recurrent = 0.0
  /// Rate on the elements of the recurrent matrices: DropConnect (Merity, Keskar and Socher,
  /// "Regularizing and optimizing LSTM language models", 2017, https://arxiv.org/abs/1708.02182).
  public var weight = 0.0
  /// Rates at which the output state, and the other states, keep their old value (Krueger et al., 2016).
  /// Evaluation takes the mean of both.
  public var zoneout = 0.0
  public var zoneoutMemory = 0.0
  public init() {}

  private enum CodingKeys: String, CodingKey, CaseIterable {
    case input, variational, recurrent, weight, zoneout, zoneoutMemory
  }
  private struct AnyKey: CodingKey {
    var stringValue: String
    var intValue: Int? { nil }
    init?(stringValue: String) { self.stringValue = stringValue }
    init?(intValue: Int) { nil }
  }
  /// Fields may be left out; unknown ones are errors.
  public init(from decoder: any Decoder) throws {
    let given = try decoder.container(keyedBy: AnyKey.self)
    for key in given.allKeys where CodingKeys(rawValue: key.stringValue) == nil {
      throw DecodingError.dataCorruptedError(
        forKey: key, in: given,
        debugDescription:
          "is not a field; there are \(CodingKeys.allCases.map(\.rawValue).sorted())"
      )
    }
    let c = try decoder.container(keyedBy: CodingKeys.self)
    func rate(_ key: CodingKeys) throws -> Double {
      try c.decodeIfPresent(Double.self, forKey: key) ?? 0
    }
    input = try rate(.input)
    variational = try rate(.variational)
    recurrent = try rate(.recurrent)
    weight = try rate(.weight)
    zoneout = try rate(.zoneout)
    zoneoutMemory = try rate(.zoneoutMemory)
  }

  func validate(allowsNoise: Bool = true) throws(ConfigurationError) {
    for (name, rate) in [
      ("input", input), ("variational", variational), ("recurrent", recurrent),
      ("weight", weight), ("zoneout", zoneout), ("zoneoutMemory", zoneoutMemory),
    ] {
      try require(
        (0...0.999).contains(rate), "dropout.\(name)", "must be in 0...0.999, is \(rate)")
    }
    try require(
      allowsNoise || noise == CellNoise(), "dropout",
      "zoneout and recurrent dropout do not go with this cell, whose states are scaled")
  }

  /// What has to happen inside the recurrence.
  var noise: CellNoise {
    CellNoise(zoneout: zoneout > 0 || zoneoutMemory > 0, operands: recurrent > 0)
  }

  /// The layer's input.
  func input(_ x: Tensor, _ noise: DropoutNoise?, _ name: String) -> Tensor {
    x.dropped(input, noise, name: name + " input")
      .dropped(variational, noise, name: name + " variational", sharesTime: true)
  }

  /// A recurrent matrix.
  func matrix(_ weights: Tensor, _ noise: DropoutNoise?, _ name: String) -> Tensor {
    guard let noise, weight > 0 else { return weights }
    return weights
      * noise.mask(weights.shape, rate: weight, name: name + " weight", on: weights.device)
  }

  /// The inputs that `CellNoise` asked for: choices in training, their means in evaluation.
  ///
  /// - Parameters:
  ///   - inputs: names and widths as the description has them.
  ///   - output: the name of the output state.
  func values(
    _ inputs: [(name: String, width: Int)], output: String, like x: Tensor, _ noise: DropoutNoise?,
    _ name: String
  ) -> [Tensor] {
    inputs.map { input in
      let shape: Shape = [x.shape[0], x.shape[1], input.width]
      let label = name + " " + input.name
      if input.name.hasPrefix("operand") {
        return Tensor.full(1, shape, on: x.device)
          .dropped(recurrent, noise, name: label, sharesTime: true)
      }
      let rate = input.name == "zoneout." + output ? zoneout : zoneoutMemory
      return noise?.choices(shape, rate: rate, name: label, on: x.device)
        ?? .full(rate, shape, on: x.device)
    }
  }
}
