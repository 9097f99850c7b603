/// Long short-term memory as `CellScan` has it, gates i, f, g, o: what its mixer runs where the fused
/// kernels do not reach. Hochreiter and Schmidhuber, 1997.
///
///     i, f, o = σ(x + R h)    g = tanh(x + R h)    c ← f ∘ c + i ∘ g    h ← o ∘ tanh c
public struct LongShortTermMemory: Cell {
  public static let kind = "lstm"
  public init() {}

  public func describe(_ c: CellBuilder) -> CellValue {
    let h = c.state("h", bounds: -1...1)
    let cell = c.state("c")
    func gate(_ name: String) -> CellValue { c.input(name) + c.recurrent(name, h) }
    let (i, f, g, o) = (gate("i"), gate("f"), gate("g"), gate("o"))
    let next = sigmoid(f) * cell + sigmoid(i) * tanh(g)
    c.next(cell, next)
    c.next(h, sigmoid(o) * tanh(next))
    return h
  }
}
