/// What gated recurrences make of a small projection, in one pass: with a rate e^a and a bias a head
///
///     s = softplus(z + b)    g = −e^a s
///
/// and where columns of the projection are write strengths, β = c σ(z'). Gu and Dao, "Mamba", 2023; Yang,
/// Kautz and Hatamizadeh, "Gated delta networks", 2024.
///
/// Inputs: z `[…, H]`, with write strengths z and z' as `[…, 2 H]`; b, a `[H]`. Outputs `[…, H]`: g, then
/// β where there are write strengths, otherwise s.
public struct StepGates: Op {
  public static let name = "step_gates"
  /// c; nil without write strengths.
  public let strength: Double?

  public init(strength: Double? = nil) { self.strength = strength }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let heads = i[1].shape.elementCount
    precondition(
      i[0].shape.last == heads * (strength == nil ? 1 : 2) && i[2].shape.elementCount == heads,
      "step_gates: \(i.map(\.shape))")
    var shape = i[0].shape
    shape[-1] = heads
    return [TensorSpec(shape, i[0].dtype), TensorSpec(shape, i[0].dtype)]
  }

  /// Of each element of the outputs: z, e^a and the head.
  private func each(_ i: [[Double]], _ body: (Int, _ z: Int, _ rate: Double, _ head: Int) -> Void) {
    let heads = i[1].count
    let width = heads * (strength == nil ? 1 : 2)
    for e in 0..<i[0].count / max(width, 1) * heads {
      let h = e % heads
      body(e, e / heads * width + h, Functions.exp(i[2][h]), h)
    }
  }

  public func reference(_ a: inout HostArguments) {
    let i = a.inputs
    var (g, second) = (a.outputs[0], a.outputs[1])
    each(i) { e, z, rate, h in
      let s = Functions.softplus(i[0][z] + i[1][h])
      g[e] = -rate * s
      second[e] = strength.map { $0 * Functions.sigmoid(i[0][z + i[1].count]) } ?? s
    }
    a.outputs = [g, second]
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let g = apply(Backward(forward: self), c.inputs + [c.cotangent(0), c.cotangent(1)])
    return [g[0]] + g[1].aliasedRows(as: c.inputs[1...].map(\.shape))
  }
  public var saved: SavedValues { .inputs }

  /// Inputs: the forward's, then the cotangents. Outputs: gradients of z, and of b and a together, `[2, H]`.
  public struct Backward: Op {
    public static let name = "step_gates_backward"
    public let forward: StepGates
    public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
      [i[0], TensorSpec([2, i[1].shape.elementCount])]
    }
    public func reference(_ a: inout HostArguments) {
      let i = a.inputs
      let heads = i[1].count
      var (dz, sums) = (a.outputs[0], a.outputs[1])
      forward.each(i) { e, z, rate, h in
        let x = i[0][z] + i[1][h]
        let ds = (forward.strength == nil ? i[4][e] : 0) - rate * i[3][e]
        dz[z] = ds * Functions.sigmoid(x)
        sums[h] += dz[z]
        sums[heads + h] -= i[3][e] * rate * Functions.softplus(x)
        if let strength = forward.strength {
          let s = Functions.sigmoid(i[0][z + heads])
          dz[z + heads] = i[4][e] * strength * s * (1 - s)
        }
      }
      a.outputs = [dz, sums]
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  public static let cases = [(nil, 5), (1, 24), (2, 300)].map { strength, heads in
    OpCase(
      "\(heads) heads" + (strength.map { ", strength \(Int($0))" } ?? ""),
      StepGates(strength: strength),
      [
        TestInput([2, 37, heads * (strength == nil ? 1 : 2)]), TestInput([heads]),
        TestInput([heads], .normal(scale: 0.5)),
      ], gradientTolerance: 2e-5)
  }
}
