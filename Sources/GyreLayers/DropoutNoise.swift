import GyreTensors

/// Where dropout's random choices of one training step come from. Absent: nothing is dropped, as in
/// evaluation. A choice is a pure function of seed, step, name and place, so a step that is run again,
/// for a resumed run or to recompute activations, makes the same ones.
public struct DropoutNoise: Sendable, Hashable {
  public var seed: UInt64
  public var step: UInt64

  public init(seed: UInt64, step: UInt64) {
    self.seed = seed
    self.step = step
  }

  private func generator(_ name: String) -> CounterGenerator {
    var g = CounterGenerator(seed: seed, name: "dropout " + name)
    g.stream ^= step &* 0x9E37_79B9_7F4A_7C15
    return g
  }

  /// 1 with probability `rate` and 0 otherwise.
  public func choices(_ shape: Shape, rate: Double, name: String, on device: any Device) -> Tensor {
    elements(shape, rate, name, chosen: 1, others: 0, device)
  }

  /// 0 with probability `rate` and 1 / (1 − rate) otherwise, so that the mean is 1.
  ///
  /// - Precondition: `rate` is in [0, 1).
  public func mask(_ shape: Shape, rate: Double, name: String, on device: any Device) -> Tensor {
    elements(shape, rate, name, chosen: 0, others: Float(1 / (1 - rate)), device)
  }

  private func elements(
    _ shape: Shape, _ rate: Double, _ name: String, chosen: Float, others: Float,
    _ device: any Device
  ) -> Tensor {
    precondition((0..<1).contains(rate), "dropout: a rate of \(rate)")
    return .choice(rate, chosen, else: others, shape, generator(name), on: device)
  }
}

extension Tensor {
  /// The same with elements dropped, `[B, T, D]`; unchanged without noise.
  ///
  /// - Parameter sharesTime: one choice a row and channel for all tokens (variational dropout).
  public func dropped(
    _ rate: Double, _ noise: DropoutNoise?, name: String, sharesTime: Bool = false
  ) -> Tensor {
    guard let noise, rate > 0 else { return self }
    let one: Shape = sharesTime ? [shape[0], 1, shape[2]] : shape
    return self * noise.mask(one, rate: rate, name: name, on: device)
  }
}
