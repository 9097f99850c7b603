import GyreTensors

/// The minimal gated unit, one gate for reset and update. Zhou, Wu, Zhang and Zhou, 2016.
/// https://arxiv.org/abs/1603.09420
///
///     f = σ(x_f + R_f h)    n = tanh(x_n + R_n (f ∘ h))    h ← (1 − f) ∘ h + f ∘ n
public struct MinimalGatedUnit: Cell {
  public static let kind = "mgu"
  public init() {}

  public func describe(_ c: CellBuilder) -> CellValue {
    let h = c.state("h", bounds: -1...1)
    let f = sigmoid(c.input("f") + c.recurrent("f", h))
    let n = tanh(c.input("n") + c.recurrent("n", f * h))
    c.next(h, h + f * (n - h))
    return h
  }
}
