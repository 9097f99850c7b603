/// Rotary position embedding: pairs (a, b) of the first R channels of a head turn by the angle
/// position · base^(−2i/R), i the pair.
///
/// Su et al., "RoFormer", 2021. https://arxiv.org/abs/2104.09864. Input and output `[B, T, H, K]`.
public struct Rotary: Op {
  public static let name = "rotary"
  public let base: Double
  /// Position of the first token.
  public let positionOffset: Int
  /// Pairs (2i, 2i + 1) rather than (i, i + R/2).
  public let interleaved: Bool
  /// R, even.
  public let rotated: Int
  /// Turns the other way: the derivative's transpose.
  public let inverts: Bool

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[0].shape.rank == 4 && rotated % 2 == 0 && rotated <= i[0].shape[3],
      "rotary: \(rotated) channels of \(i[0].shape)")
    return [i[0]]
  }

  /// The angle of pair `i` at token `t`.
  public func angle(_ t: Int, _ i: Int) -> Double {
    Double(positionOffset + t) * Functions.pow(base, -2 * Double(i) / Double(rotated))
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    a.outputs[0] = a.inputs[0]
    for row in 0..<s[0] * s[1] * s[2] {
      let t = row / s[2] % s[1]
      for i in 0..<rotated / 2 {
        let (first, second) = interleaved ? (2 * i, 2 * i + 1) : (i, i + rotated / 2)
        let (x, y) = (a.inputs[0][row * s[3] + first], a.inputs[0][row * s[3] + second])
        let cosine = Functions.cos(angle(t, i))
        let sine = Functions.sin(angle(t, i)) * (inverts ? -1 : 1)
        a.outputs[0][row * s[3] + first] = x * cosine - y * sine
        a.outputs[0][row * s[3] + second] = x * sine + y * cosine
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = Rotary(
      base: base, positionOffset: positionOffset, interleaved: interleaved, rotated: rotated,
      inverts: !inverts)
    return [apply(op, [c.cotangent(0)])[0]]
  }
  public var saved: SavedValues { .none }
  public static let cases = [false, true].flatMap { interleaved in
    [(16, 16), (16, 12), (40, 32)].map { size, rotated in
      OpCase(
        "\(interleaved ? "interleaved" : "halves") \(rotated)",
        Rotary(
          base: 10_000, positionOffset: 3, interleaved: interleaved, rotated: rotated,
          inverts: false),
        [TestInput([2, 11, 3, size])])
    } + [
      OpCase(
        "bfloat16 \(interleaved ? "interleaved" : "halves")",
        Rotary(
          base: 10_000, positionOffset: 3, interleaved: interleaved, rotated: 32, inverts: false),
        [TestInput([2, 11, 3, 40]).stored(as: .bfloat16)], tolerance: 5e-3, gradientTolerance: 5e-3,
        differenceTolerance: 1e-2)
    ]
  }
}

/// Rotary positions at given rates: pair i of the first 2·rates.count channels of a head turns by
/// position · rates[i] and grows by `magnitude`.
///
/// What scaled rotary embeddings need, such as YaRN: Peng et al., "YaRN", 2023.
/// https://arxiv.org/abs/2309.00071. Input and output `[B, T, H, K]`.
public struct RotaryAtRates: Op {
  public static let name = "rotary_at_rates"
  public let rates: [Double]
  public let magnitude: Double
  /// Position of the first token.
  public let positionOffset: Int
  /// Pairs (2i, 2i + 1) rather than (i, i + R/2).
  public let interleaved: Bool
  /// Turns the other way: the derivative's transpose.
  public let inverts: Bool

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[0].shape.rank == 4 && 2 * rates.count <= i[0].shape[3],
      "rotary: \(2 * rates.count) channels of \(i[0].shape)")
    return [i[0]]
  }
  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    a.outputs[0] = a.inputs[0]
    for row in 0..<s[0] * s[1] * s[2] {
      let position = Double(positionOffset + row / s[2] % s[1])
      for (i, rate) in rates.enumerated() {
        let (first, second) = interleaved ? (2 * i, 2 * i + 1) : (i, i + rates.count)
        let (x, y) = (a.inputs[0][row * s[3] + first], a.inputs[0][row * s[3] + second])
        let cosine = magnitude * Functions.cos(position * rate)
        let sine = magnitude * Functions.sin(position * rate) * (inverts ? -1 : 1)
        a.outputs[0][row * s[3] + first] = x * cosine - y * sine
        a.outputs[0][row * s[3] + second] = x * sine + y * cosine
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = RotaryAtRates(
      rates: rates, magnitude: magnitude, positionOffset: positionOffset, interleaved: interleaved,
      inverts: !inverts)
    return [apply(op, [c.cotangent(0)])[0]]
  }
  public var saved: SavedValues { .none }
  public static let cases =
    [false, true].map { interleaved in
      OpCase(
        interleaved ? "interleaved" : "halves",
        RotaryAtRates(
          rates: [1, 0.3, 0, 0.01, 0.002], magnitude: 1.2, positionOffset: 7,
          interleaved: interleaved, inverts: false), [TestInput([2, 11, 3, 16])])
    } + [
      OpCase(
        "many rates",
        RotaryAtRates(
          rates: (0..<150).map { 1 / Double(1 + $0) }, magnitude: 1, positionOffset: 3,
          interleaved: false, inverts: false), [TestInput([1, 3, 2, 304])])
    ]
}

extension Tensor {
  /// Rotary positions on `[B, T, H, K]`; see `Rotary`. All channels where `rotated` is nil.
  public func rotated(
    base: Double = 10_000, positionOffset: Int, interleaved: Bool = false, rotated: Int? = nil
  ) -> Tensor {
    let op = Rotary(
      base: base, positionOffset: positionOffset, interleaved: interleaved,
      rotated: rotated ?? shape[3], inverts: false)
    return apply(op, [self])[0]
  }

  /// Rotary positions at given rates; see `RotaryAtRates`.
  public func rotated(
    rates: [Double], magnitude: Double = 1, positionOffset: Int, interleaved: Bool = false
  ) -> Tensor {
    let op = RotaryAtRates(
      rates: rates, magnitude: magnitude, positionOffset: positionOffset, interleaved: interleaved,
      inverts: false)
    return apply(op, [self])[0]
  }
}
