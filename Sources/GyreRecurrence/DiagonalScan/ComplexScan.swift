import GyreTensors

/// The diagonal linear recurrence with complex decays and states,
///
///     hₜ = aₜ ∘ hₜ₋₁ + uₜ    a, u, h complex
///
/// as LRU, S4D and S5 have it. Orvieto et al., "Resurrecting recurrent neural networks for long
/// sequences", 2023. Gradients are those of the real and the imaginary parts as real variables.
///
/// State: "re" and "im" `[D]`. 8 flops and 24 bytes an element.
public struct ComplexScan: RecurrenceEngine {
  public let channels: Int
  public init(channels: Int) { self.channels = channels }

  public struct Inputs: Sendable {
    /// a `[B, T, D]` or `[D]`.
    public var decayReal, decayImaginary: Tensor
    /// u `[B, T, D]`.
    public var inputReal, inputImaginary: Tensor
    public init(
      decayReal: Tensor, decayImaginary: Tensor, inputReal: Tensor, inputImaginary: Tensor
    ) {
      self.decayReal = decayReal
      self.decayImaginary = decayImaginary
      self.inputReal = inputReal
      self.inputImaginary = inputImaginary
    }
  }

  public var stateSpec: StateSpec { StateSpec([.init("re", [channels]), .init("im", [channels])]) }

  /// - Returns: h `[B, T, 2·D]`, the real parts before the imaginary ones.
  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let inputs = [
      i.decayReal, i.decayImaginary, i.inputReal, i.inputImaginary, state["re"], state["im"], reset,
    ]
    let op = ComplexScanForward(
      form: form, isConstant: i.decayReal.rank == 1,
      optional: OptionalInputs(inputs.map { $0 != nil }))
    let outputs = applyPresent(op, inputs)
    state["re"] = outputs[2]
    state["im"] = outputs[3]
    return concatenated([outputs[0], outputs[1]])
  }
}

/// Possible inputs: Re a, Im a, Re u, Im u, Re h₀, Im h₀, reset. Outputs: Re h, Im h, and both of the
/// final h.
public struct ComplexScanForward: Op {
  public static let name = "complex_scan"
  public let form: SequenceForm
  public let isConstant: Bool
  public let optional: OptionalInputs

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (decay, input) = (i[0].shape, i[2].shape)
    precondition(
      input.rank == 3 && (isConstant ? decay == [input[2]] : decay == input)
        && i[1].shape == decay && i[3].shape == input,
      "complex_scan: decay \(decay) and \(i[1].shape), input \(input) and \(i[3].shape)")
    let last = TensorSpec([input[0], input[2]])
    return [i[2], i[2], last, last]
  }

  func isReset(_ a: [[Double]], _ token: Int) -> Bool { (optional.pick(6, a)?[token] ?? 0) != 0 }

  func rate(_ a: [[Double]], _ s: Shape, _ token: Int, _ channel: Int) -> (Double, Double) {
    if isReset(a, token) { return (0, 0) }
    let i = isConstant ? channel : token * s[2] + channel
    return (a[0][i], a[1][i])
  }

  /// The state before a token, given all states.
  func before(
    _ a: [[Double]], _ s: Shape, _ h: ([Double], [Double]), _ b: Int, _ t: Int, _ d: Int
  ) -> (Double, Double) {
    let token = b * s[1] + t
    if isReset(a, token) { return (0, 0) }
    if t > 0 { return (h.0[(token - 1) * s[2] + d], h.1[(token - 1) * s[2] + d]) }
    let i = b * s[2] + d
    return (optional.pick(4, a)?[i] ?? 0, optional.pick(5, a)?[i] ?? 0)
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[2].shape
    for b in 0..<s[0] {
      for d in 0..<s[2] {
        var h = (
          optional.pick(4, a.inputs)?[b * s[2] + d] ?? 0,
          optional.pick(5, a.inputs)?[b * s[2] + d] ?? 0
        )
        for t in 0..<s[1] {
          let i = (b * s[1] + t) * s[2] + d
          let r = rate(a.inputs, s, b * s[1] + t, d)
          h = (
            r.0 * h.0 - r.1 * h.1 + a.inputs[2][i], r.0 * h.1 + r.1 * h.0 + a.inputs[3][i]
          )
          (a.outputs[0][i], a.outputs[1][i]) = h
        }
        (a.outputs[2][b * s[2] + d], a.outputs[3][b * s[2] + d]) = h
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = ComplexScanBackward(
      forward: self, inputCount: c.inputs.count,
      hasFinal: c.cotangents[2] != nil || c.cotangents[3] != nil)
    let final = op.hasFinal ? [c.cotangent(2), c.cotangent(3)] : []
    let g = apply(
      op, c.inputs + [c.outputs[0], c.outputs[1], c.cotangent(0), c.cotangent(1)] + final)
    return optional.gather { i in i < 6 ? optional[i].map { g[$0] } : nil }
  }
  public var saved: SavedValues {
    SavedValues(keepsInput: { $0 != 2 && $0 != 3 }, keepsOutput: { $0 < 2 })
  }

  public static let cases: [OpCase] = [
    (SequenceForm.recurrent, true), (.chunkwise(size: 8), true), (.parallel, true),
    (.chunkwise, false),
  ].flatMap { form, full in
    [false, true].map { isConstant in
      let decay = TestInput(isConstant ? [20] : [2, 37, 20], .uniform(-0.7, 0.7))
      let inputs: [TestInput?] = [
        decay, decay, TestInput([2, 37, 20]), TestInput([2, 37, 20]),
        full ? TestInput([2, 20]) : nil, full ? TestInput([2, 20]) : nil,
        full ? testResets(batch: 2, tokens: 37) : nil,
      ]
      return OpCase(
        "\(isConstant ? "constant" : "decay") \(form)\(full ? " full" : "")",
        ComplexScanForward(
          form: form, isConstant: isConstant, optional: OptionalInputs(inputs.map { $0 != nil })),
        inputs.compactMap { $0 })
    }
  }
}

/// Inputs: the forward's, Re h, Im h, Re dh, Im dh, then both of d final h where present. Outputs:
/// gradients of the forward's inputs but reset.
///
///     λₜ = dhₜ + āₜ₊₁ λₜ₊₁    du = λ    daₜ = λₜ h̄ₜ₋₁
public struct ComplexScanBackward: Op {
  public static let name = "complex_scan_backward"
  public let forward: ComplexScanForward
  public let inputCount: Int
  public let hasFinal: Bool

  /// Position among the outputs of the gradient of possible input `i`.
  public func place(_ i: Int) -> Int? { i < 6 ? forward.optional[i] : nil }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    (0..<6).compactMap { forward.optional.pick($0, i) }
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[2].shape
    let inputs = Array(a.inputs[..<inputCount])
    let rest = Array(a.inputs[inputCount...])
    for b in 0..<s[0] {
      for d in 0..<s[2] {
        let state = b * s[2] + d
        var carry = hasFinal ? (rest[4][state], rest[5][state]) : (0, 0)
        for t in stride(from: s[1] - 1, through: 0, by: -1) {
          let token = b * s[1] + t
          let i = token * s[2] + d
          let total = (rest[2][i] + carry.0, rest[3][i] + carry.1)
          (a.outputs[2][i], a.outputs[3][i]) = total
          let h = forward.before(inputs, s, (rest[0], rest[1]), b, t, d)
          let place = forward.isConstant ? d : i
          a.outputs[0][place] += total.0 * h.0 + total.1 * h.1
          a.outputs[1][place] += total.1 * h.0 - total.0 * h.1
          let r = forward.rate(inputs, s, token, d)
          carry = (r.0 * total.0 + r.1 * total.1, r.0 * total.1 - r.1 * total.0)
        }
        if let place = place(4) { a.outputs[place][state] = carry.0 }
        if let place = place(5) { a.outputs[place][state] = carry.1 }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
