/// Values times two kinds of factors, in one pass: y = v ∘ s and z = v ∘ d, as Mamba-2 writes values
/// scaled by the step into its state and adds them to what it reads.
///
/// Inputs: v `[B, T, H, P]`, s `[B, T, H]`, d `[H]` or `[H P]`. Outputs: y and z, like v.
public struct ValueScales: Op, SavesPasses {
  public static let name = "value_scales"
  public init() {}

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (v, n) = (i[0].shape, i[2].shape.elementCount)
    precondition(
      v.rank == 4 && i[1].shape == [v[0], v[1], v[2]] && (n == v[2] || n == v[2] * v[3]),
      "value_scales: \(i.map(\.shape))")
    return [i[0], i[0]]
  }

  /// Where d's factor of an element lies.
  private static func place(_ e: Int, _ v: Shape, _ count: Int) -> Int {
    count == v[2] ? e / v[3] % v[2] : e % (v[2] * v[3])
  }

  public func reference(_ a: inout HostArguments) {
    let (i, v) = (a.inputs, a.inputSpecs[0].shape)
    for e in i[0].indices {
      a.outputs[0][e] = i[0][e] * i[1][e / v[3]]
      a.outputs[1][e] = i[0][e] * i[2][Self.place(e, v, i[2].count)]
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    apply(Backward(), c.inputs + [c.cotangent(0), c.cotangent(1)]).map { $0 }
  }
  public var saved: SavedValues { .inputs }

  /// Gradients of the forward's inputs from those and the two cotangents.
  public struct Backward: Op {
    public static let name = "value_scales_backward"
    public func infer(_ i: [TensorSpec]) -> [TensorSpec] { Array(i[..<3]) }
    public func reference(_ a: inout HostArguments) {
      let (i, v) = (a.inputs, a.inputSpecs[0].shape)
      for e in i[0].indices {
        let d = ValueScales.place(e, v, i[2].count)
        a.outputs[0][e] = i[3][e] * i[1][e / v[3]] + i[4][e] * i[2][d]
        a.outputs[1][e / v[3]] += i[3][e] * i[0][e]
        a.outputs[2][d] += i[4][e] * i[0][e]
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  /// Whether kernels take heads of so many values: eights, of which a power of two up to 32 make a head.
  public static func suits(_ headSize: Int) -> Bool {
    headSize % 8 == 0 && headSize <= 256 && (headSize / 8).nonzeroBitCount == 1
  }

  public static let cases = [(5, 16, 5), (3, 64, 3 * 64), (2, 256, 2)].map { heads, size, count in
    OpCase(
      "\(heads) heads of \(size), \(count) factors", ValueScales(),
      [TestInput([2, 9, heads, size]), TestInput([2, 9, heads]), TestInput([count])])
  }
}

extension Tensor {
  /// v ∘ s and v ∘ d: see `ValueScales`.
  public func scaled(by s: Tensor, and d: Tensor) -> (Tensor, Tensor) {
    let op = ValueScales()
    if device.fuses(op), ValueScales.suits(shape[3]) {
      let y = apply(op, [self, s, d])
      return (y[0], y[1])
    }
    let size = d.elementCount == shape[2] ? 1 : shape[3]
    return (
      self * s.reshaped(Shape(s.shape.dimensions + [1])), self * d.reshaped([shape[2], size])
    )
  }
}
