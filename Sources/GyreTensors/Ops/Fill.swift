/// Every element equal to a constant.
public struct Fill: Op {
  public static let name = "fill"
  public let value: Double
  let spec: TensorSpec

  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { [spec] }
  public func reference(_ a: inout HostArguments) {
    for i in a.outputs[0].indices { a.outputs[0][i] = value }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { [] }
  public static let cases: [OpCase] = []
}

/// Conversion to another element type: between floating types to the nearest, ties to even; to
/// integers towards zero, saturating, NaN to 0.
public struct Cast: Op {
  public static let name = "cast"
  public let to: DType

  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { [TensorSpec(inputs[0].shape, to)] }
  public func reference(_ a: inout HostArguments) { a.outputs[0] = a.inputs[0] }
  public func vjp(_ c: VJPContext) -> [Tensor?] { [c.cotangent(0).cast(to: c.inputs[0].dtype)] }
  public var saved: SavedValues { .none }
  public static let cases = [
    OpCase(
      "bfloat16", Cast(to: .bfloat16), [TestInput([7, 33], differentiable: false)], tolerance: 4e-3),
    OpCase(
      "float16", Cast(to: .float16), [TestInput([7, 33], differentiable: false)], tolerance: 5e-4),
  ]
}

extension Tensor {
  /// The same values in another element type.
  public func cast(to dtype: DType) -> Tensor {
    dtype == self.dtype ? self : apply(Cast(to: dtype), [self])[0]
  }
}
