import GyreTensors

/// A linear recurrence whose transition is a small matrix of the token's own for each block,
///
///     hₜ = Aₜ hₜ₋₁ + uₜ    A block-diagonal with H blocks n × n
///
/// State: "h" `[H, n]`. 2·n flops an element.
public struct BlockScan: RecurrenceEngine {
  public let blocks, size: Int
  public init(blocks: Int, size: Int) { (self.blocks, self.size) = (blocks, size) }

  public struct Inputs: Sendable {
    /// A by columns, `[B, T, H, n, n]`: element (j, i) takes hⱼ to hᵢ.
    public var columns: Tensor
    /// u `[B, T, H, n]`.
    public var input: Tensor
    public init(columns: Tensor, input: Tensor) { (self.columns, self.input) = (columns, input) }
  }

  public var stateSpec: StateSpec { StateSpec([.init("h", [blocks, size])]) }

  /// Every form walks the tokens: products of the matrices would cost n times more.
  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let inputs = [i.columns, i.input, state["h"], reset]
    let outputs = applyPresent(
      BlockScanForward(optional: OptionalInputs(inputs.map { $0 != nil })), inputs)
    state["h"] = outputs[1]
    return outputs[0]
  }
}

/// Possible inputs: A by columns, u, h₀, reset. Outputs: h, final h.
public struct BlockScanForward: Op {
  public static let name = "block_scan"
  public let optional: OptionalInputs

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (a, u) = (i[0].shape, i[1].shape)
    precondition(
      u.rank == 4 && a == [u[0], u[1], u[2], u[3], u[3]], "block_scan: matrices \(a), input \(u)")
    return [i[1], TensorSpec([u[0], u[2], u[3]])]
  }

  func isReset(_ a: [[Double]], _ token: Int) -> Bool { (optional.pick(3, a)?[token] ?? 0) != 0 }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[1].shape
    let (T, n, width) = (s[1], s[3], s[2] * s[3])
    for b in 0..<s[0] {
      var h =
        optional.pick(2, a.inputs).map { Array($0[b * width..<(b + 1) * width]) }
        ?? [Double](repeating: 0, count: width)
      for t in 0..<T {
        let token = b * T + t
        if isReset(a.inputs, token) { h = [Double](repeating: 0, count: width) }
        var next = Array(a.inputs[1][token * width..<(token + 1) * width])
        for c in 0..<width {
          let row = (token * width + c) * n
          for i in 0..<n { next[c / n * n + i] += a.inputs[0][row + i] * h[c] }
        }
        h = next
        for c in 0..<width { a.outputs[0][token * width + c] = h[c] }
      }
      for c in 0..<width { a.outputs[1][b * width + c] = h[c] }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = BlockScanBackward(
      forward: self, inputCount: c.inputs.count, hasFinal: c.cotangents[1] != nil)
    let g = applyPresent(
      op, c.inputs.map { $0 } + [c.outputs[0], c.cotangent(0), c.cotangents[1]])
    return optional.gather { i in i < 3 ? g[i] : nil }
  }
  public var saved: SavedValues {
    SavedValues(keepsInput: { $0 != 1 }, keepsOutput: { $0 == 0 })
  }

  public static let cases: [OpCase] = {
    func make(_ label: String, _ n: Int, full: Bool, type: DType = .float32) -> OpCase {
      let inputs: [TestInput?] = [
        TestInput([2, 37, 3, n, n], .normal(scale: 0.6 / Double(n).squareRoot())).stored(as: type),
        TestInput([2, 37, 3, n]).stored(as: type),
        full ? TestInput([2, 3, n]) : nil, full ? testResets(batch: 2, tokens: 37) : nil,
      ]
      let op = BlockScanForward(optional: OptionalInputs(inputs.map { $0 != nil }))
      guard type == .bfloat16 else { return OpCase(label, op, inputs.compactMap { $0 }) }
      return OpCase(
        label, op, inputs.compactMap { $0 }, tolerance: 1e-2, gradientTolerance: 1e-2,
        differenceTolerance: 1e-2)
    }
    return [
      make("plain", 4, full: false), make("full", 4, full: true), make("3", 3, full: true),
      make("8", 8, full: true), make("11", 11, full: false), make("32", 32, full: true),
      make("40", 40, full: true), make("8 bfloat16", 8, full: true, type: .bfloat16),
    ]
  }()
}

/// Inputs: the forward's, h, dh, then d final h where present. Outputs: gradients of A, u and, where it
/// is present, h₀.
///
///     λₜ = dhₜ + Aₜ₊₁ᵀ λₜ₊₁    du = λ    dAₜ = λₜ hₜ₋₁ᵀ
public struct BlockScanBackward: Op {
  public static let name = "block_scan_backward"
  public let forward: BlockScanForward
  public let inputCount: Int
  public let hasFinal: Bool

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    (0..<3).compactMap { forward.optional.pick($0, i) }
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[1].shape
    let (T, n, width) = (s[1], s[3], s[2] * s[3])
    let inputs = Array(a.inputs[..<inputCount])
    let (h, dh) = (a.inputs[inputCount], a.inputs[inputCount + 1])
    let initial = forward.optional.pick(2, inputs)
    for b in 0..<s[0] {
      var carry =
        hasFinal
        ? Array(a.inputs[inputCount + 2][b * width..<(b + 1) * width])
        : [Double](repeating: 0, count: width)
      for t in stride(from: T - 1, through: 0, by: -1) {
        let token = b * T + t
        let closed = forward.isReset(inputs, token)
        let total = (0..<width).map { dh[token * width + $0] + carry[$0] }
        for c in 0..<width {
          a.outputs[1][token * width + c] = total[c]
          let before =
            closed ? 0 : t > 0 ? h[(token - 1) * width + c] : initial?[b * width + c] ?? 0
          let row = (token * width + c) * n
          var sum = 0.0
          for i in 0..<n {
            a.outputs[0][row + i] = total[c / n * n + i] * before
            sum += inputs[0][row + i] * total[c / n * n + i]
          }
          carry[c] = closed ? 0 : sum
        }
      }
      if forward.optional.has(2) {
        for c in 0..<width { a.outputs[2][b * width + c] = carry[c] }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
