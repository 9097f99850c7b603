/// An element-wise function of one tensor.
public struct Unary: Op {
  public enum Kind: Int, Sendable, Hashable, Codable, CaseIterable {
    case relu, reluSquared, silu, geluTanh, gelu, sigmoid, tanh, exp, log, softplus, logSigmoid
    case square, sqrt, reciprocalSqrt, negate, absolute, expm1, log1p, sine, cosine
  }
  public static let name = "unary"
  public let kind: Kind

  public init(_ kind: Kind) { self.kind = kind }
  public func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { inputs }
  public func reference(_ a: inout HostArguments) { a.outputs[0] = a.inputs[0].map(kind.value) }
  public func vjp(_ c: VJPContext) -> [Tensor?] {
    [apply(UnaryBackward(kind: kind), [c.inputs[0], c.cotangent(0)])[0]]
  }
  public var saved: SavedValues { .inputs }

  public static let cases = Kind.allCases.map { kind in
    let positive: Bool =
      switch kind {
      case .log, .sqrt, .reciprocalSqrt, .log1p: true
      default: false
      }
    return OpCase(
      "\(kind)", Unary(kind),
      [TestInput([3, 67], positive ? .uniform(0.1, 3) : .normal(scale: 2))])
  }
}

/// dx = f'(x)·dy.
package struct UnaryBackward: Op {
  package static let name = "unary_backward"
  package let kind: Unary.Kind

  package func infer(_ inputs: [TensorSpec]) -> [TensorSpec] { [inputs[0]] }
  package func reference(_ a: inout HostArguments) {
    a.outputs[0] = zip(a.inputs[0], a.inputs[1]).map { kind.derivative($0) * $1 }
  }
  package func vjp(_ c: VJPContext) -> [Tensor?] { [nil, nil] }
  package static let cases: [OpCase] = []
}

extension Unary.Kind {
  private static let rootTwoOverPi = 0.797_884_560_802_865_4
  private typealias F = Functions

  func value(_ x: Double) -> Double {
    switch self {
    case .relu: max(x, 0)
    case .reluSquared: x > 0 ? x * x : 0
    case .silu: x * F.sigmoid(x)
    case .geluTanh: 0.5 * x * (1 + F.tanh(Self.rootTwoOverPi * (x + 0.044715 * x * x * x)))
    case .gelu: 0.5 * x * (1 + F.erf(x * 0.5.squareRoot()))
    case .sigmoid: F.sigmoid(x)
    case .tanh: F.tanh(x)
    case .exp: F.exp(x)
    case .log: F.log(x)
    case .softplus: F.softplus(x)
    case .logSigmoid: F.logSigmoid(x)
    case .square: x * x
    case .sqrt: x.squareRoot()
    case .reciprocalSqrt: 1 / x.squareRoot()
    case .negate: -x
    case .absolute: abs(x)
    case .expm1: F.expm1(x)
    case .log1p: F.log1p(x)
    case .sine: F.sin(x)
    case .cosine: F.cos(x)
    }
  }

  func derivative(_ x: Double) -> Double {
    switch self {
    case .relu: return x > 0 ? 1 : 0
    case .reluSquared: return x > 0 ? 2 * x : 0
    case .silu:
      let s = F.sigmoid(x)
      return s * (1 + x * (1 - s))
    case .geluTanh:
      let t = F.tanh(Self.rootTwoOverPi * (x + 0.044715 * x * x * x))
      let slope = Self.rootTwoOverPi * (1 + 3 * 0.044715 * x * x)
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope
    case .gelu:
      let density = F.exp(-0.5 * x * x) * 0.398_942_280_401_432_7
      return 0.5 * (1 + F.erf(x * 0.5.squareRoot())) + x * density
    case .sigmoid: return F.sigmoid(x) * F.sigmoid(-x)
    case .tanh:
      let t = F.tanh(x)
      return 1 - t * t
    case .exp: return F.exp(x)
    case .log: return 1 / x
    case .softplus: return F.sigmoid(x)
    case .logSigmoid: return F.sigmoid(-x)
    case .square: return 2 * x
    case .sqrt: return 0.5 / x.squareRoot()
    case .reciprocalSqrt: return -0.5 / (x * x.squareRoot())
    case .negate: return -1
    case .absolute: return x > 0 ? 1 : x < 0 ? -1 : 0
    case .expm1: return F.exp(x)
    case .log1p: return 1 / (1 + x)
    case .sine: return F.cos(x)
    case .cosine: return -F.sin(x)
    }
  }
}

extension Tensor {
  public func unary(_ kind: Unary.Kind) -> Tensor { apply(Unary(kind), [self])[0] }
  public func relu() -> Tensor { unary(.relu) }
  public func silu() -> Tensor { unary(.silu) }
  public func sigmoid() -> Tensor { unary(.sigmoid) }
  public func tanh() -> Tensor { unary(.tanh) }
  public func exp() -> Tensor { unary(.exp) }
  public func log() -> Tensor { unary(.log) }
  public func softplus() -> Tensor { unary(.softplus) }
  public func logSigmoid() -> Tensor { unary(.logSigmoid) }
  public static prefix func - (x: Tensor) -> Tensor { x.unary(.negate) }
}
