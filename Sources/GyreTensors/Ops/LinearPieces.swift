/// A linear map whose outputs are tensors of their own: y_p = x W_pᵀ with W_p consecutive rows of W.
///
/// Inputs: x `[…, K]`, W `[N, K]`. Outputs `[…, N_p]` with Σ N_p = N. A projection and a split of it in
/// one, without the copy.
public struct LinearPieces: Op, SavesPasses {
  public static let name = "linear_pieces"
  public let pieces: [Int]
  public let precision: ComputePrecision
  /// Element type of the outputs.
  public let output: DType

  /// Where each piece's rows of W start.
  public var starts: [Int] { pieces.indices.map { pieces[..<$0].reduce(0, +) } }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[1].shape.rank == 2 && i[0].shape.last == i[1].shape[1]
        && pieces.reduce(0, +) == i[1].shape[0],
      "linear_pieces: x \(i[0].shape), w \(i[1].shape), pieces \(pieces)")
    return pieces.map { n in
      var shape = i[0].shape
      shape[-1] = n
      return TensorSpec(shape, output)
    }
  }

  public func reference(_ a: inout HostArguments) {
    let k = a.inputSpecs[1].shape[1]
    for (p, (n, start)) in zip(pieces, starts).enumerated() {
      for r in 0..<a.inputSpecs[0].shape.rowCount {
        for j in 0..<n {
          a.outputs[p][r * n + j] = (0..<k).reduce(0) {
            $0 + a.inputs[0][r * k + $1] * a.inputs[1][(start + j) * k + $1]
          }
        }
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    var op = Backward(forward: self, needsInput: c.needs[0])
    let inputs = c.inputs + pieces.indices.map { c.cotangent($0) }
    guard let sum = c.sums[1], sum.device.fuses(op) else {
      let g = apply(op, inputs)
      return c.needs[0] ? [g[1], g[0]] : [nil, g[0]]
    }
    op.adds = true
    let dx = c.needs[0] ? Tensor(emptyWith: c.inputs[0].spec, on: sum.device) : nil
    sum.device.launch(
      KernelCall(op: op, inputs: inputs + [sum], outputs: [sum] + (dx.map { [$0] } ?? [])))
    return [dx, sum]
  }
  public var saved: SavedValues { .inputs }

  /// Inputs: x, W, the pieces' cotangents and perhaps a sum to which the gradient of W is added. Outputs:
  /// the gradient of W or the sum, which may be the same tensor, and the gradient of x where it is needed.
  public struct Backward: Op, SavesPasses {
    public static let name = "linear_pieces_backward"
    public let forward: LinearPieces
    public let needsInput: Bool
    public var adds = false
    public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
      [TensorSpec(i[1].shape)] + (needsInput ? [i[0]] : [])
    }
    public func reference(_ a: inout HostArguments) {
      let k = a.inputSpecs[1].shape[1]
      if adds { a.outputs[0] = a.inputs[2 + forward.pieces.count] }
      for (p, (n, start)) in zip(forward.pieces, forward.starts).enumerated() {
        for r in 0..<a.inputSpecs[0].shape.rowCount {
          for j in 0..<n {
            let d = a.inputs[2 + p][r * n + j]
            for l in 0..<k {
              a.outputs[0][(start + j) * k + l] += d * a.inputs[0][r * k + l]
              if needsInput { a.outputs[1][r * k + l] += d * a.inputs[1][(start + j) * k + l] }
            }
          }
        }
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  public static let cases = [
    OpCase(
      "three", LinearPieces(pieces: [17, 8, 40], precision: .float32, output: .float32),
      [TestInput([2, 9, 33]), TestInput([65, 33])]),
    OpCase(
      "bfloat16", LinearPieces(pieces: [16, 48], precision: .bfloat16, output: .bfloat16),
      [TestInput([70, 64]), TestInput([64, 64])], tolerance: 9e-3, gradientTolerance: 9e-3,
      differenceTolerance: 1e-2),
    OpCase(
      "bfloat16 input",
      LinearPieces(pieces: [16, 32, 16], precision: .bfloat16, output: .bfloat16),
      [TestInput([70, 64]).stored(as: .bfloat16), TestInput([64, 64])], tolerance: 9e-3,
      gradientTolerance: 9e-3, differenceTolerance: 1e-2),
  ]
}

extension Tensor {
  /// x Wᵀ, split along the last axis; `output`: the element type, nil for that of activations.
  public func linear(_ weight: Tensor, pieces: [Int], output: DType? = nil) -> [Tensor] {
    let op = LinearPieces(
      pieces: pieces, precision: .current,
      output: output ?? ComputePrecision.activations(on: device))
    if pieces.count == 1 { return [linear(weight, output: output)] }
    // Few rows and looked up ones are better multiplied together, and those of a table split before they
    // are looked up.
    guard note == nil, shape.rowCount > 64, !weight.dtype.isQuantized, device.fuses(op) else {
      if Perturbation.current != nil { return linear(weight).split(pieces) }
      return mapRows { $0.linear(weight, output: output).split(pieces) }
    }
    return apply(op, [self, weight])
  }
}
