import GyreTensors

/// minGRU's recurrence from its pre-activations in one pass:
///
///     hₜ = (1 − σ(zₜ)) ∘ hₜ₋₁ + σ(zₜ) ∘ g(cₜ)    g(x) = x + ½ for x ≥ 0, σ(x) otherwise
///
/// Feng et al., "Were RNNs all we needed?", 2024. https://arxiv.org/abs/2410.01201
///
/// State: "h" `[D]`.
public struct MinGRUScan: RecurrenceEngine {
  public let channels: Int
  public init(channels: Int) { self.channels = channels }

  public struct Inputs: Sendable {
    /// z and c `[B, T, D]`.
    public var gate: Tensor
    public var candidate: Tensor
    public init(gate: Tensor, candidate: Tensor) {
      self.gate = gate
      self.candidate = candidate
    }
  }

  public var stateSpec: StateSpec { StateSpec([.init("h", [channels])]) }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let initial = state["h"]
    let op = MinGRUForward(
      form: form, optional: OptionalInputs([true, true, initial != nil, reset != nil]))
    let outputs = applyPresent(op, [i.gate, i.candidate, initial, reset])
    state["h"] = outputs[1]
    return outputs[0]
  }
}

/// Inputs: z, c, then h₀ and reset where present. Outputs: h, final h.
public struct MinGRUForward: Op {
  public static let name = "min_gru"
  public let form: SequenceForm
  public let optional: OptionalInputs

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[0].shape == i[1].shape && i[0].shape.rank == 3, "min_gru: \(i[0].shape), \(i[1].shape)")
    return [i[0], TensorSpec([i[0].shape[0], i[0].shape[2]])]
  }

  /// The scan that this is, on the host: decay and input from the pre-activations.
  var scan: DiagonalScanForward {
    DiagonalScanForward(form: form, decayIsLog: false, isConstant: false, optional: optional)
  }
  static func g(_ x: Double) -> Double { x >= 0 ? x + 0.5 : Functions.sigmoid(x) }
  static func slope(_ x: Double) -> Double {
    x >= 0 ? 1 : Functions.sigmoid(x) * Functions.sigmoid(-x)
  }
  static func scanInputs(_ inputs: [[Double]]) -> [[Double]] {
    [
      inputs[0].map { Functions.sigmoid(-$0) },
      zip(inputs[0], inputs[1]).map { Functions.sigmoid($0) * g($1) },
    ] + inputs[2...]
  }

  public func reference(_ a: inout HostArguments) {
    let (h, last) = scan.states(MinGRUForward.scanInputs(a.inputs), a.inputSpecs[0].shape)
    a.outputs[0] = h
    a.outputs[1] = last
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let backward = MinGRUBackward(
      forward: self, hasOutput: c.cotangents[0] != nil, hasFinal: c.cotangents[1] != nil)
    let gradients = applyPresent(
      backward, c.inputs.map { $0 } + [c.outputs[0], c.cotangents[0], c.cotangents[1]])
    return [gradients[0], gradients[1]] + (optional.has(2) ? [gradients[2]] : [])
      + (optional.has(3) ? [nil] : [])
  }
  public var saved: SavedValues {
    SavedValues(keepsInput: { _ in true }, keepsOutput: { $0 == 0 })
  }
  public static let cases =
    scanCases { form, hasState, hasReset in
      [
        (
          "min_gru",
          MinGRUForward(form: form, optional: OptionalInputs([true, true, hasState, hasReset])),
          [TestInput([2, 37, 20], .normal(scale: 2)), TestInput([2, 37, 20])]
        )
      ]
    }
    // bfloat16, and sequences enough for a kernel to take one after the other.
    + [
      (2, 20, SequenceForm.chunkwise(size: 8), DType.bfloat16), (2, 20, .parallel, .bfloat16),
      (12, 200, .chunkwise, .bfloat16), (12, 200, .chunkwise, .float32),
    ].map { batch, width, form, type in
      let isExact = type == .float32
      return OpCase(
        "\(type.rawValue) [\(batch), 37, \(width)] \(form)",
        MinGRUForward(form: form, optional: OptionalInputs([true, true, true, true])),
        [
          TestInput([batch, 37, width], .normal(scale: 2)).stored(as: type),
          TestInput([batch, 37, width]).stored(as: type), TestInput([batch, width]),
          testResets(batch: batch, tokens: 37),
        ], tolerance: isExact ? 2e-6 : 1e-2, gradientTolerance: isExact ? 1e-5 : 2e-2,
        differenceTolerance: isExact ? 2e-4 : 2e-2)
    }
}

/// Inputs and outputs as `DiagonalScanBackward`, with z and c for decay and input.
public struct MinGRUBackward: Op {
  public static let name = "min_gru_backward"
  public let forward: MinGRUForward
  public let hasOutput: Bool
  public let hasFinal: Bool

  /// The backward of the scan that this is.
  public var scan: DiagonalScanBackward {
    DiagonalScanBackward(forward: forward.scan, hasOutput: hasOutput, hasFinal: hasFinal)
  }
  public func infer(_ i: [TensorSpec]) -> [TensorSpec] { scan.infer(i) }
  public func reference(_ a: inout HostArguments) {
    var inner = HostArguments(
      inputs: MinGRUForward.scanInputs(a.inputs), inputSpecs: a.inputSpecs,
      outputSpecs: a.outputSpecs)
    scan.reference(&inner)
    a.outputs = inner.outputs
    for i in a.outputs[0].indices {
      let (z, c) = (a.inputs[0][i], a.inputs[1][i])
      let (da, du) = (inner.outputs[0][i], inner.outputs[1][i])
      a.outputs[0][i] =
        Functions.sigmoid(z) * Functions.sigmoid(-z) * (du * MinGRUForward.g(c) - da)
      a.outputs[1][i] = du * Functions.sigmoid(z) * MinGRUForward.slope(c)
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
