import GyreTensors

/// Reads a window of text with every member of a population: see `EggShape` and `EggNoise`.
///
/// Inputs: weights int8 `[parameterCount]`, text uint8 `[rows, T + 1]` (member i reads row i / group), state
/// int8 `[members, layers, D]`, stored noise int8 `[pairs, noiseCount]` where the source says so.
/// Outputs: fitness int32 `[members]`, the sum of log-likelihoods of tokens 1…T in sixteenths of a bit; the
/// state after token T − 1; with `keepsLogits` int8 `[members, 256]` after that token.
public struct EggForward: Op {
  public static let name = "egg_forward"
  public var shape: EggShape
  public var noise: EggNoise
  public var group: Int
  public var keepsLogits: Bool

  public init(
    _ shape: EggShape, noise: EggNoise = .none, group: Int = 1, keepsLogits: Bool = false
  ) {
    self.shape = shape
    self.noise = noise
    self.group = group
    self.keepsLogits = keepsLogits
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    shape.check(i[0], Self.name)
    let (text, state) = (i[1], i[2])
    precondition(
      state.dtype == .int8 && state.shape.rank == 3
        && state.shape.dimensions.dropFirst() == [shape.layers, shape.width],
      "egg_forward: state \(state) for int8[members, \(shape.layers), \(shape.width)]")
    let members = state.shape[0]
    precondition(
      text.dtype == .uint8 && text.shape.rank == 2 && text.shape[1] >= 2 && group >= 1
        && text.shape[0] * group >= members,
      "egg_forward: text \(text) for \(members) members in groups of \(group)")
    precondition(
      noise.source == .none || members % 2 == 0, "egg_forward: \(members) members are not pairs")
    precondition(
      noise.source != .stored
        || i.count == 4 && i[3] == TensorSpec([members / 2, shape.noiseCount], .int8),
      "egg_forward: stored noise must be int8[\(members / 2), \(shape.noiseCount)]")
    var outputs = [TensorSpec([members], .int32), state]
    if keepsLogits { outputs.append(TensorSpec([members, EggShape.vocabulary], .int8)) }
    return outputs
  }

  public func reference(_ a: inout HostArguments) {
    let model = EggReference(
      shape, noise, weights: a.inputs[0], stored: a.inputs.count > 3 ? a.inputs[3] : nil)
    let length = a.inputSpecs[1].shape[1]
    let size = shape.layers * shape.width
    for i in 0..<a.inputSpecs[2].shape[0] {
      let member = model.member(i)
      let row = a.inputs[1][i / group * length..<(i / group + 1) * length].map { Int($0) }
      var state = (0..<shape.layers).map { l in
        (0..<shape.width).map { Int(a.inputs[2][i * size + l * shape.width + $0]) }
      }
      var (sum, logits) = (0, [Int]())
      for t in 0..<length - 1 {
        logits = model.step(row[t], &state, member)
        sum += EggReference.logLikelihood(logits, row[t + 1])
      }
      a.outputs[0][i] = Double(sum)
      for (k, s) in state.joined().enumerated() { a.outputs[1][i * size + k] = Double(s) }
      if keepsLogits {
        for (k, y) in logits.enumerated() { a.outputs[2][i * EggShape.vocabulary + k] = Double(y) }
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public var saved: SavedValues { .none }

  public static let cases: [OpCase] = [
    item("plain", EggShape(width: 16, layers: 2), members: 3, .none),
    item(
      "stored noise", EggShape(width: 20, layers: 1), members: 6, EggNoise(.stored, sigmaShift: 3)),
    item(
      "generated noise", EggShape(width: 18, layers: 2), members: 70,
      EggNoise(.generated(seed: 0x1_2345_6789, epoch: 7, firstPair: 40)), tokens: 3, group: 2),
    item(
      "width 256", EggShape(width: 256, layers: 1), members: 4,
      EggNoise(.generated(seed: 9, epoch: 2, firstPair: 0)), tokens: 2),
    item(
      "width 130", EggShape(width: 130, layers: 1), members: 2,
      EggNoise(.generated(seed: 9, epoch: 2, firstPair: 3), sigmaShift: 1), tokens: 2),
    item(
      "width 512", EggShape(width: 512, layers: 1), members: 4,
      EggNoise(.generated(seed: 9, epoch: 2, firstPair: 1)), tokens: 2),
    item(
      "width 321", EggShape(width: 321, layers: 2), members: 6, EggNoise(.stored), tokens: 2),
    item("width 1040, plain", EggShape(width: 1040, layers: 1), members: 2, .none, tokens: 1),
  ]

  private static func item(
    _ label: String, _ shape: EggShape, members: Int, _ noise: EggNoise, tokens: Int = 5,
    group: Int = 1
  ) -> OpCase {
    let rows = (members + group - 1) / group
    var inputs = [
      EggForward.bytes([shape.parameterCount], -60, 61), .integers([rows, tokens + 1], 0, 256),
      EggForward.bytes([members, shape.layers, shape.width], -127, 128),
    ]
    inputs[1].spec.dtype = .uint8
    if noise.source == .stored {
      inputs.append(EggForward.bytes([members / 2, shape.noiseCount], -70, 71))
    }
    return OpCase(
      label, EggForward(shape, noise: noise, group: group, keepsLogits: true), inputs, tolerance: 0)
  }

  static func bytes(_ shape: Shape, _ low: Int, _ high: Int) -> TestInput {
    var input = TestInput.integers(shape, low, high)
    input.spec.dtype = .int8
    return input
  }
}
