import GyreTensors

/// Piecewise-linear recurrent networks for dynamical systems.
///
///     standard       z ← A z + W relu(z) + h + x
///     almost linear  z ← A z + W φ(z) + h + x, φ the ReLU on the last P units only
///     shallow        z ← A z + W₁ (relu(W₂ z + h₂) − relu(W₂ z)) + h + x
///
/// Koppe et al., 2019; Hess et al., 2023 (https://arxiv.org/abs/2306.04406); Brenner et al., 2024
/// (https://arxiv.org/abs/2410.14240). A diagonal; the shallow form is bounded where |A| < 1.
public struct PiecewiseLinear: Cell {
  public static let kind = "plrnn"
  public enum Form: String, Sendable, Hashable, Codable {
    case standard
    case almostLinear = "almost_linear"
    case shallow
  }
  public var form = Form.standard
  /// P: units with a ReLU in the almost linear form.
  public var nonlinearUnits = 2
  /// Hidden units of the shallow form.
  public var width = 32
  public init() {}
  public init(_ form: Form) { self.form = form }
  public static var variants: [PiecewiseLinear] {
    [PiecewiseLinear(.almostLinear), PiecewiseLinear(.shallow)]
  }
  public func problem(hidden: Int) -> (field: String, reason: String)? {
    if form == .almostLinear, !(0...hidden).contains(nonlinearUnits) {
      return ("nonlinearUnits", "must be in 0...\(hidden), is \(nonlinearUnits)")
    }
    return form != .shallow || (1...65536).contains(width)
      ? nil : ("width", "must be in 1...65536, is \(width)")
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let z = c.state("z")
    c.next(z, map(c, z) + c.input("z"))
    return z
  }

  /// The map of z without h and the input: A z + the piecewise-linear part.
  func map(_ c: CellBuilder, _ z: CellValue) -> CellValue {
    let linear = c.parameter("A", .normal(standardDeviation: 0.05, mean: 0.4)) * z
    let small = Initializer.normal(standardDeviation: 0.01)
    switch form {
    case .standard: return linear + c.recurrent("W", relu(z), small)
    case .almostLinear:
      let bent = c.constant(
        "bent", (0..<c.hidden).map { $0 >= c.hidden - nonlinearUnits ? 1 : 0 })
      return linear + c.recurrent("W", z + bent * (relu(z) - z), small)
    case .shallow:
      let inner = c.space(width)
      let a = c.product("W2", z, to: inner, heads: 1, .fanIn(c.hidden))
      let bend = relu(a + c.parameter("h2", .uniform(-0.5, 0.5), space: inner)) - relu(a)
      return linear + c.product("W1", bend, heads: 1, .fanIn(width))
    }
  }
}
