import GyreTensors

/// sLSTM of xLSTM in coordinates that cannot overflow: L = ln n and y = c / n in place of c, n and the
/// stabiliser. Beck et al., 2024. https://arxiv.org/abs/2405.04517
///
///     L ← ln(e^(ln f + L) + e^i)    a = e^(i − L)    y ← (1 − a) ∘ y + a ∘ tanh z    h ← σ(o) ∘ y
///
/// Equal to c ← f c + e^i tanh z, n ← f n + e^i, h = σ(o) c / n. All of ∂(L, y)/∂(L, y) is within
/// [0, 1], so that Newton's method converges.
public struct ExponentialLSTM: Cell {
  public static let kind = "slstm_log"
  /// f = e^f̃ in place of σ(f̃).
  public var exponentialForget = false
  public init() {}
  public static var variants: [ExponentialLSTM] {
    var exponential = ExponentialLSTM()
    exponential.exponentialForget = true
    return [exponential]
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let h = c.state("h", bounds: -1...1)
    let log = c.state("log_n", initial: -1e30)
    let y = c.state("y", bounds: -1...1)
    let i = c.input("i") + c.recurrent("i", h)
    let forget = c.input("f", bias: .uniform(3, 6)) + c.recurrent("f", h)
    let z = tanh(c.input("z") + c.recurrent("z", h))
    let o = sigmoid(c.input("o") + c.recurrent("o", h))
    // ln f + L − i: how much older tokens weigh against this one, as a logit.
    let balance = (exponentialForget ? forget : logSigmoid(forget)) + log - i
    let new = sigmoid(-balance)
    let next = y + new * (z - y)
    c.next(log, i + softplus(balance))
    c.next(y, next)
    c.next(h, o * next)
    return h
  }
}
