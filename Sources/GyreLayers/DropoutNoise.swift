import GyreTensors

/// Where dropout's random choices of one training step come from. Absent: nothing is dropped, as in
/// evaluation. A choice is a pure function of seed, step, name and place, so a step that is run again,
/// for a resumed run or to recompute activations, makes the same ones.
public struct DropoutNoise: Sendable {
  public var seed: UInt64
  private enum Step: Sendable {
    case number(UInt64)
    /// int64 `[1]`, so that recorded work makes new choices each time.
    case tensor(Tensor)
  }
  private let step: Step

  public init(seed: UInt64, step: UInt64) {
    self.seed = seed
    self.step = .number(step)
  }

  /// - Parameter step: int64 `[1]`, read by the device.
  public init(seed: UInt64, step: Tensor) {
    self.seed = seed
    self.step = .tensor(step)
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
    let generator = CounterGenerator(seed: seed, name: "dropout " + name)
    return switch step {
    case .number(let n):
      .choice(rate, chosen, else: others, shape, generator.mixed(with: n), on: device)
    case .tensor(let t):
      .choice(rate, chosen, else: others, shape, generator, step: t, on: device)
    }
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
