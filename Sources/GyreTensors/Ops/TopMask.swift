/// 1 at the k largest elements of the last axis, the first of equals, and 0 elsewhere: the choice of
/// a router. Float32 of the input's shape; no gradient.
public struct TopMask: Op {
  public static let name = "top_mask"
  public let count: Int
  public init(count: Int) { self.count = count }

  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] {
    precondition(
      (1...max(inputs[0].shape.last, 1)).contains(count),
      "top_mask: \(count) of \(inputs[0].shape)")
    return [TensorSpec(inputs[0].shape)]
  }
  public func reference(_ a: inout HostArguments) {
    let n = a.inputSpecs[0].shape.last
    for r in 0..<a.inputSpecs[0].shape.rowCount {
      for _ in 0..<count {
        var best: Int?
        for j in r * n..<(r + 1) * n where a.outputs[0][j] == 0 {
          if best.map({ a.inputs[0][j] > a.inputs[0][$0] }) ?? true { best = j }
        }
        if let best { a.outputs[0][best] = 1 }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { [nil] }
  public var saved: SavedValues { .none }
  public static let cases = [
    OpCase("two of seven", TopMask(count: 2), [TestInput([5, 7], differentiable: false)]),
    OpCase("all", TopMask(count: 3), [TestInput([4, 3], differentiable: false)]),
  ]
}

extension Tensor {
  /// 1 at the `count` largest elements of the last axis, 0 elsewhere.
  public func topMask(_ count: Int) -> Tensor { apply(TopMask(count: count), [self])[0] }
}
