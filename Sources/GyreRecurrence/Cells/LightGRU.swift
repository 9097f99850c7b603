import GyreTensors

/// Li-GRU: no reset gate, a ReLU candidate. Ravanelli, Brakel, Omologo and Bengio, 2018.
/// https://arxiv.org/abs/1803.10225 Their batch norm belongs to the input product.
///
///     z = σ(x_z + R_z h)    n = relu(x_n + R_n h)    h ← z ∘ h + (1 − z) ∘ n
public struct LightGRU: Cell {
  public static let kind = "li_gru"
  public init() {}

  public func describe(_ c: CellBuilder) -> CellValue {
    let h = c.state("h")
    let z = sigmoid(c.input("z") + c.recurrent("z", h))
    let n = relu(c.input("n") + c.recurrent("n", h))
    c.next(h, n + z * (h - n))
    return h
  }
}
