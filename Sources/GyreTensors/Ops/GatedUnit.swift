/// act(gate) ∘ up with gate and up the two halves of the last axis: SwiGLU, GEGLU, ReGLU, GLU.
///
/// Shazeer, "GLU variants improve Transformer", 2020. Input `[…, 2N]`, output `[…, N]`.
public struct GatedUnit: Op {
  public enum Activation: Int, Sendable, Hashable, Codable, CaseIterable {
    case silu, geluTanh, relu, sigmoid, gelu
  }
  public static let name = "gated_unit"
  public let activation: Activation
  public init(_ activation: Activation = .silu) { self.activation = activation }

  package var unary: Unary.Kind {
    switch activation {
    case .silu: .silu
    case .geluTanh: .geluTanh
    case .relu: .relu
    case .sigmoid: .sigmoid
    case .gelu: .gelu
    }
  }

  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] {
    var spec = inputs[0]
    precondition(spec.shape.last % 2 == 0, "gated_unit: odd last axis of \(spec.shape)")
    spec.shape[-1] /= 2
    return [spec]
  }
  public func reference(_ a: inout HostArguments) {
    let n = a.outputSpecs[0].shape.last
    for i in a.outputs[0].indices {
      let base = i / n * 2 * n + i % n
      a.outputs[0][i] = unary.value(a.inputs[0][base]) * a.inputs[0][base + n]
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    [apply(Backward(unit: self), [c.cotangent(0), c.inputs[0]])[0]]
  }
  public var saved: SavedValues { .inputs }

  /// The gradient to the input from dy and x.
  public struct Backward: Op {
    public static let name = "gated_unit_backward"
    public let unit: GatedUnit
    public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { [inputs[1]] }
    public func reference(_ a: inout HostArguments) {
      let n = a.inputSpecs[0].shape.last
      for i in a.inputs[0].indices {
        let base = i / n * 2 * n + i % n
        let (gate, up) = (a.inputs[1][base], a.inputs[1][base + n])
        a.outputs[0][base] = a.inputs[0][i] * up * unit.unary.derivative(gate)
        a.outputs[0][base + n] = a.inputs[0][i] * unit.unary.value(gate)
      }
    }
    public func vjp(_ c: VJPContext) -> [Tensor?] { [nil, nil] }
    public static let cases: [OpCase] = []
  }
  public static let cases = Activation.allCases.map {
    OpCase("\($0)", GatedUnit($0), [TestInput([2, 9, 66])])
  }
}

extension Tensor {
  /// act(first half) ∘ second half of the last axis.
  public func gatedUnit(_ activation: GatedUnit.Activation = .silu) -> Tensor {
    apply(GatedUnit(activation), [self])[0]
  }
}
