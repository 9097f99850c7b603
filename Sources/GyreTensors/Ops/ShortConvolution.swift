/// Depthwise causal convolution over the last W tokens, with SiLU where asked:
///
///     s[t, d] = b[d] + Σⱼ w[d, j] · x[t − (W − 1) + j, d]    y = s or silu(s)
///
/// Inputs: x `[B, T, D]`, w `[D, W]`, then where present bias `[D]`, the tokens before the first
/// `[B, W − 1, D]` (oldest first; zeros where absent) and reset int32 `[B, T]`, over which no tap
/// reaches. Outputs: y, and the window for what follows, zeros before a reset in it.
public struct ShortConvolution: Op {
  public static let name = "short_convolution"
  public let activates: Bool
  /// x, w, bias, window, reset.
  public let optional: OptionalInputs

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (x, w) = (i[0].shape, i[1].shape)
    precondition(
      x.rank == 3 && w.rank == 2 && w[0] == x[2] && (1...16).contains(w[1]),
      "short_convolution: x \(x), weight \(w)")
    return [i[0], TensorSpec([x[0], w[1] - 1, x[2]])]
  }

  /// x at a token before or after the window's border; 0 where a reset or the start hides it.
  private func tap(
    _ inputs: [[Double]], _ b: Int, _ t: Int, _ d: Int, from now: Int, _ s: Shape, _ width: Int
  ) -> Double {
    let (tokens, channels) = (s[1], s[2])
    if let reset = optional.pick(4, inputs) {
      var l = now
      while l > t {
        if l < tokens, l >= 0, reset[b * tokens + l] != 0 { return 0 }
        l -= 1
      }
    }
    if t >= 0 { return inputs[0][(b * tokens + t) * channels + d] }
    let w = t + width - 1
    return optional.pick(3, inputs).map { w < 0 ? 0 : $0[(b * (width - 1) + w) * channels + d] }
      ?? 0
  }

  func sums(_ inputs: [[Double]], _ s: Shape, _ width: Int) -> [Double] {
    var out = [Double](repeating: 0, count: s.elementCount)
    for b in 0..<s[0] {
      for t in 0..<s[1] {
        for d in 0..<s[2] {
          var sum = optional.pick(2, inputs)?[d] ?? 0
          for j in 0..<width {
            sum +=
              inputs[1][d * width + j] * tap(inputs, b, t - (width - 1) + j, d, from: t, s, width)
          }
          out[(b * s[1] + t) * s[2] + d] = sum
        }
      }
    }
    return out
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    let width = a.inputSpecs[1].shape[1]
    a.outputs[0] = sums(a.inputs, s, width).map { activates ? Unary.Kind.silu.value($0) : $0 }
    for b in 0..<s[0] {
      for j in 0..<width - 1 {
        for d in 0..<s[2] {
          a.outputs[1][(b * (width - 1) + j) * s[2] + d] = tap(
            a.inputs, b, s[1] - (width - 1) + j, d, from: s[1] - 1, s, width)
        }
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    let op = Backward(forward: self, hasWindowCotangent: c.cotangents[1] != nil)
    let g = applyPresent(op, c.inputs.map { $0 } + [c.cotangent(0), c.cotangents[1]])
    return optional.gather { i in i == 4 ? nil : g[optional[i] ?? 0] }
  }
  public var saved: SavedValues { .inputs }

  /// Inputs: the forward's, dy, and the final window's cotangent where present.
  /// Outputs: gradients of the forward's inputs but reset.
  public struct Backward: Op {
    public static let name = "short_convolution_backward"
    public let forward: ShortConvolution
    public let hasWindowCotangent: Bool

    public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
      forward.optional.gather { $0 }.filter { $0 != 4 }.map { k in
        i[forward.optional[k] ?? 0]
      }
    }
    public func reference(_ a: inout HostArguments) {
      let s = a.inputSpecs[0].shape
      let width = a.inputSpecs[1].shape[1]
      let (tokens, channels) = (s[1], s[2])
      let count = forward.optional.gather { $0 }.count
      let inputs = Array(a.inputs[..<count])
      let sums = forward.sums(inputs, s, width)
      let window = forward.optional[3]
      let reset = forward.optional.pick(4, inputs)
      func hidden(_ b: Int, _ t: Int, _ now: Int) -> Bool {
        guard let reset, now > t else { return false }
        return (max(t + 1, 0)...max(now, 0)).contains {
          $0 < tokens && $0 > t && reset[b * tokens + $0] != 0
        }
      }
      func add(_ value: Double, _ b: Int, _ t: Int, _ d: Int) {
        if t >= 0 {
          a.outputs[0][(b * tokens + t) * channels + d] += value
        } else if let window, t + width - 1 >= 0 {
          a.outputs[window][(b * (width - 1) + t + width - 1) * channels + d] += value
        }
      }
      for b in 0..<s[0] {
        for t in 0..<tokens {
          for d in 0..<channels {
            let i = (b * tokens + t) * channels + d
            let slope = forward.activates ? Unary.Kind.silu.derivative(sums[i]) : 1
            let g = a.inputs[count][i] * slope
            if let bias = forward.optional[2] { a.outputs[bias][d] += g }
            for j in 0..<width {
              let at = t - (width - 1) + j
              if hidden(b, at, t) { continue }
              a.outputs[1][d * width + j] += g * forward.tap(inputs, b, at, d, from: t, s, width)
              add(g * inputs[1][d * width + j], b, at, d)
            }
          }
        }
        if hasWindowCotangent {
          for j in 0..<width - 1 {
            let at = tokens - (width - 1) + j
            if hidden(b, at, tokens - 1) { continue }
            for d in 0..<channels {
              add(a.inputs[count + 1][(b * (width - 1) + j) * channels + d], b, at, d)
            }
          }
        }
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
    public static let cases: [OpCase] = []
  }

  public static let cases: [OpCase] =
    [(4, true, 37), (3, false, 37), (1, true, 5), (4, true, 2)]
    .flatMap {
      width, activates, tokens in
      [true, false].map { full in
        var reset = [Double](repeating: 0, count: 2 * tokens)
        reset[min(5, tokens - 1)] = 1
        var resets = TestInput([2, tokens], .elements(reset), differentiable: false)
        resets.spec.dtype = .int32
        return OpCase(
          "\(width) taps \(full ? "full" : "plain") T \(tokens)",
          ShortConvolution(
            activates: activates,
            optional: OptionalInputs([true, true, full, full && width > 1, full])),
          [TestInput([2, tokens, 20]), TestInput([20, width])]
            + (full ? [TestInput([20])] : [])
            + (full && width > 1 ? [TestInput([2, width - 1, 20])] : []) + (full ? [resets] : []))
      }
    } + [
      OpCase(
        "bfloat16",
        ShortConvolution(
          activates: true, optional: OptionalInputs([true, true, true, true, false])),
        [
          TestInput([2, 37, 20]).stored(as: .bfloat16), TestInput([20, 4]), TestInput([20]),
          TestInput([2, 3, 20]),
        ], tolerance: 6e-3, gradientTolerance: 1e-2, differenceTolerance: 1e-2)
    ]
}

extension Tensor {
  /// Depthwise causal convolution; see `ShortConvolution`. Returns y and the window that follows.
  public func shortConvolution(
    _ weight: Tensor, bias: Tensor? = nil, activation: Bool, window: Tensor? = nil,
    reset: Tensor? = nil
  ) -> (y: Tensor, window: Tensor) {
    let op = ShortConvolution(
      activates: activation,
      optional: OptionalInputs([true, true, bias != nil, window != nil, reset != nil]))
    let outputs = applyPresent(op, [self, weight, bias, window, reset])
    return (outputs[0], outputs[1])
  }

  /// The same with the channels split: consecutive pieces of the last axis.
  public func shortConvolution(
    _ weight: Tensor, bias: Tensor? = nil, activation: Bool, window: Tensor? = nil,
    reset: Tensor? = nil, pieces: [Int]
  ) -> (pieces: [Tensor], window: Tensor) {
    let op = PiecedConvolution(
      convolution: ShortConvolution(
        activates: activation,
        optional: OptionalInputs([true, true, bias != nil, window != nil, false])),
      pieces: pieces)
    guard reset == nil, weight.shape[1] <= 4, pieces.count <= PiecedConvolution.limit,
      pieces.allSatisfy({ $0 > 0 && $0 % 4 == 0 }), device.fuses(op)
    else {
      let (y, after) = shortConvolution(
        weight, bias: bias, activation: activation, window: window, reset: reset)
      return (y.split(pieces), after)
    }
    let outputs = applyPresent(op, [self, weight, bias, window])
    return (Array(outputs[..<pieces.count]), outputs[pieces.count])
  }
}
