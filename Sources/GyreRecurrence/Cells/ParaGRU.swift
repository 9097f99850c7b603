import GyreTensors

/// ParaRNN's GRU with diagonal recurrence. Danieli et al., 2025. https://arxiv.org/abs/2510.21450
///
///     z = σ(a_z ∘ h + x_z)    r = σ(a_r ∘ h + x_r)    n = tanh(a_n ∘ (r ∘ h) + x_n)
///     h ← (1 − z) ∘ h + z ∘ n
public struct ParaGRU: Cell {
  public static let kind = "para_gru"
  public init() {}
  public static let defaultMatrix = RecurrentMatrix.diagonal

  public func describe(_ c: CellBuilder) -> CellValue {
    let h = c.state("h", bounds: -1...1)
    // Negative update biases, spread over the units: long memories first.
    let last = Double(max(c.hidden - 1, 1))
    let bias = Initializer.each { -Double($0) / last }
    let z = sigmoid(c.input("z", bias: bias) + c.recurrent("z", h))
    let r = sigmoid(c.input("r") + c.recurrent("r", h))
    let n = tanh(c.input("n") + c.recurrent("n", r * h))
    c.next(h, h + z * (n - h))
    return h
  }
}
