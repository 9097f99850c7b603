import GyreTensors

/// UnICORNN: independent undamped oscillators, a symplectic step with a learned length a unit. Rusch
/// and Mishra, 2021. https://arxiv.org/abs/2103.05487
///
///     d = Δ σ(s)    z ← z − d (tanh(w ∘ y + x) + α y)    y ← y + d z
public struct IndependentOscillators: Cell {
  public static let kind = "unicornn"
  public var step = 0.05
  /// α.
  public var stiffness = 1.0
  public init() {}
  public static let defaultMatrix = RecurrentMatrix.diagonal
  public func problem(hidden: Int) -> (field: String, reason: String)? {
    if !(step > 0 && step <= 1) { return ("step", "must be in (0, 1], is \(step)") }
    return stiffness >= 0 && stiffness.isFinite
      ? nil : ("stiffness", "must not be negative, is \(stiffness)")
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let y = c.state("y")
    let z = c.state("z")
    let d = step * sigmoid(c.parameter("s", .uniform(-0.1, 0.1)))
    let w = c.parameter("w", .uniform(0, 1))
    let next = z - d * (tanh(w * y + c.input("z")) + stiffness * y)
    c.next(z, next)
    c.next(y, y + d * next)
    return y
  }
}
