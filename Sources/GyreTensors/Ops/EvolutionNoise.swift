/// Noise of a population, made from a counter and never stored:
///
///     number i of a member = (Σ of the four bytes of word i − 510) / √21845
///
/// where word i is word i mod 4 of Philox 4x32-10 with key `seed` and counter (i / 4, member div 2, leaf,
/// epoch). Mean 0, variance 1, symmetric, at most 3.45 in size; whole numbers times one constant, so that
/// every device gives the same bits. Members 2j and 2j + 1 are a pair and share their numbers.
///
/// Input: members int32 `[R]`, negative for rows without noise. Output: `[R, count]`.
public struct EvolutionNoise: Op {
  public static let name = "evolution_noise"
  public var seed: UInt64
  public var epoch: UInt32
  /// Number of the parameter.
  public var leaf: UInt32
  /// The first i, a multiple of 4.
  public var first: UInt32
  public var count: Int
  /// Multiplies the numbers; `isSigned` negates those of odd members.
  public var scale: Double
  public var isSigned: Bool

  public init(
    seed: UInt64, epoch: UInt32, leaf: UInt32, first: UInt32 = 0, count: Int, scale: Double = 1,
    isSigned: Bool = false
  ) {
    precondition(first % 4 == 0, "evolution_noise: first \(first) is not a multiple of 4")
    self.seed = seed
    self.epoch = epoch
    self.leaf = leaf
    self.first = first
    self.count = count
    self.scale = scale
    self.isSigned = isSigned
  }

  /// What a sum of bytes less 510 is multiplied by.
  public var factor: Float { Float(scale / 21845.0.squareRoot()) }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[0].dtype == .int32 && i[0].shape.rank == 1, "evolution_noise: members \(i[0])")
    return [TensorSpec([i[0].shape[0], count])]
  }

  public func reference(_ a: inout HostArguments) {
    let generator = CounterGenerator(seed: seed, stream: UInt64(epoch) << 32 | UInt64(leaf))
    for (r, member) in a.inputs[0].enumerated() where member >= 0 {
      let pair = UInt64(member) / 2
      let sign: Float = isSigned && Int(member) % 2 == 1 ? -1 : 1
      for i in 0..<count {
        let number = UInt64(first) + UInt64(i)
        let word = generator.words(pair << 32 | number / 4)[Int(number % 4)]
        let bytes = (0..<4).reduce(UInt32(0)) { $0 + (word >> (8 * UInt32($1)) & 255) }
        a.outputs[0][r * count + i] = Double(Float(Int(bytes) - 510) * (sign * factor))
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] { [nil] }
  public var saved: SavedValues { .none }
  public static let cases = [
    OpCase(
      "signed",
      EvolutionNoise(
        seed: 0x1234_5678_9ABC, epoch: 3, leaf: 2, first: 1 << 31, count: 101, scale: 0.25,
        isSigned: true), [.integers([9], -1, 50)], tolerance: 0),
    OpCase(
      "unsigned", EvolutionNoise(seed: 1, epoch: 0, leaf: 0, count: 64), [.integers([3], 0, 4)],
      tolerance: 0),
  ]
}
