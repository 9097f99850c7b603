import GyreTensors

/// coRNN: coupled, driven, damped oscillators. Rusch and Mishra, 2021. https://arxiv.org/abs/2010.00951
///
///     z ← z + Δ (tanh(x + R y + R' z) − γ y − ε z)    y ← y + Δ z
public struct CoupledOscillators: Cell {
  public static let kind = "co_rnn"
  public var step = 0.05
  /// γ: the squared frequency; ε: the damping.
  public var stiffness = 2.7
  public var damping = 4.7
  public init() {}
  public func problem(hidden: Int) -> (field: String, reason: String)? {
    if !(step > 0 && step <= 1) { return ("step", "must be in (0, 1], is \(step)") }
    if !(stiffness > 0 && stiffness.isFinite) { return ("stiffness", "must be positive") }
    return damping > 0 && damping.isFinite ? nil : ("damping", "must be positive")
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let y = c.state("y")
    let z = c.state("z")
    let drive = tanh(c.input("z") + c.recurrent("y", y) + c.recurrent("z", z))
    let next = z + step * (drive - stiffness * y - damping * z)
    c.next(z, next)
    c.next(y, y + step * next)
    return y
  }
}
