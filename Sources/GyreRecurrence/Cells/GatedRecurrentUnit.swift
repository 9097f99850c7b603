import GyreTensors

/// The gated recurrent unit with recurrent matrices of any kind. Cho et al., 2014.
///
///     r, z = σ(x + R h)    n = tanh(x + r ∘ (R h + b))  or  tanh(x + R (r ∘ h))
///     h ← (1 − z) ∘ n + z ∘ h
public struct GatedRecurrentUnit: Cell {
  public static let kind = "gated_unit"
  /// Whether the reset gate acts before the recurrent product.
  public var resetsBefore = false
  public init() {}
  public static var variants: [GatedRecurrentUnit] {
    var before = GatedRecurrentUnit()
    before.resetsBefore = true
    return [before]
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let h = c.state("h", bounds: -1...1)
    let r = sigmoid(c.input("r") + c.recurrent("r", h))
    let z = sigmoid(c.input("z") + c.recurrent("z", h))
    let recurrent =
      resetsBefore
      ? c.recurrent("n", r * h) : r * (c.recurrent("n", h) + c.parameter("n.bias", .zeros))
    let n = tanh(c.input("n") + recurrent)
    c.next(h, n + z * (h - n))
    return h
  }
}
