import GyreTensors

/// Recurrent highway networks: several highway layers in one step, the input in the first. Zilly,
/// Srivastava, Koutník and Schmidhuber, 2017. https://arxiv.org/abs/1607.03474
///
///     n = tanh(x_n [first] + R_n s)    t = σ(x_t [first] + R_t s)    s ← s + t ∘ (n − s)
public struct RecurrentHighway: Cell {
  public static let kind = "rhn"
  /// Layers in a step.
  public var depth = 3
  /// The transform gates' bias at the start.
  public var transformBias = -2.0
  public init() {}
  public static var variants: [RecurrentHighway] {
    var shallow = RecurrentHighway()
    shallow.depth = 1
    return [shallow]
  }
  public func problem(hidden: Int) -> (field: String, reason: String)? {
    if !(1...16).contains(depth) { return ("depth", "must be in 1...16, is \(depth)") }
    return transformBias.isFinite ? nil : ("transformBias", "must be finite")
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let state = c.state("h", bounds: -1...1)
    var s = state
    for layer in 0..<depth {
      let start = Initializer.constant(transformBias)
      let (n, t) =
        layer == 0
        ? (c.input("n"), c.input("t", bias: start))
        : (c.parameter("n\(layer).bias", .zeros), c.parameter("t\(layer).bias", start))
      let candidate = tanh(n + c.recurrent("n\(layer)", s))
      s = s + sigmoid(t + c.recurrent("t\(layer)", s)) * (candidate - s)
    }
    c.next(state, s)
    return state
  }
}
