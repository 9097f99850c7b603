/// From x towards y by a gate: x + (y − x) ∘ σ(gate + bias).
///
/// Inputs: x, y, gate `[…, D]`, bias `[D]`.
public struct GatedBlend: Op, TakesOwnParameters, SumsCotangents, AddsGradients {
  public static let name = "gated_blend"
  public init() {}

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[1].shape == i[0].shape && i[2].shape == i[0].shape
        && [i[0].shape.last, i[0].shape.last * i[0].shape[0]].contains(i[3].shape.elementCount),
      "gated_blend: \(i.map(\.shape))")
    return [i[0]]
  }
  package func parameters(of count: Int) -> Range<Int> { 3..<4 }
  package func sums(output: Int) -> Bool { true }
  package func adds(input: Int) -> Bool { input == 1 }
  private static func gate(_ i: [[Double]], _ e: Int, _ s: Shape) -> Double {
    let own = GatedBlend().place(i[3], s.last, e, of: s.elementCount, s[0])
    return Functions.sigmoid(i[2][e] + i[3][own])
  }
  public func reference(_ a: inout HostArguments) {
    let i = a.inputs
    let s = a.inputSpecs[0].shape
    for e in i[0].indices { a.outputs[0][e] = i[0][e] + (i[1][e] - i[0][e]) * Self.gate(i, e, s) }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = Backward(hasSecond: c.more[0] != nil, adds: c.before[1] != nil)
    return applyPresent(op, c.inputs.map { $0 } + [c.cotangent(0), c.more[0], c.before[1]]).map {
      $0
    }
  }
  public var saved: SavedValues { .inputs }

  /// Gradients of the forward's inputs from those, the cotangent, where present a second term of it and
  /// a gradient of y to which this one is added.
  public struct Backward: Op {
    public static let name = "gated_blend_backward"
    public var hasSecond = false
    public var adds = false
    public func infer(_ i: [TensorSpec]) -> [TensorSpec] { Array(i[..<4]) }
    public func reference(_ a: inout HostArguments) {
      let i = a.inputs
      for e in i[0].indices {
        let s = GatedBlend.gate(i, e, a.inputSpecs[0].shape)
        let d = i[4][e] + (hasSecond ? i[5][e] : 0)
        let dGate = d * (i[1][e] - i[0][e]) * s * (1 - s)
        a.outputs[0][e] = d * (1 - s)
        a.outputs[1][e] = d * s + (adds ? i[i.count - 1][e] : 0)
        a.outputs[2][e] = dGate
        a.outputs[3][e % i[3].count] += dGate
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  public static let cases =
    [40, 280].map { width in
      let x: Shape = [2, 9, width]
      return OpCase("width \(width)", GatedBlend(), [x, x, x, [width]].map { TestInput($0) })
    } + [
      OpCase(
        "own", GatedBlend(),
        [[3, 9, 40], [3, 9, 40], [3, 9, 40], [3, 40]].map {
          TestInput(Shape($0), differentiable: false)
        }),
      OpCase(
        "two cotangents", Backward(hasSecond: true, adds: true),
        [[2, 9, 40], [2, 9, 40], [2, 9, 40], [40], [2, 9, 40], [2, 9, 40], [2, 9, 40]].map {
          TestInput(Shape($0), differentiable: false)
        }),
    ]
}
