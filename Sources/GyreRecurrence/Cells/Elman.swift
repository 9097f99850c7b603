import GyreTensors

/// The simple recurrent network, h = φ(x + R h). Elman, "Finding structure in time", 1990; with ReLU
/// and R near the identity: Le, Jaitly and Hinton, 2015. https://arxiv.org/abs/1504.00941
public struct Elman: Cell {
  public static let kind = "elman"
  public enum Activation: String, Sendable, Hashable, Codable { case tanh, relu }
  public var activation = Activation.tanh
  public init() {}
  public static var variants: [Elman] {
    var relu = Elman()
    relu.activation = .relu
    return [relu]
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let h = c.state("h", bounds: activation == .tanh ? -1...1 : nil)
    let a = c.input("h") + c.recurrent("h", h)
    c.next(h, activation == .tanh ? tanh(a) : relu(a))
    return h
  }
}
