/// Every element one of two values by chance: `chosen` where uniform number i of the generator is below
/// `rate`, `other` elsewhere. The same on every device.
///
/// Input, where there is one: a step n, int64 `[1]`, that is mixed into the generator's stream.
public struct RandomChoice: Op {
  public static let name = "random_choice"
  public let generator: CounterGenerator
  public let rate: Double
  public let chosen, other: Float
  let spec: TensorSpec

  /// A uniform number (w + ½) 2⁻²³ of a 23-bit word w is below the rate just where w is below this.
  public var bound: UInt32 {
    UInt32(min(max((rate * 0x1p23 - 0.5).rounded(.up), 0), 0x1p23))
  }

  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { [spec] }
  public func reference(_ a: inout HostArguments) {
    let source = a.inputs.first.map { generator.mixed(with: UInt64($0[0])) } ?? generator
    a.outputs[0] = source.uniforms(spec.shape.elementCount).map {
      Double(Double($0) < rate ? chosen : other)
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases = [
    OpCase(
      "step",
      RandomChoice(
        generator: CounterGenerator(seed: 7, name: "choice"), rate: 0.3, chosen: 0, other: 1.5,
        spec: TensorSpec([5, 203])),
      [
        TestInput([1], .constant(123_456_789_012), differentiable: false).stored(as: .int64)
      ])
  ]
}

extension CounterGenerator {
  /// The generator of step n of what this one is for.
  public func mixed(with step: UInt64) -> CounterGenerator {
    CounterGenerator(seed: seed, stream: stream ^ (step &* 0x9E37_79B9_7F4A_7C15))
  }
}

extension Tensor {
  /// `chosen` with probability `rate` and `other` elsewhere, element by element.
  ///
  /// - Parameter step: int64 `[1]`, mixed into the generator's stream; nil leaves it as it is.
  public static func choice(
    _ rate: Double, _ chosen: Float, else other: Float, _ shape: Shape,
    _ generator: CounterGenerator, step: Tensor? = nil, on device: any Device
  ) -> Tensor {
    let t = Tensor(emptyWith: TensorSpec(shape), on: device)
    device.launch(
      KernelCall(
        op: RandomChoice(
          generator: generator, rate: rate, chosen: chosen, other: other, spec: t.spec),
        inputs: step.map { [$0] } ?? [], outputs: [t]))
    return t
  }
}
