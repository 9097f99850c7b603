import GyreTensors

/// ParaRNN's LSTM: diagonal recurrence, coupled gates, peepholes. Danieli et al., 2025.
/// https://arxiv.org/abs/2510.21450
///
///     f = σ(a_f ∘ h + p_f ∘ c + x_f)    g = tanh(a_g ∘ h + x_g)    c ← f ∘ c + (1 − f) ∘ g
///     o = σ(a_o ∘ h + p_o ∘ c + x_o)    h ← o ∘ tanh c
public struct ParaLSTM: Cell {
  public static let kind = "para_lstm"
  public init() {}
  public static let defaultMatrix = RecurrentMatrix.diagonal

  public func describe(_ c: CellBuilder) -> CellValue {
    let h = c.state("h", bounds: -1...1)
    let cell = c.state("c", bounds: -1...1)
    let start = CellBuilder.diagonalStart(c.hidden)
    let last = Double(max(c.hidden - 1, 1))
    let bias = Initializer.each { -Double($0) / last }
    let f = sigmoid(
      c.input("f", bias: bias) + c.recurrent("f", h) + c.parameter("f.peephole", start) * cell)
    let g = tanh(c.input("g") + c.recurrent("g", h))
    let next = g + f * (cell - g)
    let o = sigmoid(
      c.input("o") + c.recurrent("o", h) + c.parameter("o.peephole", start) * next)
    c.next(cell, next)
    c.next(h, o * tanh(next))
    return h
  }
}
