import GyreTensors

/// LSTM whose output is a linear map of fewer units, which the recurrence sees. Sak, Senior and
/// Beaufays, 2014. https://arxiv.org/abs/1402.1128 (torch.nn.LSTM with proj_size.)
///
///     c ← f ∘ c + i ∘ tanh(x_g + R_g h)    h ← P (o ∘ tanh c)
public struct ProjectedLSTM: Cell {
  public static let kind = "lstm_projected"
  /// Units of h.
  public var projection = 8
  /// Added to the forget gate's bias at the start.
  public var forgetBias = 1.0
  public init() {}
  public init(projection: Int) { self.projection = projection }
  public func problem(hidden: Int) -> (field: String, reason: String)? {
    if !(1...hidden).contains(projection) {
      return ("projection", "must be in 1...\(hidden), is \(projection)")
    }
    return forgetBias.isFinite ? nil : ("forgetBias", "must be finite")
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let projected = c.space(projection)
    let h = c.state("h", space: projected)
    let cell = c.state("c")
    func gate(_ name: String, bias: Double = 0) -> CellValue {
      c.input(name, bias: .constant(bias)) + c.product(name, h, heads: 1, .fanIn(c.hidden))
    }
    let (i, f, g, o) = (gate("i"), gate("f", bias: forgetBias), gate("g"), gate("o"))
    let next = sigmoid(f) * cell + sigmoid(i) * tanh(g)
    c.next(cell, next)
    c.next(
      h, c.product("h", sigmoid(o) * tanh(next), to: projected, heads: 1, .fanIn(c.hidden)))
    return h
  }
}
