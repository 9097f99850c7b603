import GyreTensors

/// A unitary recurrent network: every token is a rotation of the state, with nothing else in between.
/// Bernardy and Lappin, "Assessing the unitary RNN as an end-to-end compositional model of syntax",
/// 2022. https://arxiv.org/abs/2208.05719
///
///     s ← Q(xₜ) s    Q = Π (I − S/2)⁻¹ (I + S/2),  S = u vᵀ − v uᵀ
///
/// The paper's exp of a skew matrix, of rank two a factor, by its Cayley form: S turns the plane of u
/// and v by 2 atan(ω/2), ω² = |u|²|v|² − (u·v)². The state keeps its length, 1 at the start.
public struct UnitaryRotations: Cell {
  public static let kind = "urn"
  /// Planes that a token turns.
  public var rotations = 1
  public init() {}
  public static var variants: [UnitaryRotations] {
    var two = UnitaryRotations()
    two.rotations = 2
    return [two]
  }
  public func problem(hidden: Int) -> (field: String, reason: String)? {
    (1...64).contains(rotations) ? nil : ("rotations", "must be in 1...64, is \(rotations)")
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let state = c.state("s", initial: 1 / Double(c.hidden).squareRoot(), bounds: -1...1)
    let one = c.space(1)
    let ones = [Double](repeating: 1, count: c.hidden)
    var uses = 0
    func name(_ kind: String) -> String {
      uses += 1
      return "\(kind)\(uses)"
    }
    func sum(_ v: CellValue) -> CellValue {
      c.product(name("sum"), v, to: one, heads: 1, constant: ones)
    }
    func spread(_ v: CellValue) -> CellValue {
      c.product(name("spread"), v, to: 0, heads: 1, constant: ones)
    }
    var s = state
    for k in 0..<rotations {
      let (u, v) = (c.input("u\(k)"), c.input("v\(k)"))
      let (uu, uv, vv) = (sum(u * u), sum(u * v), sum(v * v))
      func skew(_ a: CellValue, _ b: CellValue) -> CellValue { u * spread(b) - v * spread(a) }
      let (us, vs) = (sum(u * s), sum(v * s))
      let once = skew(us, vs)
      // S s = u (v·s) − v (u·s), so u·S s and v·S s need no further sums over units.
      let twice = skew(uu * vs - uv * us, uv * vs - vv * us)
      let factor = 1 / (1 + 0.25 * (uu * vv - uv * uv))
      s = s + spread(factor) * (once + 0.5 * twice)
    }
    c.next(state, s)
    return state
  }
}
