import GyreTensors

/// The diagonal linear recurrence
///
///     hₜ = aₜ ∘ hₜ₋₁ + uₜ
///
/// over `[B, T, D]`, with a given as it is or as its logarithm, per token or constant. S4, S5, LRU,
/// HGRN, RG-LRU, minLSTM and their kin are this recurrence behind different gates. Blelloch, "Prefix
/// sums and their applications", 1990, for the parallel form.
///
/// State: "h" `[D]`. 2 flops and 12 bytes an element.
public struct DiagonalScan: RecurrenceEngine {
  public let channels: Int
  public init(channels: Int) { self.channels = channels }

  public struct Inputs: Sendable {
    /// a `[B, T, D]` or `[D]`, in [−1, 1] or beyond; or ln a ≤ 0.
    public var decay: Tensor
    public var decayIsLog: Bool
    /// u `[B, T, D]`.
    public var input: Tensor
    public init(decay: Tensor, decayIsLog: Bool, input: Tensor) {
      self.decay = decay
      self.decayIsLog = decayIsLog
      self.input = input
    }
  }

  public var stateSpec: StateSpec { StateSpec([.init("h", [channels])]) }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let initial = state["h"]
    let op = DiagonalScanForward(
      form: form, decayIsLog: i.decayIsLog, isConstant: i.decay.rank == 1,
      optional: OptionalInputs([true, true, initial != nil, reset != nil]))
    let outputs = applyPresent(op, [i.decay, i.input, initial, reset])
    state["h"] = outputs[1]
    return outputs[0]
  }
}

/// Inputs: a, u, then h₀ and reset where present. Outputs: h, final h.
public struct DiagonalScanForward: Op {
  public static let name = "diagonal_scan"
  public let form: SequenceForm
  public let decayIsLog: Bool
  public let isConstant: Bool
  public let optional: OptionalInputs

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (decay, input) = (i[0].shape, i[1].shape)
    precondition(
      input.rank == 3 && (isConstant ? decay == [input[2]] : decay == input),
      "diagonal_scan: decay \(decay), input \(input)")
    return [i[1], TensorSpec([input[0], input[2]])]
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[1].shape
    let (h, last) = states(a.inputs, s)
    a.outputs[0] = h
    a.outputs[1] = last
  }

  func rate(_ inputs: [[Double]], _ index: Int, _ channel: Int) -> Double {
    let x = inputs[0][isConstant ? channel : index]
    return decayIsLog ? Functions.exp(x) : x
  }

  func states(_ inputs: [[Double]], _ s: Shape) -> (all: [Double], last: [Double]) {
    let (tokens, width) = (s[1], s[2])
    var all = [Double](repeating: 0, count: s.elementCount)
    var last = optional.pick(2, inputs) ?? [Double](repeating: 0, count: s[0] * width)
    let reset = optional.pick(3, inputs)
    for b in 0..<s[0] {
      for t in 0..<tokens {
        let closed = (reset?[b * tokens + t] ?? 0) != 0
        for d in 0..<width {
          let i = (b * tokens + t) * width + d
          let before = closed ? 0 : last[b * width + d]
          last[b * width + d] = (closed ? 0 : rate(inputs, i, d) * before) + inputs[1][i]
          all[i] = last[b * width + d]
        }
      }
    }
    return (all, last)
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let backward = DiagonalScanBackward(
      forward: self, hasOutput: c.cotangents[0] != nil, hasFinal: c.cotangents[1] != nil)
    let gradients = applyPresent(
      backward, c.inputs.map { $0 } + [c.outputs[0], c.cotangents[0], c.cotangents[1]])
    return [gradients[0], gradients[1]] + (optional.has(2) ? [gradients[2]] : [])
      + (optional.has(3) ? [nil] : [])
  }
  public var saved: SavedValues {
    SavedValues(keepsInput: { $0 != 1 }, keepsOutput: { $0 == 0 })
  }

  public static let cases = floatCases + halfCases

  /// Values in bfloat16, long enough for several tiles of a kernel.
  private static let halfCases: [OpCase] = [DType.float32, .bfloat16].map { decay in
    OpCase(
      "bfloat16, decay \(decay)",
      DiagonalScanForward(
        form: .chunkwise, decayIsLog: true, isConstant: false,
        optional: OptionalInputs([true, true, true, true])),
      [
        TestInput([2, 1100, 6], .uniform(-0.5, 0)).stored(as: decay),
        TestInput([2, 1100, 6]).stored(as: .bfloat16), TestInput([2, 6]),
        testResets(batch: 2, tokens: 1100),
      ], tolerance: 6e-3, gradientTolerance: 1e-2, differenceTolerance: 1e-2)
  }

  private static let floatCases = scanCases { form, hasState, hasReset in
    [
      (
        "decay",
        DiagonalScanForward(
          form: form, decayIsLog: false, isConstant: false,
          optional: OptionalInputs([true, true, hasState, hasReset])),
        [TestInput([2, 37, 20], .uniform(-1, 1)), TestInput([2, 37, 20])]
      ),
      (
        "log decay",
        DiagonalScanForward(
          form: form, decayIsLog: true, isConstant: false,
          optional: OptionalInputs([true, true, hasState, hasReset])),
        [TestInput([2, 37, 20], .uniform(-4, 0)), TestInput([2, 37, 20])]
      ),
      (
        "constant decay",
        DiagonalScanForward(
          form: form, decayIsLog: false, isConstant: true,
          optional: OptionalInputs([true, true, hasState, hasReset])),
        [TestInput([20], .uniform(0.5, 1)), TestInput([2, 37, 20])]
      ),
    ]
  }
}

/// The forms, with and without initial state and resets, of scans over `[2, 37, 20]`.
func scanCases(
  state: Shape = [2, 20], _ make: (SequenceForm, Bool, Bool) -> [(String, any Op, [TestInput])]
) -> [OpCase] {
  [
    (SequenceForm.recurrent, true, true), (.chunkwise(size: 8), true, true),
    (.parallel, true, true), (.chunkwise, false, false),
  ]
  .flatMap { form, hasState, hasReset in
    make(form, hasState, hasReset).map { label, op, inputs in
      OpCase(
        "\(label) \(form)", op,
        inputs + (hasState ? [TestInput(state)] : [])
          + (hasReset ? [testResets(batch: 2, tokens: 37)] : []))
    }
  }
}

/// Document starts for tests: two in the first row, one at the second row's first token.
func testResets(batch: Int, tokens: Int) -> TestInput {
  var values = [Double](repeating: 0, count: batch * tokens)
  values[5] = 1
  values[min(21, tokens - 1)] = 1
  values[(batch - 1) * tokens] = 1
  var input = TestInput([batch, tokens], .elements(values), differentiable: false)
  input.spec.dtype = .int32
  return input
}

/// Inputs: those of the forward, h, then dh and d final h where present. Outputs: da, du, and dh₀
/// where the forward had h₀.
///
///     λₜ = dhₜ + aₜ₊₁ λₜ₊₁    du = λ    daₜ = λₜ hₜ₋₁
public struct DiagonalScanBackward: Op {
  public static let name = "diagonal_scan_backward"
  public let forward: DiagonalScanForward
  public let hasOutput: Bool
  public let hasFinal: Bool

  /// Positions after the forward's inputs: h, dh, d final h.
  public var extra: OptionalInputs { OptionalInputs([true, hasOutput, hasFinal]) }
  public func inputCount(of all: Int) -> Int { all - extra.gather { $0 }.count }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let shape = i[1].shape
    return [i[0], i[1]] + (forward.optional.has(2) ? [TensorSpec([shape[0], shape[2]])] : [])
  }
  public func reference(_ a: inout HostArguments) {
    let n = inputCount(of: a.inputs.count)
    let (inputs, rest) = (Array(a.inputs[..<n]), Array(a.inputs[n...]))
    let s = a.inputSpecs[1].shape
    let (tokens, width) = (s[1], s[2])
    let (h, dh) = (rest[0], extra.pick(1, rest))
    var carry = extra.pick(2, rest) ?? [Double](repeating: 0, count: s[0] * width)
    let reset = forward.optional.pick(3, inputs)
    let initial = forward.optional.pick(2, inputs)
    for b in 0..<s[0] {
      for t in stride(from: tokens - 1, through: 0, by: -1) {
        let closed = (reset?[b * tokens + t] ?? 0) != 0
        for d in 0..<width {
          let (i, j) = ((b * tokens + t) * width + d, b * width + d)
          let total = (dh?[i] ?? 0) + carry[j]
          let before = closed ? 0 : t > 0 ? h[i - width] : initial?[j] ?? 0
          let rate = closed ? 0 : forward.rate(inputs, i, d)
          a.outputs[1][i] = total
          let slope = closed ? 0 : total * before * (forward.decayIsLog ? rate : 1)
          a.outputs[0][forward.isConstant ? d : i] += slope
          carry[j] = total * rate
        }
      }
    }
    if forward.optional.has(2) { a.outputs[2] = carry }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
