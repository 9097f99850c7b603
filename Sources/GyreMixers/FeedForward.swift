import GyreLayers
import GyreRecurrence
import GyreTensors

/// Gated feed-forward block: y = W₂(act(W_g x) ∘ W_u x).
///
/// Shazeer, "GLU variants improve Transformer", 2020. Gate and up are one matrix, `[2·hidden, D]`,
/// unless `separate`. Activation `powlu`: x^(3/(√x + 1)) σ(x) for x > 0, silu elsewhere.
public struct GatedMLP: SequenceMixer {
  public static let kind = "gated_mlp"
  /// The activation that is no `GatedUnit.Activation`.
  public static let powlu = "powlu"
  public struct Configuration: MixerConfiguration {
    /// Width of the hidden layer; 0: 8/3 of the model's width, rounded up to a multiple of 32.
    public var hidden = 0
    public var activation = "silu"
    public var bias = false
    /// Gate and up as matrices of their own: loading them copies nothing.
    public var separate = false
    public init() {}
    func hiddenSize(_ width: Int) -> Int {
      hidden > 0 ? hidden : (width * 8 / 3 + 31) / 32 * 32
    }
    public func resolved(width: Int) -> Self {
      var c = self
      c.hidden = hiddenSize(width)
      return c
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try require(hidden >= 0, "hidden", "must not be negative, is \(hidden)")
      _ = try self.unit()
    }
    /// The activation of the gated unit; nil for powlu, which is none of them.
    func unit() throws(ConfigurationError) -> GatedUnit.Activation? {
      if activation == GatedMLP.powlu { return nil }
      let known = GatedUnit.Activation.allCases
      guard let found = known.first(where: { "\($0)" == activation }) else {
        throw ConfigurationError(
          "activation",
          "must be one of \(known.map { "\($0)" } + [GatedMLP.powlu]), is \(activation)")
      }
      return found
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.hidden = 40; $0.bias = true; $0.separate = true; $0.activation = "geluTanh"
    },
    with(Configuration()) {
      $0.hidden = 24; $0.activation = powlu
    },
  ]

  private let unit: GatedUnitLayer

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    unit = try GatedUnitLayer(c, width: width, &p)
  }

  public var stateSpec: StateSpec { StateSpec() }
  public var takesTimeMajor: Bool { true }
  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    unit(x, output: context.output)
  }
  public var onlyMultipliesInput: Bool { true }
  public func appendToken(
    _ input: TokenInput, to p: inout TokenProgram, state: State
  ) -> Bool {
    unit.appendToken(input, to: &p)
  }
}

/// The maps of a gated feed-forward block, for blocks that hold one or many.
struct GatedUnitLayer: Sendable {
  private let gate: Linear?
  private let up, down: Linear
  private let activation: GatedUnit.Activation?

  init(
    _ c: GatedMLP.Configuration, width: Int, _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    activation = try c.unit()
    let hidden = c.hiddenSize(width)
    let bias: Initializer? = c.bias ? .zeros : nil
    gate = c.separate ? try Linear("gate", inputs: width, outputs: hidden, bias: bias, &p) : nil
    up = try Linear(
      "up", inputs: width, outputs: c.separate ? hidden : 2 * hidden, bias: bias, &p)
    down = try Linear("down", inputs: hidden, outputs: width, bias: bias, &p)
  }

  func callAsFunction(_ x: Tensor, output: DType? = nil) -> Tensor {
    guard let activation else {
      let parts =
        gate.map { [$0(x), up(x)] } ?? up(x).split([down.weight.shape[1], down.weight.shape[1]])
      return down(Self.powlu(parts[0]) * parts[1])
    }
    guard let gate else {
      // Sums for a bias and looked up rows have kernels for activations only.
      let isPlain = up.bias == nil && x.note == nil
      if isPlain, activation == .silu,
        let hidden = LinearGroup.apply([.init(x, up.weight.value, .gatedSiLU)])
      {
        return down(hidden[0], output: output)
      }
      let both = isPlain ? up(x, output: ComputePrecision.betweenProducts(on: x.device)) : up(x)
      return down(both.gatedUnit(activation), output: output)
    }
    return down(gate(x).unary(GatedUnit(activation).unary) * up(x))
  }

  func appendToken(_ input: TokenInput, to p: inout TokenProgram) -> Bool {
    guard let activation = activation.map({ GatedUnit($0).unary }) else { return false }
    let size = down.weight.shape[1]
    let hidden = p.scratch("hidden", size)
    var operand = TokenProgram.Operand(hidden, size)
    if let gate {
      let gates = p.scratch("hidden gates", size)
      p.phases.append(
        .products(.init([input.operand], [up.token(to: hidden), gate.token(to: gates)])))
      operand.gate = (gates, activation)
    } else {
      p.phases.append(.products(.init([input.operand], [up.token(to: hidden, .gated(activation))])))
    }
    p.phases.append(.products(.init([operand], [input.output(down)])))
    return true
  }

  /// σ(x) (x^(3/(√x + 1)) + min(x, 0)), the power of max(x, 0).
  private static func powlu(_ x: Tensor) -> Tensor {
    // Below the floor the power is less than 1e-35.
    let positive = x.maximum(.full(1e-12, [1], on: x.device))
    let power = (positive.log() * 3 / (positive.unary(.sqrt) + 1)).exp()
    return x.sigmoid() * (power - (-x).relu())
  }
}

/// Two linear maps with an activation between: y = W₂ act(W₁ x).
public struct PlainMLP: SequenceMixer {
  public static let kind = "mlp"
  public struct Configuration: MixerConfiguration {
    /// Width of the hidden layer; 0: four times the model's width.
    public var hidden = 0
    public var activation = Unary.Kind.reluSquared.name
    public var bias = false
    public init() {}
    public func validate(width: Int) throws(ConfigurationError) {
      try require(hidden >= 0, "hidden", "must not be negative, is \(hidden)")
      try HeadSizes.activation(activation)
    }
  }
  public static let testConfigurations = [Configuration()]

  private let up: Linear
  private let down: Linear
  private let activation: Unary.Kind

  public init(
    _ c: Configuration, width: Int, layer: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let hidden = c.hidden > 0 ? c.hidden : 4 * width
    activation = Unary.Kind.named(c.activation) ?? .reluSquared
    let bias: Initializer? = c.bias ? .zeros : nil
    up = try Linear("up", inputs: width, outputs: hidden, bias: bias, &p)
    down = try Linear("down", inputs: hidden, outputs: width, bias: bias, &p)
  }

  public var stateSpec: StateSpec { StateSpec() }
  public var takesTimeMajor: Bool { true }
  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    down(up(x).unary(activation))
  }
  public func appendToken(
    _ input: TokenInput, to p: inout TokenProgram, state: State
  ) -> Bool {
    let size = down.weight.shape[1]
    let hidden = p.scratch("hidden", size)
    p.phases.append(.products(.init([input.operand], [up.token(to: hidden, .set(activation))])))
    p.phases.append(.products(.init([.init(hidden, size)], [input.output(down)])))
    return true
  }
}

extension Unary.Kind {
  /// The name in configurations: "relu_squared" is written reluSquared.
  public var name: String { "\(self)" }
  public static func named(_ name: String) -> Unary.Kind? { allCases.first { $0.name == name } }
}
