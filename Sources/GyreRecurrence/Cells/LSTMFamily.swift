import GyreTensors

/// The LSTM with peepholes and the eight variants of Greff, Srivastava, Koutník, Steunebrink and
/// Schmidhuber, "LSTM: a search space odyssey", 2015. https://arxiv.org/abs/1503.04069
///
///     z = tanh(x_z + R_z h)    i, f = σ(x + R h + p ∘ c)    c ← z ∘ i + c ∘ f
///     o = σ(x_o + R_o h + p_o ∘ c)    h ← tanh(c) ∘ o
public struct LSTMFamily: Cell {
  public static let kind = "lstm_family"
  public enum Variant: String, Sendable, Hashable, Codable, CaseIterable {
    case vanilla
    /// i = 1, f = 1, o = 1.
    case noInputGate = "no_input_gate"
    case noForgetGate = "no_forget_gate"
    case noOutputGate = "no_output_gate"
    /// z and the output without tanh.
    case noInputActivation = "no_input_activation"
    case noOutputActivation = "no_output_activation"
    /// f = 1 − i.
    case coupledGates = "coupled_gates"
    case noPeepholes = "no_peepholes"
    /// All gates see all gates of the token before.
    case fullGateRecurrence = "full_gate_recurrence"
  }
  public var variant = Variant.vanilla
  /// Added to the forget gate's bias at the start.
  public var forgetBias = 1.0
  public init() {}
  public init(_ variant: Variant) { self.variant = variant }
  public static var variants: [LSTMFamily] {
    Variant.allCases.dropFirst().map(LSTMFamily.init)
  }
  public func problem(hidden: Int) -> (field: String, reason: String)? {
    forgetBias.isFinite ? nil : ("forgetBias", "must be finite")
  }

  public func describe(_ c: CellBuilder) -> CellValue {
    let h = c.state("h", bounds: variant == .noOutputActivation ? nil : -1...1)
    let isMean = variant == .coupledGates
    let cell = c.state("c", bounds: isMean ? -1...1 : nil)
    let before =
      variant == .fullGateRecurrence ? ["i", "f", "o"].map { c.state("gate_" + $0) } : []

    func gate(_ name: String, bias: Double = 0, peephole: CellValue) -> CellValue {
      var a = c.input(name, bias: .constant(bias)) + c.recurrent(name, h)
      if variant != .noPeepholes {
        a = a + c.parameter(name + ".peephole", .normal(standardDeviation: 0.1)) * peephole
      }
      for (other, value) in zip(["i", "f", "o"], before) {
        a = a + c.recurrent("\(name)_\(other)", value)
      }
      return sigmoid(a)
    }
    let a = c.input("z") + c.recurrent("z", h)
    let z = variant == .noInputActivation ? a : tanh(a)
    let i = variant == .noInputGate ? nil : gate("i", peephole: cell)
    var f: CellValue?
    if variant == .coupledGates {
      f = i.map { 1 - $0 }
    } else if variant != .noForgetGate {
      f = gate("f", bias: forgetBias, peephole: cell)
    }
    let next = (i.map { $0 * z } ?? z) + (f.map { $0 * cell } ?? cell)
    let squashed = variant == .noOutputActivation ? next : tanh(next)
    let o = variant == .noOutputGate ? nil : gate("o", peephole: next)
    c.next(cell, next)
    c.next(h, o.map { $0 * squashed } ?? squashed)
    for (state, value) in zip(before, [i, f, o]) { if let value { c.next(state, value) } }
    return h
  }
}
