import GyreLayers
import GyreRecurrence
import GyreTensors

/// Activations with options or parameters of their own, besides the plain ones.
///
/// | name | f(x) | |
/// | --- | --- | --- |
/// | `identity` | x; gated: a bilinear layer | Shazeer, 2020; Pearce et al., 2024 |
/// | `relu`, `sigmoid`, … | an element-wise function; gated: ReGLU, GLU, … | Shazeer, 2020 |
/// | `smelu` | 0, (x + β)²/4β, x below, within and above ±β | Shamir et al., 2022 |
/// | `xgelu`, `xsilu` | (1 + 2a) f(x) − a x, a learned from 0 | Huang, "Expanded gating ranges", 2024 |
/// | `poly_relu` | Σ_{i=0…n} aᵢ relu(x)ⁱ | Zhuo et al., "PolyCom", 2024 |
/// | `poly_norm` | a₀ + Σ_{i=1…n} aᵢ xⁱ/rms(xⁱ) | the same |
///
/// aᵢ = 1/n at the start, a₀ = 0.
struct ShapedActivation: Sendable {
  enum Kind: Sendable, Hashable {
    case identity, smelu, xgelu, xsilu, polyRelu, polyNorm
    case plain(Unary.Kind)

    private static let named: [(String, Kind)] = [
      ("identity", .identity), ("smelu", .smelu), ("xgelu", .xgelu), ("xsilu", .xsilu),
      ("poly_relu", .polyRelu), ("poly_norm", .polyNorm),
    ]

    init(_ name: String, field: String = "activation") throws(ConfigurationError) {
      let plain: [Unary.Kind] = [
        .relu, .reluSquared, .silu, .gelu, .geluTanh, .sigmoid, .tanh, .softplus,
      ]
      let known = Self.named + plain.map { ($0.name, Kind.plain($0)) }
      guard let found = known.first(where: { $0.0 == name }) else {
        throw ConfigurationError(field, "must be one of \(known.map(\.0)), is \(name)")
      }
      self = found.1
    }
  }

  private let kind: Kind
  private let beta: Double
  private let coefficients: Parameter?

  init(
    _ kind: Kind, beta: Double, order: Int, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    (self.kind, self.beta) = (kind, beta)
    switch kind {
    case .xgelu, .xsilu:
      coefficients = try p.parameter("expansion", [1], .zeros, decay: WeightDecay.none)
    case .polyRelu, .polyNorm:
      coefficients = try p.parameter(
        "coefficients", [order + 1], .each { $0 == 0 ? 0 : 1 / Double(order) },
        decay: WeightDecay.none)
    case .identity, .smelu, .plain: coefficients = nil
    }
  }

  func callAsFunction(_ x: Tensor) -> Tensor {
    switch kind {
    case .identity: return x
    case .plain(let f): return x.unary(f)
    case .smelu:
      let above = (x - beta).relu()
      let inside = (x + beta).relu() - above
      return inside * inside / (4 * beta) + above
    case .xgelu: return expanded(x.unary(.gelu), x)
    case .xsilu: return expanded(x.silu(), x)
    case .polyRelu: return polynomial(x.relu()) { $0 }
    case .polyNorm: return polynomial(x) { $0.rmsNormalized(epsilon: 1e-6) }
    }
  }

  private func expanded(_ f: Tensor, _ x: Tensor) -> Tensor {
    guard let coefficients else { return f }
    return f + (f * 2 - x) * coefficients.value
  }

  private func polynomial(_ x: Tensor, _ term: (Tensor) -> Tensor) -> Tensor {
    guard let coefficients else { return x }
    let a = coefficients.value.split([Int](repeating: 1, count: coefficients.shape[0]), axis: 0)
    var power = x
    var sum = term(power) * a[1] + a[0]
    for factor in a.dropFirst(2) {
      power = power * x
      sum = sum + term(power) * factor
    }
    return sum
  }
}

/// A feed-forward block with any activation of `ShapedActivation`, gated or not:
///
///     y = W₂ (f(W_g x) ∘ W_u x)    or    y = W₂ f(W_g x)
///
/// The GLU family, bilinear layers, SMELU, expanded gates, PolyReLU and PolyNorm. `gated_mlp` and `mlp`
/// are the fused forms of the common ones.
public struct ShapedMLP: SequenceMixer {
  public static let kind = "shaped_mlp"
  public struct Configuration: MixerConfiguration {
    public var activation = "poly_norm"
    public var gated = false
    /// Width of the hidden layer; 0: four times the model's, gated 8/3 of it.
    public var hidden = 0
    public var bias = false
    /// β of SMELU.
    public var beta = 1.0
    /// n of the polynomials.
    public var order = 3
    public init() {}
    public func resolved(width: Int) -> Self {
      with(self) { $0.hidden = hidden > 0 ? hidden : max(gated ? 8 * width / 3 : 4 * width, 1) }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      _ = try ShapedActivation.Kind(activation)
      try require(
        (0...1 << 30).contains(hidden), "hidden", "must be in 0...\(1 << 30), is \(hidden)")
      try require(beta >= 1e-6 && beta <= 1e6, "beta", "must be in [1e-6, 1e6], is \(beta)")
      try require((1...8).contains(order), "order", "must be in 1...8, is \(order)")
    }
  }
  public static let testConfigurations = [
    with(Configuration()) { $0.hidden = 24 },
    with(Configuration()) {
      $0.activation = "poly_relu"; $0.gated = true; $0.hidden = 20; $0.order = 2; $0.bias = true
    },
    with(Configuration()) {
      $0.activation = "smelu"; $0.beta = 0.5
    },
    with(Configuration()) {
      $0.activation = "identity"; $0.gated = true
    },
    with(Configuration()) {
      $0.activation = "xsilu"; $0.gated = true
    },
    with(Configuration()) { $0.activation = "xgelu" },
    with(Configuration()) {
      $0.activation = "sigmoid"; $0.gated = true
    },
  ]

  private let first, down: Linear
  private let activation: ShapedActivation
  private let gated: Bool
  private let hidden: Int

  public init(
    _ configuration: Configuration, width: Int, layer: LayerPosition,
    parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let c = configuration.resolved(width: width)
    (gated, hidden) = (c.gated, c.hidden)
    let bias: Initializer? = c.bias ? .zeros : nil
    first = try Linear(
      "up", inputs: width, outputs: c.gated ? 2 * c.hidden : c.hidden, bias: bias, &p)
    down = try Linear("down", inputs: c.hidden, outputs: width, bias: bias, &p)
    activation = try ShapedActivation(.init(c.activation), beta: c.beta, order: c.order, &p)
  }

  public var stateSpec: StateSpec { StateSpec() }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    guard gated else { return down(activation(first(x))) }
    let parts = first(x).split([hidden, hidden])
    return down(activation(parts[0]) * parts[1])
  }
}
