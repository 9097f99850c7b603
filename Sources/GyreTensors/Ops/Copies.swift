/// Some tensors as they are, in memory of their own: y_i = x_i, in one launch where a device can.
public struct Copies: Op {
  public static let name = "copies"
  public init() {}
  public func infer(_ i: [TensorSpec]) -> [TensorSpec] { i }
  public func reference(_ a: inout HostArguments) { a.outputs = a.inputs }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.indices.map { c.cotangents[$0] } }
  public var saved: SavedValues { .none }

  public static let cases = [
    OpCase("three", Copies(), [TestInput([2, 300]), TestInput([3]), TestInput([7, 5, 3])]),
    OpCase("many", Copies(), (1...150).map { TestInput([$0], differentiable: false) }),
  ]
}

extension Tensor {
  /// `assign` of each source to its target, of which none is another's source.
  package static func assign(_ pairs: [(target: Tensor, source: Tensor)]) {
    let moved = pairs.filter { target, source in
      precondition(target.shape == source.shape, "assign: \(source.shape) to \(target.shape)")
      return target.buffer !== source.buffer || target.byteOffset != source.byteOffset
        || target.dtype != source.dtype
    }
    let targets = Set(moved.compactMap { $0.target.buffer.map(ObjectIdentifier.init) })
    let isPlain = moved.allSatisfy { target, source in
      target.dtype == source.dtype
        && source.buffer.map { !targets.contains(ObjectIdentifier($0)) } ?? false
    }
    guard moved.count > 1, isPlain, moved[0].target.device.fuses(Copies()) else {
      for (target, source) in moved { target.assign(source) }
      return
    }
    moved[0].target.device.launch(
      KernelCall(op: Copies(), inputs: moved.map(\.source), outputs: moved.map(\.target)))
  }
}
