import GyreTensors

/// Time-invariant diagonal systems, one with N complex states for each channel:
///
///     hₜ = a ∘ hₜ₋₁ + uₜ    yₜ = Re Σₙ cₙ hₜₙ
///
/// S4D, DSS, GSS and the damped averages of MEGA are this system behind different parameterisations.
/// Gu et al., "On the parameterization and initialization of diagonal state space models", 2022.
/// https://arxiv.org/abs/2206.11893
///
/// State: "re" and "im" `[D, N]`. Tokens one after the other cost 10·N flops an element. Chunks of
/// C ≤ 64 tokens are products: inside with the Toeplitz matrix of the response κₗ = Re Σ c aˡ, across
/// through the states, which a scan over the chunks carries; 2·C + 8·N flops an element and no
/// states but those between chunks. Sequences with document starts go token by token.
public struct DiagonalSystem: RecurrenceEngine {
  public let channels, states: Int
  /// Longest chunk.
  static let chunk = 64

  public init(channels: Int, states: Int) { (self.channels, self.states) = (channels, states) }

  public struct Inputs: Sendable {
    /// u `[B, T, D]`.
    public var input: Tensor
    /// a and c `[D, N]`.
    public var decay, output: ComplexTensor
    public init(input: Tensor, decay: ComplexTensor, output: ComplexTensor) {
      (self.input, self.decay, self.output) = (input, decay, output)
    }
  }

  public var stateSpec: StateSpec {
    StateSpec([.init("re", [channels, states]), .init("im", [channels, states])])
  }

  public func callAsFunction(
    _ i: Inputs, state: inout State, form: SequenceForm, reset: Tensor?
  ) -> Tensor {
    let tokens = i.input.shape[1]
    let size: Int =
      switch form {
      case .recurrent: 1
      case .chunkwise(let size): min(size, Self.chunk)
      case .parallel: Self.chunk
      }
    let whole = size > 1 && reset == nil ? tokens / size * size : 0
    guard whole > 0 else { return walked(i, &state, form, reset) }
    if whole == tokens { return chunked(i, size, &state, form) }
    let parts = i.input.split([whole, tokens - whole], axis: 1)
    let first = chunked(
      .init(input: parts[0], decay: i.decay, output: i.output), size, &state, form)
    let last = walked(
      .init(input: parts[1], decay: i.decay, output: i.output), &state, .recurrent, nil)
    return concatenated([first, last], axis: 1)
  }

  /// A scan over D·N complex channels.
  private func walked(
    _ i: Inputs, _ state: inout State, _ form: SequenceForm, _ reset: Tensor?
  ) -> Tensor {
    let (batch, tokens) = (i.input.shape[0], i.input.shape[1])
    let (D, N) = (channels, states)
    let zeros = Tensor.zeros([batch, tokens, D, N], on: i.input.device)
    let input = zeros + i.input.reshaped([batch, tokens, D, 1])
    let h = scan(
      i.decay.map { $0.reshaped([D * N]) }, input.reshaped([batch, tokens, D * N]),
      zeros.reshaped([batch, tokens, D * N]), &state, form, reset)
    let products = ComplexTensor(
      re: h.re.reshaped([batch, tokens, D, N]), im: h.im.reshaped([batch, tokens, D, N]))
    return (products.re * i.output.re - products.im * i.output.im)
      .summed(to: [batch, tokens, D, 1]).reshaped([batch, tokens, D])
  }

  private func scan(
    _ decay: ComplexTensor, _ re: Tensor, _ im: Tensor, _ state: inout State,
    _ form: SequenceForm, _ reset: Tensor?
  ) -> ComplexTensor {
    let engine = ComplexScan(channels: channels * states)
    var inner = State(engine.stateSpec, batch: state.batch)
    for name in ["re", "im"] {
      inner[name] = state[name].map { $0.reshaped([state.batch, channels * states]) }
    }
    let h = engine(
      .init(
        decayReal: decay.re, decayImaginary: decay.im, inputReal: re, inputImaginary: im),
      state: &inner, form: form, reset: reset
    ).split([channels * states, channels * states])
    for name in ["re", "im"] {
      state[name] = inner[name].map { $0.reshaped([state.batch, channels, states]) }
    }
    return ComplexTensor(re: h[0], im: h[1])
  }

  /// `count` chunks of C tokens.
  private func chunked(
    _ i: Inputs, _ C: Int, _ state: inout State, _ form: SequenceForm
  ) -> Tensor {
    let device = i.input.device
    let (batch, D, N) = (i.input.shape[0], channels, states)
    let count = i.input.shape[1] / C
    let column = i.decay.map { $0.reshaped([D, N, 1]) }
    let powers = Self.powers(column, C)
    // The response, and its Toeplitz matrix from token j to token i.
    let c = i.output.map { $0.reshaped([D, 1, N]) }
    let response =
      (c.re.matmul(powers.re) - c.im.matmul(powers.im)).reshaped([D, C]).permuted([1, 0])
    let table = concatenated([response, .zeros([1, D], on: device)], axis: 0)
    let lags = (0..<C).flatMap { j in (0..<C).map { Int32($0 >= j ? $0 - j : C) } }
    let toeplitz = table.rows(Tensor(lags, shape: [C * C], on: device)).permuted([1, 0])
      .reshaped([D, C, C])
    let u = i.input.reshaped([batch, count, C, D]).permuted([3, 0, 1, 2])
      .reshaped([D, batch * count, C])
    // What a chunk adds to the state at its end.
    let backwards = Tensor((0..<C).map { Int32(C - 1 - $0) }, shape: [C], on: device)
    let weights = powers.map {
      $0.permuted([2, 0, 1]).reshaped([C, D * N]).rows(backwards).reshaped([C, D, N])
        .permuted([1, 0, 2])
    }
    let added = weights.map {
      u.matmul($0).reshaped([D, batch, count, N]).permuted([1, 2, 0, 3])
        .reshaped([batch, count, D * N])
    }
    let start = ComplexTensor(
      re: state.value("re", on: device).reshaped([batch, 1, D * N]),
      im: state.value("im", on: device).reshaped([batch, 1, D * N]))
    let across = Self.last(powers, D, N, C) * i.decay
    let ends = scan(
      across.map { $0.reshaped([D * N]) }, added.re, added.im, &state, form, nil)
    func before(_ start: Tensor, _ ends: Tensor) -> Tensor {
      let all =
        count > 1 ? concatenated([start, ends.split([count - 1, 1], axis: 1)[0]], axis: 1) : start
      return all.reshaped([batch, count, D, N]).permuted([2, 0, 1, 3])
        .reshaped([D, batch * count, N])
    }
    let read = powers * (column * i.output.map { $0.reshaped([D, N, 1]) })
    let y =
      u.matmul(toeplitz) + before(start.re, ends.re).matmul(read.re)
      - before(start.im, ends.im).matmul(read.im)
    return y.reshaped([D, batch, count, C]).permuted([1, 2, 3, 0])
      .reshaped([batch, count * C, D])
  }

  /// a⁰ … a^(C − 1) along the last axis, by doubling.
  private static func powers(_ a: ComplexTensor, _ C: Int) -> ComplexTensor {
    var all = a.map { $0 * 0 }
    all.re = all.re + 1
    var (base, length) = (a, 1)
    while length < C {
      let next = all * base
      all = ComplexTensor(
        re: concatenated([all.re, next.re]), im: concatenated([all.im, next.im]))
      base = base * base
      length *= 2
    }
    return length == C ? all : all.map { $0.split([C, length - C])[0] }
  }

  /// The last power as `[D, N]`.
  private static func last(_ p: ComplexTensor, _ D: Int, _ N: Int, _ C: Int) -> ComplexTensor {
    p.map { $0.split([C - 1, 1])[1].reshaped([D, N]) }
  }
}
