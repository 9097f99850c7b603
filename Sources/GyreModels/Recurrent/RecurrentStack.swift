import GyreCheckpoints
import GyreLayers
import GyreRecurrence
import GyreTensors

/// Layers over layers, each in one direction or in both, as torch.nn.RNN, LSTM and GRU: layer l reads
/// the outputs of layer l − 1, forward and backward side by side.
///
///     let lstm = try RecurrentStack(torch: file, prefix: "encoder.", on: device)
///     let (y, state) = try lstm(x, lengths: [7, 5])
public struct RecurrentStack: Sendable {
  /// By layer, then by direction: forward and, where there is one, backward.
  public let layers: [[RecurrentLayer]]
  public var isBidirectional: Bool { layers[0].count == 2 }
  /// Whether a layer reads the input and the outputs of all layers below, side by side.
  public let isDense: Bool

  /// - Parameter isDense: densely connected, after Huang et al., 2017.
  /// - Throws: `invalid` where there is no layer, or one does not read what the ones below give.
  public init(_ layers: [[RecurrentLayer]], isDense: Bool = false) throws(CheckpointError) {
    guard let first = layers.first, (1...2).contains(first.count) else {
      throw .invalid(
        subject: "recurrent layers", reason: "must be at least one, in 1 or 2 directions")
    }
    var below = first[0].inputs
    for (l, pair) in layers.enumerated() {
      guard pair.count == first.count, pair.allSatisfy({ $0.inputs == below }) else {
        throw .invalid(
          subject: "recurrent layer \(l)",
          reason: "\(pair.map(\.inputs)) inputs in \(pair.count) directions, where \(below) in "
            + "\(first.count) come from below")
      }
      below = (isDense ? below : 0) + pair.reduce(0) { $0 + $1.outputs }
    }
    self.layers = layers
    self.isDense = isDense
  }

  /// Reads the state dictionary of a torch.nn.RNN, LSTM or GRU (or of a cell, whose names have no
  /// layer): every layer and direction there is. The gates tell which it is.
  ///
  /// - Parameters:
  ///   - prefix: what precedes "weight_ih_l0": "rnn.".
  ///   - kind: needed only where the gates do not tell: RNN with ReLU.
  /// - Throws: `notFound` without a first layer; `invalid` for shapes that fit no layer.
  public init(
    torch source: some TensorSource, prefix: String = "", kind: RecurrentKind? = nil,
    on device: any Device
  ) throws(CheckpointError) {
    func layer(_ suffix: String) throws(CheckpointError) -> RecurrentLayer {
      let name = prefix + "*" + suffix
      let weights = try RecurrentWeights(
        torch: source, prefix: prefix, suffix: suffix, on: device)
      if let kind { return try RecurrentLayer(kind, weights, name: name) }
      return try RecurrentLayer(RecurrentStack.kind(of: weights, name), weights, name: name)
    }
    guard source.contains(prefix + "weight_ih_l0") else {
      try self.init([[try layer("")]])
      return
    }
    var layers: [[RecurrentLayer]] = []
    while source.contains("\(prefix)weight_ih_l\(layers.count)") {
      let suffix = "_l\(layers.count)"
      var pair = [try layer(suffix)]
      if source.contains(prefix + "weight_ih" + suffix + "_reverse") {
        pair.append(try layer(suffix + "_reverse"))
      }
      layers.append(pair)
    }
    try self.init(layers)
  }

  /// 1, 3 or 4 gates: RNN, GRU, LSTM.
  private static func kind(of weights: RecurrentWeights, _ name: String)
    throws(CheckpointError) -> RecurrentKind
  {
    // The recurrent weight is [G·H, H] but for LSTMs with a projection.
    if weights.projection != nil { return .lstm }
    let shape = weights.recurrent.shape
    let gates = shape.rank == 2 && shape[1] > 0 ? shape[0] / shape[1] : 0
    switch gates {
    case 1: return .rnnTanh
    case 3: return .gru
    case 4: return .lstm
    default:
      throw .invalid(
        subject: name, reason: "a recurrent weight \(shape) has not 1, 3 or 4 gates")
    }
  }

  /// Fresh states, in the order of the states that a call gives back.
  public func states(batch: Int) -> [State] {
    layers.flatMap { $0 }.map { State($0.stateSpec, batch: batch) }
  }

  /// Runs all layers over `[B, T, inputs]`.
  ///
  /// - Parameters:
  ///   - given: one a layer and direction, layer by layer; nil for fresh ones.
  ///   - lengths: tokens of each row; outputs beyond are zero, and the state is that after the last
  ///     token (backward: after the first). Rows of one length run together.
  /// - Returns: outputs `[B, T, directions · outputs]` of the last layer, and the states.
  /// - Throws: where x, the states or the lengths do not fit.
  public func callAsFunction(
    _ x: Tensor, states given: [State]? = nil, lengths: [Int]? = nil
  ) throws(ConfigurationError) -> (output: Tensor, states: [State]) {
    try require(
      x.rank == 3 && x.shape[2] == layers[0][0].inputs, "x",
      "\(x.shape) is not [B, T, \(layers[0][0].inputs)]")
    let (batch, tokens) = (x.shape[0], x.shape[1])
    let start = given ?? states(batch: batch)
    let specs = layers.flatMap { $0 }.map(\.stateSpec)
    try require(
      start.count == specs.count
        && zip(start, specs).allSatisfy { $0.spec == $1 && $0.batch == batch },
      "states", "must be \(specs.count), one a layer and direction, for \(batch) rows")
    guard let lengths else { return run(x, start) }
    try require(
      lengths.count == batch && lengths.allSatisfy { (0...tokens).contains($0) }, "lengths",
      "must be \(batch) numbers in 0...\(tokens), are \(lengths)")
    return packed(x, start, lengths)
  }

  private func run(_ x: Tensor, _ start: [State]) -> (output: Tensor, states: [State]) {
    var (x, states, next) = (x, start, 0)
    for (l, pair) in layers.enumerated() {
      var parts: [Tensor] = []
      for (direction, layer) in pair.enumerated() {
        let input = direction == 0 ? x : RecurrentStack.reversed(x)
        let y = layer(input, state: &states[next])
        states[next].advance(by: x.shape[1])
        parts.append(direction == 0 ? y : RecurrentStack.reversed(y))
        next += 1
      }
      x = concatenated(isDense && l + 1 < layers.count ? [x] + parts : parts)
    }
    return (x, states)
  }

  /// The tokens of every row in the opposite order.
  static func reversed(_ x: Tensor) -> Tensor {
    let (batch, tokens, width) = (x.shape[0], x.shape[1], x.shape[2])
    guard batch * tokens > 0 else { return x }
    let order = (0..<batch * tokens).map { Int32($0 / tokens * tokens + tokens - 1 - $0 % tokens) }
    let index = Tensor(order, shape: [batch * tokens], on: x.device)
    return x.reshaped([batch * tokens, width]).rows(index).reshaped(x.shape)
  }

  /// Rows of one length at a time, put back in their order.
  private func packed(_ x: Tensor, _ start: [State], _ lengths: [Int]) -> (Tensor, [State]) {
    let (tokens, width) = (x.shape[1], layers[layers.count - 1].reduce(0) { $0 + $1.outputs })
    var (order, outputs, finals): ([Int], [Tensor], [[State]]) = ([], [], [])
    for length in Set(lengths).sorted() {
      let rows = lengths.indices.filter { lengths[$0] == length }
      order += rows
      let index = Tensor(rows.map(Int32.init), shape: [rows.count], on: x.device)
      let part = x.reshaped([x.shape[0], tokens * x.shape[2]]).rows(index)
        .reshaped([rows.count, tokens, x.shape[2]]).sliced(0..<length, axis: 1)
      let (y, states) = run(part, start.map { $0.rows(rows) })
      let rest = Tensor.zeros([rows.count, tokens - length, width], on: x.device)
      outputs.append(length == tokens ? y : concatenated([y, rest], axis: 1))
      finals.append(states)
    }
    // Place of each row among the groups.
    var place = [Int](repeating: 0, count: order.count)
    for (i, row) in order.enumerated() { place[row] = i }
    guard let first = finals.first else {
      return (.zeros([0, tokens, width], on: x.device), start)
    }
    let index = Tensor(place.map(Int32.init), shape: [place.count], on: x.device)
    let y = concatenated(outputs, axis: 0).reshaped([order.count, tokens * width]).rows(index)
      .reshaped([order.count, tokens, width])
    let states = first.indices.map { i in
      var joined = State(first[i].spec, batch: order.count)
      joined.tokenCount = lengths.max() ?? 0
      for entry in first[i].spec.entries {
        joined[entry.name] = concatenated(
          finals.map { $0[i].value(entry.name, on: x.device) }, axis: 0)
      }
      return joined.rows(place)
    }
    return (y, states)
  }
}
