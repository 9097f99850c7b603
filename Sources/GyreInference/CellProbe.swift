import GyreModels
import GyreRecurrence
import GyreTensors
import GyreTokenizers

/// The recurrent states of a model while it reads a text, token by token.
public struct RecordedCells: Sendable {
  /// One number of the state: its layer, the state's name, its place.
  public struct Unit: Sendable, Hashable, Codable, CustomStringConvertible {
    public var layer: Int
    public var state: String
    public var index: Int
    public var description: String { "layer \(layer) \(state)[\(index)]" }
  }
  public let units: [Unit]
  /// The bytes of every token.
  public let text: [[UInt8]]
  /// What a unit holds after every token, unit by unit.
  public let values: [[Float]]

  /// - Parameter limit: tokens read at most.
  /// - Throws: `invalidOption` where the model has no vector states or the text fewer than 256 tokens;
  ///   what the device throws.
  public init(
    _ model: LanguageModel, _ tokenizer: any Tokenizer, _ bytes: [UInt8], limit: Int
  ) throws {
    var tokens: [TokenID] = []
    bytes.withUnsafeBufferPointer { tokenizer.encode(utf8: $0, into: &tokens) }
    tokens = Array(tokens.prefix(limit))
    guard tokens.count >= 256 else {
      throw InferenceError.invalidOption(
        name: "text", rule: "must have at least 256 tokens, has \(tokens.count)")
    }
    let entries = model.stateSpecs.enumerated().flatMap { layer, spec in
      spec.entries.filter { $0.kind == .recurrent && $0.shape.rank == 1 }.map { (layer, $0) }
    }
    guard !entries.isEmpty else {
      throw InferenceError.invalidOption(
        name: "model",
        rule: "must have layers whose state is a vector: an LSTM, a GRU or another cell")
    }
    units = entries.flatMap { layer, entry in
      (0..<entry.shape[0]).map { Unit(layer: layer, state: entry.name, index: $0) }
    }
    var state = model.makeState(batch: 1)
    var values = [[Float]](repeating: [], count: units.count)
    for token in tokens {
      let input = Tensor([Int32(token)], shape: [1, 1], on: model.device)
      _ = model.hidden(input, state: &state, form: .recurrent)
      var unit = 0
      for (layer, entry) in entries {
        for value in try state.layers[layer].value(entry.name, on: model.device).floats() {
          values[unit].append(value)
          unit += 1
        }
      }
    }
    self.values = values
    text = try tokens.map { try tokenizer.bytes(of: $0) }
  }
}

/// What a text does after each token that a cell may follow.
public enum TextFeature: String, Sendable, Codable, CaseIterable {
  case quotes, brackets, comment
  case capitals = "capital word"
  case line = "line length"

  /// Whether it is a number and not yes or no.
  public var isNumber: Bool { self == .line }

  /// The feature after every token.
  func values(_ text: [[UInt8]]) -> [Double] {
    var (quoted, depth, column, capitals, slashes, comment) = (false, 0, 0, 0, 0, false)
    return text.map { bytes in
      for byte in bytes {
        let c = Character(Unicode.Scalar(byte))
        // A bracket that was never closed ends with its paragraph.
        if c == "\n", column == 0 { depth = 0 }
        column = c == "\n" ? 0 : column + 1
        slashes = c == "/" ? slashes + 1 : 0
        capitals = ("A"..."Z").contains(c) ? capitals + 1 : 0
        if slashes == 2, !quoted { comment = true }
        switch c {
        // Quotes and comments end with their line, or one that was never closed would turn the rest.
        case "\n": (quoted, comment) = (false, false)
        case "\"" where !comment: quoted.toggle()
        case "(", "[": if !quoted { depth += 1 }
        case ")", "]": if !quoted { depth = max(0, depth - 1) }
        default: break
        }
      }
      switch self {
      case .quotes: return quoted ? 1 : 0
      case .brackets: return depth > 0 ? 1 : 0
      case .comment: return comment ? 1 : 0
      case .capitals: return capitals >= 2 ? 1 : 0
      case .line: return Double(column)
      }
    }
  }
}

/// How well cells follow a feature. Chosen on the first half of the text, scored on the second.
public struct CellProbe: Sendable, Codable {
  public var feature: TextFeature
  /// The part of tokens that have it, or the mean.
  public var frequency: Double
  public var unit: RecordedCells.Unit
  /// One cell: mean of the accuracies on tokens with and without the feature at the best threshold; for
  /// a number the correlation.
  public var unitScore: Double
  /// Whether the cell is high where the feature is not.
  public var isInverted: Bool
  /// The same of a linear map of all cells.
  public var linearScore: Double
}

extension RecordedCells {
  /// Probes of every feature that at least one token in 200 has, and one in 200 has not.
  ///
  /// - Throws: what the device throws.
  public func probes(on device: any Device) throws -> [CellProbe] {
    let half = text.count / 2
    let columns = standardized(half)
    let design = Tensor(columns.flatMap { $0 }, shape: [units.count, text.count], on: device)
    return try TextFeature.allCases.compactMap { feature in
      let target = feature.values(text)
      let mean = target.reduce(0, +) / Double(target.count)
      let halves = [target[..<half], target[half...]].map { $0.reduce(0, +) / Double($0.count) }
      guard feature.isNumber || halves.allSatisfy({ (0.005...0.995).contains($0) }) else {
        return nil
      }
      var best = (unit: 0, score: -1.0, cut: 0.0, sign: 1.0)
      for (u, column) in columns.enumerated() {
        let found =
          feature.isNumber
          ? Probe.correlation(column, target, 0..<half).map { (abs($0), 0.0, $0 < 0 ? -1.0 : 1.0) }
          : Probe.threshold(column, target, 0..<half)
        if let found, found.0 > best.score { best = (u, found.0, found.1, found.2) }
      }
      let test = half..<text.count
      let linear = try Probe.ridge(design, target, half)
      func score(_ values: [Float], _ cut: Double, _ sign: Double) -> Double {
        feature.isNumber
          ? sign * (Probe.correlation(values, target, test) ?? 0)
          : Probe.accuracy(values, target, test, cut: cut, sign: sign)
      }
      let cut = feature.isNumber ? 0 : Probe.threshold(linear, target, 0..<half)?.1 ?? 0
      return CellProbe(
        feature: feature, frequency: mean, unit: units[best.unit],
        unitScore: score(columns[best.unit], best.cut, best.sign), isInverted: best.sign < 0,
        linearScore: score(linear, cut, 1))
    }
  }

  /// Cells with mean 0 and deviation 1 over the first tokens.
  private func standardized(_ count: Int) -> [[Float]] {
    values.map { column in
      let part = column[..<count]
      let mean = part.reduce(0) { $0 + Double($1) } / Double(count)
      let variance =
        part.reduce(0) { $0 + (Double($1) - mean) * (Double($1) - mean) } / Double(count)
      let scale = 1 / max(variance, 1e-12).squareRoot()
      return column.map { Float((Double($0) - mean) * scale) }
    }
  }

  /// A cell's values.
  public func values(of unit: Unit) -> [Float] {
    units.firstIndex(of: unit).map { values[$0] } ?? []
  }
}

/// The fits behind the probes.
private enum Probe {
  static func correlation(_ x: [Float], _ y: [Double], _ range: Range<Int>) -> Double? {
    let n = Double(range.count)
    var (sx, sy, sxx, syy, sxy) = (0.0, 0.0, 0.0, 0.0, 0.0)
    for i in range {
      let a = Double(x[i])
      sx += a
      sy += y[i]
      sxx += a * a
      syy += y[i] * y[i]
      sxy += a * y[i]
    }
    let (vx, vy) = (sxx - sx * sx / n, syy - sy * sy / n)
    return vx > 1e-9 && vy > 1e-9 ? (sxy - sx * sy / n) / (vx * vy).squareRoot() : nil
  }

  /// Mean of the accuracies on both classes of "sign · x > sign · cut".
  static func accuracy(
    _ x: [Float], _ y: [Double], _ range: Range<Int>, cut: Double, sign: Double
  ) -> Double {
    var (right, count) = ([0.0, 0.0], [0.0, 0.0])
    for i in range {
      let label = y[i] > 0 ? 1 : 0
      count[label] += 1
      if (sign * Double(x[i]) > sign * cut) == (label == 1) { right[label] += 1 }
    }
    return (right[0] / max(count[0], 1) + right[1] / max(count[1], 1)) / 2
  }

  /// The best of 63 thresholds: score, cut, sign.
  static func threshold(
    _ x: [Float], _ y: [Double], _ range: Range<Int>
  ) -> (Double, Double, Double)? {
    let bins = 64
    let low = Double(range.map { x[$0] }.min() ?? 0)
    let step = (Double(range.map { x[$0] }.max() ?? 0) - low) / Double(bins)
    guard step > 0 else { return nil }
    var counts = [[Double]](repeating: [Double](repeating: 0, count: bins), count: 2)
    for i in range {
      counts[y[i] > 0 ? 1 : 0][min(bins - 1, Int((Double(x[i]) - low) / step))] += 1
    }
    let totals = counts.map { max($0.reduce(0, +), 1) }
    var below = [0.0, 0.0]
    var best = (0.0, 0.0, 1.0)
    for bin in 0..<bins - 1 {
      for label in 0...1 { below[label] += counts[label][bin] }
      let high = (below[0] / totals[0] + 1 - below[1] / totals[1]) / 2
      let cut = low + Double(bin + 1) * step
      if high > best.0 { best = (high, cut, 1) }
      if 1 - high > best.0 { best = (1 - high, cut, -1) }
    }
    return best
  }

  /// Values for all tokens of the ridge regression that the first `count` give, by conjugate gradients.
  ///
  /// - Parameter design: `[units, tokens]`, standardised.
  static func ridge(_ design: Tensor, _ target: [Double], _ count: Int) throws -> [Float] {
    let units = design.shape[0]
    let train = design.sliced(0..<count, axis: 1)
    let mean = target[..<count].reduce(0, +) / Double(count)
    let y = Tensor(
      target[..<count].map { Float($0 - mean) }, shape: [count, 1], on: design.device)
    let penalty = 0.01 * Double(count)
    func apply(_ w: Tensor) -> Tensor {
      train.matmul(train.matmul(w, transposingLeft: true, precision: .float32), precision: .float32)
        + w * penalty
    }
    var w = Tensor.zeros([units, 1], on: design.device)
    var residual = train.matmul(y, precision: .float32)
    var direction = residual
    var size = try (residual * residual).sum().item()
    let first = size
    for _ in 0..<100 where size > 1e-10 * first {
      let image = apply(direction)
      let along = try (direction * image).sum().item()
      guard along > 0 else { break }
      w = w + direction * (size / along)
      residual = residual - image * (size / along)
      let next = try (residual * residual).sum().item()
      direction = residual + direction * (next / size)
      size = next
    }
    return try design.matmul(w, transposingLeft: true, precision: .float32).floats()
  }
}
