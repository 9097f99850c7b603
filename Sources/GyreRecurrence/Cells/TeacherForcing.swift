import GyreTensors

/// A piecewise-linear network that is drawn towards what was observed before every step: generalised
/// teacher forcing. Hess, Monfared, Brenner and Durstewitz, 2023. https://arxiv.org/abs/2306.04406
///
///     z̃ = z + α ∘ (x − z)    z ← F(z̃) + h
///
/// The observation x is the input, zero for units that nothing observes; α is a parameter that the
/// training sets: with α = 1 − 1/s, s the growth of F's products of Jacobians, gradients stay bounded.
public struct TeacherForcing: Cell {
  public static let kind = "teacher_forcing"
  public var map = PiecewiseLinear(.shallow)
  public init() {}
  public init(_ map: PiecewiseLinear) { self.map = map }
  public func problem(hidden: Int) -> (field: String, reason: String)? {
    map.problem(hidden: hidden)
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let z = c.state("z")
    let forced = z + c.parameter("force", .constant(0.1)) * (c.input("x") - z)
    c.next(z, map.map(c, forced) + c.parameter("h", .zeros))
    return z
  }
}
