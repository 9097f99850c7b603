/// Every element one of two values by chance: `chosen` where uniform number i of the generator is below
/// `rate`, `other` elsewhere. The same on every device.
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
    a.outputs[0] = generator.uniforms(spec.shape.elementCount).map {
      Double(Double($0) < rate ? chosen : other)
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { [] }
  public static let cases: [OpCase] = []
}

extension Tensor {
  /// `chosen` with probability `rate` and `other` elsewhere, element by element.
  public static func choice(
    _ rate: Double, _ chosen: Float, else other: Float, _ shape: Shape,
    _ generator: CounterGenerator, on device: any Device
  ) -> Tensor {
    let t = Tensor(emptyWith: TensorSpec(shape), on: device)
    device.launch(
      KernelCall(
        op: RandomChoice(
          generator: generator, rate: rate, chosen: chosen, other: other, spec: t.spec),
        inputs: [], outputs: [t]))
    return t
  }
}
