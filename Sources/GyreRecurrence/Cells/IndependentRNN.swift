import GyreTensors

/// IndRNN: h = φ(x + u ∘ h), every unit its own recurrence. Li, Li, Cook, Zhu and Gao, 2018.
/// https://arxiv.org/abs/1803.04831
public struct IndependentRNN: Cell {
  public static let kind = "ind_rnn"
  public var activation = Elman.Activation.relu
  public init() {}
  public static var variants: [IndependentRNN] {
    var tanh = IndependentRNN()
    tanh.activation = .tanh
    return [tanh]
  }
  public static let defaultMatrix = RecurrentMatrix.diagonal

  public func describe(_ c: CellBuilder) -> CellValue {
    let h = c.state("h", bounds: activation == .tanh ? -1...1 : nil)
    let a = c.input("h") + c.parameter("u", .uniform(0, 1)) * h
    c.next(h, activation == .tanh ? tanh(a) : relu(a))
    return h
  }
}
