import GyreTensors

/// Mamba's selective scan:
///
///     hₜ = exp(Δₜ A) ∘ hₜ₋₁ + (Δₜ ∘ xₜ) Bₜᵀ    yₜ = hₜ Cₜ + D ∘ xₜ
///
/// with h `[D, N]`, A ≤ 0 and Δ ≥ 0. Gu and Dao, "Mamba", 2023, eq. 2. https://arxiv.org/abs/2312.00752
///
/// State: "h" `[D, N]`. One step: 6·D·N flops and D·N exponentials.
public struct SelectiveScan: RecurrenceEngine {
  public let channels, stateSize: Int
  public init(channels: Int, stateSize: Int) {
    self.channels = channels
    self.stateSize = stateSize
  }

  public struct Inputs: Sendable {
    /// x and Δ `[B, T, D]`.
    public var x, step: Tensor
    /// A `[D, N]`; B and C `[B, T, N]`.
    public var A, B, C: Tensor
    /// D `[D]`.
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

/// Possible inputs: x, Δ, A, B, C, D, h₀, reset.
///
/// Outputs: y, final h, and with `keepsStates` the states before every 16th token
/// `[B, ⌈T/16⌉, N, D]` for the backward kernel.
public struct SelectiveScanForward: Op {
  public static let name = "selective_scan"
  /// Tokens between two kept states.
  public static let interval = 16
  public let form: SequenceForm
  public let keepsStates: Bool
  public let optional: OptionalInputs

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (x, a) = (i[0].shape, i[2].shape)
    precondition(
      x.rank == 3 && i[1].shape == x && a.rank == 2 && a[0] == x[2]
        && i[3].shape == [x[0], x[1], a[1]] && i[4].shape == i[3].shape,
      "selective_scan: x \(x), step \(i[1].shape), A \(a), B \(i[3].shape), C \(i[4].shape)")
    let count = (x[1] + Self.interval - 1) / Self.interval
    return [i[0], TensorSpec([x[0], x[2], a[1]])]
      + (keepsStates ? [TensorSpec([x[0], count, a[1], x[2]])] : [])
  }

  func isReset(_ a: [[Double]], _ b: Int, _ t: Int, _ tokens: Int) -> Bool {
    (optional.pick(7, a)?[b * tokens + t] ?? 0) != 0
  }

  /// h before the first token of a row.
  func start(_ a: [[Double]], _ b: Int, _ size: Int) -> [Double] {
    optional.pick(6, a).map { Array($0[b * size..<(b + 1) * size]) }
      ?? [Double](repeating: 0, count: size)
  }

  /// Moves a row's state over the token at row `r` of `[B·T, ·]`.
  func advance(_ a: [[Double]], _ r: Int, _ width: Int, _ states: Int, _ h: inout [Double]) {
    for d in 0..<width {
      let (x, step) = (a[0][r * width + d], a[1][r * width + d])
      for n in 0..<states {
        let i = d * states + n
        h[i] = Functions.exp(step * a[2][i]) * h[i] + step * x * a[3][r * states + n]
      }
    }
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    let (tokens, width, states) = (s[1], s[2], a.inputSpecs[2].shape[1])
    let skip = optional.pick(5, a.inputs)
    let kept = (tokens + Self.interval - 1) / Self.interval
    for b in 0..<s[0] {
      var h = start(a.inputs, b, width * states)
      for t in 0..<tokens {
        if keepsStates, t % Self.interval == 0 {
          let at = (b * kept + t / Self.interval) * states * width
          for i in h.indices { a.outputs[2][at + i % states * width + i / states] = h[i] }
        }
        if isReset(a.inputs, b, t, tokens) { h = [Double](repeating: 0, count: h.count) }
        let r = b * tokens + t
        advance(a.inputs, r, width, states, &h)
        for d in 0..<width {
          var y = (skip?[d] ?? 0) * a.inputs[0][r * width + d]
          for n in 0..<states { y += h[d * states + n] * a.inputs[4][r * states + n] }
          a.outputs[0][r * width + d] = y
        }
      }
      accumulate(h, into: &a.outputs[1], at: b * h.count)
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = SelectiveScanBackward(
      forward: self, hasOutput: c.cotangents[0] != nil, hasFinal: c.cotangents[1] != nil)
    let g = applyPresent(
      op,
      c.inputs.map { $0 } + [keepsStates ? c.outputs[2] : nil, c.cotangents[0], c.cotangents[1]])
    return optional.gather { i in i == 7 ? nil : g[optional[i] ?? 0] }
  }
  public var saved: SavedValues {
    SavedValues(keepsInput: { _ in true }, keepsOutput: { $0 == 2 })
  }

  public static let cases: [OpCase] = {
    let (B, T, D, N) = (2, 37, 20, 6)
    return [
      (SequenceForm.recurrent, true), (.chunkwise(size: 16), true), (.parallel, true),
      (.chunkwise, false),
    ].map { form, full in
      let inputs: [TestInput?] = [
        TestInput([B, T, D]), TestInput([B, T, D], .uniform(0.01, 1)),
        TestInput([D, N], .uniform(-4, -0.1)), TestInput([B, T, N]), TestInput([B, T, N]),
        full ? TestInput([D]) : nil, full ? TestInput([B, D, N]) : nil,
        full ? testResets(batch: B, tokens: T) : nil,
      ]
      return OpCase(
        "\(form)\(full ? " full" : "")",
        SelectiveScanForward(
          form: form, keepsStates: true, optional: OptionalInputs(inputs.map { $0 != nil })),
        inputs.compactMap { $0 }, tolerance: 2e-5, gradientTolerance: 2e-4)
    }
  }()
}

/// Inputs: the forward's, the kept states where kept, then dy and d final h where present.
/// Outputs: gradients of the forward's inputs but reset.
public struct SelectiveScanBackward: Op {
  public static let name = "selective_scan_backward"
  public let forward: SelectiveScanForward
  public let hasOutput: Bool
  public let hasFinal: Bool

  /// Positions after the forward's inputs: kept states, dy, d final h.
  public var extra: OptionalInputs {
    OptionalInputs([forward.keepsStates, hasOutput, hasFinal])
  }
  public var inputCount: Int { forward.optional.gather { $0 }.count }
  /// Position among the outputs of the gradient of possible input `i`.
  public func place(_ i: Int) -> Int? { i < 7 ? forward.optional[i] : nil }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    (0..<7).compactMap { forward.optional.pick($0, i) }
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    let (tokens, width, states) = (s[1], s[2], a.inputSpecs[2].shape[1])
    let inputs = Array(a.inputs[..<inputCount])
    let rest = Array(a.inputs[inputCount...])
    let (dy, skip) = (extra.pick(1, rest), forward.optional.pick(5, inputs))
    let size = width * states
    for b in 0..<s[0] {
      var h = forward.start(inputs, b, size)
      var history = [h]
      for t in 0..<tokens {
        if forward.isReset(inputs, b, t, tokens) {
          h = [Double](repeating: 0, count: size)
          history[t] = h
        }
        forward.advance(inputs, b * tokens + t, width, states, &h)
        history.append(h)
      }
      var dh =
        extra.pick(2, rest).map { Array($0[b * size..<(b + 1) * size]) }
        ?? [Double](repeating: 0, count: size)
      for t in stride(from: tokens - 1, through: 0, by: -1) {
        let r = b * tokens + t
        // The state after the token, before a reset that follows it.
        var after = history[t]
        forward.advance(inputs, r, width, states, &after)
        for d in 0..<width {
          let (x, step) = (inputs[0][r * width + d], inputs[1][r * width + d])
          let g = dy?[r * width + d] ?? 0
          var (dx, dstep) = ((skip?[d] ?? 0) * g, 0.0)
          if let place = place(5) { a.outputs[place][d] += g * x }
          for n in 0..<states {
            let (i, j) = (d * states + n, r * states + n)
            a.outputs[4][j] += g * after[i]
            dh[i] += g * inputs[4][j]
            let rate = Functions.exp(step * inputs[2][i])
            let slope = dh[i] * rate * history[t][i]
            dx += dh[i] * step * inputs[3][j]
            dstep += slope * inputs[2][i] + dh[i] * x * inputs[3][j]
            a.outputs[2][i] += slope * step
            a.outputs[3][j] += dh[i] * step * x
            dh[i] *= rate
          }
          a.outputs[0][r * width + d] = dx
          a.outputs[1][r * width + d] = dstep
        }
        if forward.isReset(inputs, b, t, tokens) { dh = [Double](repeating: 0, count: size) }
      }
      if let place = place(6) { accumulate(dh, into: &a.outputs[place], at: b * size) }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
