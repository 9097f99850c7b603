/// `ShortConvolution` without resets whose channels come out as tensors of their own.
///
/// Inputs: x `[B, T, D]`, w `[D, W]`, then bias and window as there. Outputs: y_p `[B, T, D_p]` with
/// Σ D_p = D, and the window that follows.
public struct PiecedConvolution: Op, SavesPasses {
  public static let name = "pieced_convolution"
  /// Most pieces that kernels take.
  public static let limit = 4
  public let convolution: ShortConvolution
  public let pieces: [Int]

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let whole = convolution.infer(i)
    precondition(
      pieces.reduce(0, +) == i[0].shape[2], "pieced_convolution: \(pieces) of \(i[0].shape)")
    return pieces.map { TensorSpec([i[0].shape[0], i[0].shape[1], $0], i[0].dtype) } + whole[1...]
  }

  public func reference(_ a: inout HostArguments) {
    var whole = HostArguments(
      inputs: a.inputs, inputSpecs: a.inputSpecs, outputSpecs: convolution.infer(a.inputSpecs))
    convolution.reference(&whole)
    let width = pieces.reduce(0, +)
    var start = 0
    for (p, n) in pieces.enumerated() {
      for e in a.outputs[p].indices {
        a.outputs[p][e] = whole.outputs[0][e / max(n, 1) * width + start + e % max(n, 1)]
      }
      start += n
    }
    a.outputs[pieces.count] = whole.outputs[1]
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let last = c.cotangents[pieces.count]
    let g = applyPresent(
      Backward(forward: self, hasWindowCotangent: last != nil),
      c.inputs.map { $0 } + pieces.indices.map { c.cotangent($0) } + [last])
    return g.map { $0 }
  }
  public var saved: SavedValues { .inputs }

  /// Inputs: the forward's, the pieces' cotangents, the final window's where present. Outputs:
  /// gradients of the forward's inputs.
  public struct Backward: Op {
    public static let name = "pieced_convolution_backward"
    public let forward: PiecedConvolution
    public let hasWindowCotangent: Bool
    /// Inputs of the forward.
    public var first: Int { forward.convolution.optional.gather { $0 }.count }
    private var whole: ShortConvolution.Backward {
      .init(forward: forward.convolution, hasWindowCotangent: hasWindowCotangent)
    }

    public func infer(_ i: [TensorSpec]) -> [TensorSpec] { whole.infer(i) }
    public func reference(_ a: inout HostArguments) {
      let width = forward.pieces.reduce(0, +)
      var dy = [Double](repeating: 0, count: a.inputs[0].count)
      var start = 0
      for (p, n) in forward.pieces.enumerated() {
        for (e, value) in a.inputs[first + p].enumerated() {
          dy[e / n * width + start + e % n] = value
        }
        start += n
      }
      let rest = Array(a.inputs[(first + forward.pieces.count)...])
      var arguments = HostArguments(
        inputs: Array(a.inputs[..<first]) + [dy] + rest,
        inputSpecs: Array(a.inputSpecs[..<first]) + [a.inputSpecs[0]]
          + a.inputSpecs[(first + forward.pieces.count)...],
        outputSpecs: a.outputSpecs)
      whole.reference(&arguments)
      a.outputs = arguments.outputs
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  public static let cases =
    [(4, true, 70), (3, false, 37), (4, true, 2)].flatMap {
      width, activates, tokens in
      [true, false].map { full in
        OpCase(
          "\(width) taps \(full ? "full" : "plain") T \(tokens)",
          PiecedConvolution(
            convolution: ShortConvolution(
              activates: activates, optional: OptionalInputs([true, true, full, full, false])),
            pieces: [4, 12, 8]),
          [TestInput([2, tokens, 24]), TestInput([24, width])]
            + (full ? [TestInput([24]), TestInput([2, width - 1, 24])] : []))
      }
    }
    + [(4, true, 70), (3, false, 37)].map { width, activates, tokens in
      OpCase(
        "\(width) taps bfloat16 T \(tokens)",
        PiecedConvolution(
          convolution: ShortConvolution(
            activates: activates, optional: OptionalInputs([true, true, true, false, false])),
          pieces: activates ? [48, 32, 16] : [20, 4]),
        [
          TestInput([2, tokens, activates ? 96 : 24]).stored(as: .bfloat16),
          TestInput([activates ? 96 : 24, width]), TestInput([activates ? 96 : 24]),
        ], tolerance: 6e-3, gradientTolerance: 1e-2, differenceTolerance: 1e-2)
    }
}
