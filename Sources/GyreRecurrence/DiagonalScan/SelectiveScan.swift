import GyreTensors

/// The selective scan of Mamba-1, discretisation included:
///
///     hₜ = exp(Δₜ A) ∘ hₜ₋₁ + Δₜ xₜ Bₜᵀ    yₜ = hₜ Cₜ + D ∘ xₜ
///
/// with h `[D, N]`. Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces",
/// 2023, equation 2. https://arxiv.org/abs/2312.00752
///
/// State: "h" `[D, N]`. 7·N flops an element of x.
public struct SelectiveScan: RecurrenceEngine {
  public let channels: Int
  public let stateSize: Int
  public init(channels: Int, stateSize: Int) {
    self.channels = channels
    self.stateSize = stateSize
  }

  public struct Inputs: Sendable {
    /// x and Δ ≥ 0 `[B, T, D]`.
    public var x, step: Tensor
    /// A ≤ 0 `[D, N]`.
    public var A: Tensor
    /// B and C `[B, T, N]`.
    public var B, C: Tensor
    /// D of the equation, `[D]`.
    public var skip: Tensor?
    public init(x: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor? = nil) {
      self.x = x
      self.step = step
      self.A = A
      self.B = B
      self.C = C
      self.skip = skip
    }
  }

  public var stateSpec: StateSpec { StateSpec([.init("h", [channels, stateSize])]) }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let inputs = [i.x, i.step, i.A, i.B, i.C, i.skip, state["h"], reset]
    let op = SelectiveScanForward(
      form: form, keepsStates: Tape.current != nil,
      optional: OptionalInputs(inputs.map { $0 != nil }))
    let outputs = applyPresent(op, inputs)
    state["h"] = outputs[1]
    return outputs[0]
  }
}

/// Possible inputs: x, Δ, A, B, C, skip, h₀, reset. Outputs: y, final h, and with `keepsStates` the
/// states before every 16th token, `[B, ⌈T/16⌉, N, D]`.
public struct SelectiveScanForward: Op {
  public static let name = "selective_scan"
  /// Tokens between kept states.
  static let interval = 16
  public let form: SequenceForm
  public let keepsStates: Bool
  public let optional: OptionalInputs

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (x, A) = (i[0].shape, i[2].shape)
    precondition(
      x.rank == 3 && i[1].shape == x && A.rank == 2 && A[0] == x[2]
        && i[3].shape == [x[0], x[1], A[1]] && i[4].shape == i[3].shape,
      "selective_scan: x \(x), Δ \(i[1].shape), A \(A), B \(i[3].shape), C \(i[4].shape)")
    let skip = optional.pick(5, i)?.shape
    precondition(skip == nil || skip == [x[2]], "selective_scan: skip \(skip ?? [])")
    let kept = (x[1] + Self.interval - 1) / Self.interval
    return [i[0], TensorSpec([x[0], x[2], A[1]])]
      + (keepsStates ? [TensorSpec([x[0], kept, A[1], x[2]])] : [])
  }

  func isReset(_ a: [[Double]], _ token: Int) -> Bool { (optional.pick(7, a)?[token] ?? 0) != 0 }

  /// The states `[N]` of one channel of one row before the first token and after each.
  func states(_ a: [[Double]], _ x: Shape, _ N: Int, _ b: Int, _ d: Int) -> [[Double]] {
    let start = (b * x[2] + d) * N
    var h =
      optional.pick(6, a).map { Array($0[start..<start + N]) } ?? [Double](repeating: 0, count: N)
    var all = [h]
    for t in 0..<x[1] {
      let token = b * x[1] + t
      if isReset(a, token) { h = [Double](repeating: 0, count: N) }
      let step = a[1][token * x[2] + d]
      for n in 0..<N {
        h[n] =
          Functions.exp(step * a[2][d * N + n]) * h[n] + step * a[0][token * x[2] + d]
          * a[3][token * N + n]
      }
      all.append(h)
    }
    return all
  }

  public func reference(_ a: inout HostArguments) {
    let (x, N) = (a.inputSpecs[0].shape, a.inputSpecs[2].shape[1])
    let kept = (x[1] + Self.interval - 1) / Self.interval
    for b in 0..<x[0] {
      for d in 0..<x[2] {
        let all = states(a.inputs, x, N, b, d)
        for t in 0..<x[1] {
          let token = b * x[1] + t
          var y = (optional.pick(5, a.inputs)?[d] ?? 0) * a.inputs[0][token * x[2] + d]
          for n in 0..<N { y += all[t + 1][n] * a.inputs[4][token * N + n] }
          a.outputs[0][token * x[2] + d] = y
          if keepsStates && t % Self.interval == 0 {
            for n in 0..<N {
              a.outputs[2][((b * kept + t / Self.interval) * N + n) * x[2] + d] = all[t][n]
            }
          }
        }
        accumulate(all[x[1]], into: &a.outputs[1], at: (b * x[2] + d) * N)
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    precondition(keepsStates, "selective_scan: states were not kept")
    let op = SelectiveScanBackward(
      forward: self, inputCount: c.inputs.count, hasFinal: c.cotangents[1] != nil)
    let g = applyPresent(
      op, c.inputs.map { $0 } + [c.outputs[2], c.cotangent(0), c.cotangents[1]])
    return optional.gather { i in i < 7 ? optional[i].map { g[$0] } : nil }
  }
  public var saved: SavedValues {
    SavedValues(keepsInput: { _ in true }, keepsOutput: { $0 == 2 })
  }

  public static let cases: [OpCase] = [
    (SequenceForm.recurrent, true), (.chunkwise(size: 16), true), (.parallel, true),
    (.chunkwise, false),
  ].map { form, full in
    let (T, D, N) = (37, 20, 6)
    let inputs: [TestInput?] = [
      TestInput([2, T, D]), TestInput([2, T, D], .uniform(0, 1)),
      TestInput([D, N], .uniform(-3, 0)),
      TestInput([2, T, N]), TestInput([2, T, N]), full ? TestInput([D]) : nil,
      full ? TestInput([2, D, N]) : nil, full ? testResets(batch: 2, tokens: T) : nil,
    ]
    return OpCase(
      "\(form)\(full ? " full" : "")",
      SelectiveScanForward(
        form: form, keepsStates: true, optional: OptionalInputs(inputs.map { $0 != nil })),
      inputs.compactMap { $0 }, tolerance: 2e-5, gradientTolerance: 2e-4,
      differentiableOutputs: 2)
  }
}

/// Inputs: the forward's, the kept states, dy, then d final h where present. Outputs: gradients of
/// the forward's inputs but reset.
public struct SelectiveScanBackward: Op {
  public static let name = "selective_scan_backward"
  public let forward: SelectiveScanForward
  public let inputCount: Int
  public let hasFinal: Bool

  /// Position among the outputs of the gradient of possible input `i`.
  public func place(_ i: Int) -> Int? { i < 7 ? forward.optional[i] : nil }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    (0..<7).compactMap { forward.optional.pick($0, i) }
  }

  public func reference(_ a: inout HostArguments) {
    let (x, N) = (a.inputSpecs[0].shape, a.inputSpecs[2].shape[1])
    let (T, D) = (x[1], x[2])
    let inputs = Array(a.inputs[..<inputCount])
    let rest = Array(a.inputs[inputCount...])
    let dy = rest[1]
    for b in 0..<x[0] {
      for d in 0..<D {
        let all = forward.states(inputs, x, N, b, d)
        let row = (b * D + d) * N
        var dh = hasFinal ? Array(rest[2][row..<row + N]) : [Double](repeating: 0, count: N)
        for t in stride(from: T - 1, through: 0, by: -1) {
          let token = b * T + t
          let i = token * D + d
          let closed = forward.isReset(inputs, token)
          let (value, step) = (inputs[0][i], inputs[1][i])
          if let skip = forward.optional.pick(5, inputs), let place = place(5) {
            a.outputs[0][i] += skip[d] * dy[i]
            a.outputs[place][d] += value * dy[i]
          }
          for n in 0..<N {
            let (B, C, A) = (
              inputs[3][token * N + n], inputs[4][token * N + n], inputs[2][d * N + n]
            )
            dh[n] += dy[i] * C
            a.outputs[4][token * N + n] += dy[i] * all[t + 1][n]
            a.outputs[0][i] += dh[n] * step * B
            a.outputs[3][token * N + n] += dh[n] * step * value
            let rate = closed ? 0 : Functions.exp(step * A)
            let slope = dh[n] * rate * all[t][n]
            a.outputs[1][i] += dh[n] * value * B + slope * A
            a.outputs[2][d * N + n] += slope * step
            dh[n] *= rate
          }
        }
        if let place = place(6) { accumulate(dh, into: &a.outputs[place], at: row) }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
