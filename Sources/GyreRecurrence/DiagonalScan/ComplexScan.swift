import GyreTensors

/// The complex diagonal recurrence
///
///     hₜ = aₜ ∘ hₜ₋₁ + uₜ
///
/// over `[B, T, D]`, real and imaginary parts apart. LRU, S4D, S5 and GateLoop are this recurrence
/// between complex maps. Orvieto et al., "Resurrecting recurrent neural networks for long
/// sequences", 2023.
///
/// State: "re" and "im" `[D]`. Returns `[B, T, 2·D]`, the real parts first. 8 flops an element.
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

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let hasState = state["re"] != nil || state["im"] != nil
    let device = i.inputReal.device
    let inputs = [
      i.decayReal, i.decayImaginary, i.inputReal, i.inputImaginary,
      hasState ? state.value("re", on: device) : nil,
      hasState ? state.value("im", on: device) : nil, reset,
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

/// Possible inputs: Re a, Im a, Re u, Im u, Re h₀, Im h₀ (both or neither), reset.
/// Outputs: Re h, Im h, final Re h, final Im h.
public struct ComplexScanForward: Op {
  public static let name = "complex_scan"
  public let form: SequenceForm
  public let isConstant: Bool
  public let optional: OptionalInputs

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (a, u) = (i[0].shape, i[2].shape)
    precondition(
      u.rank == 3 && i[3].shape == u && i[1].shape == a && (isConstant ? a == [u[2]] : a == u),
      "complex_scan: decay \(a) and \(i[1].shape), input \(u) and \(i[3].shape)")
    precondition(
      optional.has(4) == optional.has(5), "complex_scan: one part of the initial state is missing")
    let last = TensorSpec([u[0], u[2]])
    return [i[2], i[3], last, last]
  }

  func isReset(_ a: [[Double]], _ b: Int, _ t: Int, _ tokens: Int) -> Bool {
    (optional.pick(6, a)?[b * tokens + t] ?? 0) != 0
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[2].shape
    let (tokens, width) = (s[1], s[2])
    for b in 0..<s[0] {
      for d in 0..<width {
        let j = b * width + d
        var (re, im) = (optional.pick(4, a.inputs)?[j] ?? 0, optional.pick(5, a.inputs)?[j] ?? 0)
        for t in 0..<tokens {
          let i = (b * tokens + t) * width + d
          if isReset(a.inputs, b, t, tokens) {
            (re, im) = (a.inputs[2][i], a.inputs[3][i])
          } else {
            let (ar, ai) = (a.inputs[0][isConstant ? d : i], a.inputs[1][isConstant ? d : i])
            (re, im) = (ar * re - ai * im + a.inputs[2][i], ar * im + ai * re + a.inputs[3][i])
          }
          (a.outputs[0][i], a.outputs[1][i]) = (re, im)
        }
        (a.outputs[2][j], a.outputs[3][j]) = (re, im)
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = ComplexScanBackward(
      forward: self, cotangents: OptionalInputs(c.cotangents.map { $0 != nil }))
    let g = applyPresent(
      op, c.inputs.map { $0 } + [c.outputs[0], c.outputs[1]] + c.cotangents)
    return optional.gather { i in i == 6 ? nil : g[i] }
  }
  public var saved: SavedValues {
    SavedValues(keepsInput: { $0 != 2 && $0 != 3 }, keepsOutput: { $0 < 2 })
  }

  public static let cases: [OpCase] = {
    let (B, T, D) = (2, 37, 20)
    return [
      (SequenceForm.recurrent, false, true), (.chunkwise(size: 8), false, true),
      (.parallel, false, true), (.chunkwise, false, false), (.recurrent, true, true),
      (.chunkwise(size: 8), true, true), (.parallel, true, true),
    ].map { form, isConstant, full in
      let decay = TestInput(isConstant ? [D] : [B, T, D], .uniform(-0.7, 0.7))
      let inputs: [TestInput?] = [
        decay, decay, TestInput([B, T, D]), TestInput([B, T, D]), full ? TestInput([B, D]) : nil,
        full ? TestInput([B, D]) : nil, full ? testResets(batch: B, tokens: T) : nil,
      ]
      return OpCase(
        "\(isConstant ? "constant " : "")\(form)\(full ? " full" : "")",
        ComplexScanForward(
          form: form, isConstant: isConstant, optional: OptionalInputs(inputs.map { $0 != nil })),
        inputs.compactMap { $0 })
    }
  }()
}

/// Inputs: the forward's (u is not read), Re h, Im h, then where present the cotangents of Re h,
/// Im h, final Re h and final Im h. Outputs: gradients of the forward's inputs but reset.
///
///     λₜ = dhₜ + conj(aₜ₊₁) λₜ₊₁    du = λ    daₜ = λₜ conj(hₜ₋₁)
///
/// with ∂/∂re + i ∂/∂im as a complex cotangent.
public struct ComplexScanBackward: Op {
  public static let name = "complex_scan_backward"
  public let forward: ComplexScanForward
  public let cotangents: OptionalInputs

  /// Position among the inputs of Re h; Im h and the cotangents follow.
  public var outputInput: Int { forward.optional.gather { $0 }.count }
  /// Position among the inputs of cotangent `i` of Re h, Im h, final Re h, final Im h.
  public func cotangentInput(_ i: Int) -> Int? { cotangents[i].map { outputInput + 2 + $0 } }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    Array(i[..<(forward.optional.has(4) ? 6 : 4)])
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[outputInput].shape
    let (tokens, width) = (s[1], s[2])
    let (hr, hi) = (a.inputs[outputInput], a.inputs[outputInput + 1])
    let given = (0..<4).map { i in cotangentInput(i).map { a.inputs[$0] } }
    for b in 0..<s[0] {
      for d in 0..<width {
        let j = b * width + d
        var (re, im) = (given[2]?[j] ?? 0, given[3]?[j] ?? 0)
        for t in stride(from: tokens - 1, through: 0, by: -1) {
          let i = (b * tokens + t) * width + d
          re += given[0]?[i] ?? 0
          im += given[1]?[i] ?? 0
          (a.outputs[2][i], a.outputs[3][i]) = (re, im)
          if forward.isReset(a.inputs, b, t, tokens) {
            (re, im) = (0, 0)
            continue
          }
          let k = forward.isConstant ? d : i
          let pr = t > 0 ? hr[i - width] : forward.optional.pick(4, a.inputs)?[j] ?? 0
          let pi = t > 0 ? hi[i - width] : forward.optional.pick(5, a.inputs)?[j] ?? 0
          a.outputs[0][k] += re * pr + im * pi
          a.outputs[1][k] += im * pr - re * pi
          let (ar, ai) = (a.inputs[0][k], a.inputs[1][k])
          (re, im) = (ar * re + ai * im, ar * im - ai * re)
        }
        if forward.optional.has(4) { (a.outputs[4][j], a.outputs[5][j]) = (re, im) }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
