import GyreTensors

/// Long expressive memory: two coupled states with learned time steps. Rusch, Mishra, Erichson and
/// Mahoney, 2021. https://arxiv.org/abs/2110.04744
///
///     d₁, d₂ = Δ σ(x + R y)    z ← (1 − d₂) z + d₂ tanh(x_z + R_z y)
///     y ← (1 − d₁) y + d₁ tanh(x_y + R_y z)
public struct LongExpressiveMemory: Cell {
  public static let kind = "lem"
  /// Δ.
  public var step = 1.0
  public init() {}
  public func problem(hidden: Int) -> (field: String, reason: String)? {
    step > 0 && step <= 1 ? nil : ("step", "must be in (0, 1], is \(step)")
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let y = c.state("y", bounds: -1...1)
    let z = c.state("z", bounds: -1...1)
    let d1 = step * sigmoid(c.input("d1") + c.recurrent("d1", y))
    let d2 = step * sigmoid(c.input("d2") + c.recurrent("d2", y))
    let next = z + d2 * (tanh(c.input("z") + c.recurrent("z", y)) - z)
    c.next(z, next)
    c.next(y, y + d1 * (tanh(c.input("y") + c.recurrent("y", next)) - y))
    return y
  }
}
