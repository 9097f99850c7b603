import GyreTensors

/// eLSTM, whose units see only their own memory, so that real-time recurrent learning is exact and
/// cheap. Irie, Gopalakrishnan and Schmidhuber, 2023. https://arxiv.org/abs/2305.19044
///
///     f = σ(x_f + w_f ∘ c)    z = tanh(x_z + w_z ∘ c)    c ← f ∘ c + (1 − f) ∘ z    h ← σ(x_o) ∘ c
public struct ElementwiseLSTM: Cell {
  public static let kind = "elstm"
  public init() {}
  public static let defaultMatrix = RecurrentMatrix.diagonal

  public func describe(_ c: CellBuilder) -> CellValue {
    let h = c.state("h", bounds: -1...1)
    let cell = c.state("c", bounds: -1...1)
    let start = CellBuilder.diagonalStart(c.hidden)
    let f = sigmoid(c.input("f") + c.parameter("f", start) * cell)
    let z = tanh(c.input("z") + c.parameter("z", start) * cell)
    let next = z + f * (cell - z)
    c.next(cell, next)
    c.next(h, sigmoid(c.input("o")) * next)
    return h
  }
}
