import GyreLayers
import GyreRecurrence
import GyreTensors

/// Options of the classical recurrent cells.
public struct CellConfiguration: MixerConfiguration {
  /// Hidden units; 0: the model's width.
  public var hidden = 0
  /// Blocks of a block-diagonal recurrent matrix; 1: dense.
  public var heads = 1
  /// Whether an output projection follows; without one `hidden` must be the width.
  public var projects = true
  /// Added to the forget gate's bias at the start (LSTM).
  public var forgetBias = 1.0
  /// Token by token or all tokens at once.
  public var execution = CellExecution.automatic
  public var dropout = RecurrentDropout()
  public init() {}

  func hiddenSize(_ width: Int) -> Int { hidden > 0 ? hidden : width }
  public func validate(width: Int) throws(ConfigurationError) {
    try require(hidden >= 0, "hidden", "must not be negative, is \(hidden)")
    try HeadSizes.divide(hiddenSize(width), by: heads, field: "heads", of: "hidden size")
    try require(
      projects || hiddenSize(width) == width, "projects",
      "must be true where hidden (\(hidden)) is not the width \(width)")
    try require(forgetBias.isFinite, "forgetBias", "must be finite")
    try dropout.validate()
  }
}

/// A cell around `CellScan`: gates = W x + b, the recurrence, an output projection.
struct CellLayer: Sendable {
  private let input: Linear
  private let recurrent: Parameter
  private let recurrentBias: Parameter
  private let output: Linear?
  private let engine: CellScan
  private let dropout: RecurrentDropout

  init(
    _ cell: CellScan.Cell, gates: Int, bias: @escaping @Sendable (Int, Int) -> Double,
    _ c: CellConfiguration, recurrent initializer: Initializer? = nil, width: Int,
    _ p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    dropout = c.dropout
    let hidden = c.hiddenSize(width)
    input = try Linear(
      "input", inputs: width, outputs: gates * hidden, bias: .each { bias($0, hidden) },
      initializer: .fanIn(hidden), &p)
    let block = hidden / c.heads
    recurrent = try p.parameter(
      "recurrent.weight",
      c.heads == 1 ? [gates * hidden, hidden] : [c.heads, gates * block, block],
      initializer ?? .fanIn(block))
    recurrentBias = try p.parameter("recurrent.bias", [gates * hidden], .zeros)
    output = c.projects ? try Linear("output", inputs: hidden, outputs: width, &p) : nil
    engine = CellScan(
      cell: cell, hiddenSize: hidden, heads: c.heads, execution: c.execution,
      noise: c.dropout.noise)
  }

  var stateSpec: StateSpec { engine.stateSpec }
  var takesTimeMajor: Bool { engine.takesTimeMajor }
  /// A mask on the input reads it too.
  var onlyMultipliesInput: Bool { dropout == RecurrentDropout() }

  func callAsFunction(_ x: Tensor, _ state: inout State, _ context: SequenceContext) -> Tensor {
    let (noise, name) = (context.dropout, recurrent.name)
    let own = dropout.input(x, noise, name)
    let type = ComputePrecision.betweenProducts(on: x.device)
    // Where both biases have one gradient, training makes it once.
    let joins = Tape.current != nil && !engine.cell.isGRU
    let bias = input.bias?.value
    let both = joins ? bias.map { recurrentBias.value + $0 } : nil
    let h = engine(
      .init(
        gates: own.linear(
          input.weight.value, bias: both == nil ? bias : nil,
          output: engine.takesRoundedGates(like: own) ? type : nil),
        recurrentWeight: dropout.matrix(recurrent.value, noise, name),
        recurrentBias: both ?? recurrentBias.value),
      noise: dropout.values(engine.noiseInputs, output: "h", like: x, noise, name),
      state: &state, form: context.form, reset: context.reset,
      output: output == nil ? context.output ?? .float32 : type, isTimeMajor: context.isTimeMajor)
    return output?(h, output: context.output) ?? h
  }
}

/// Long short-term memory.
///
///     i, f, o = σ(W x + R h + b)    g = tanh(W x + R h + b)    c ← f ∘ c + i ∘ g    h = o ∘ tanh c
///
/// Hochreiter and Schmidhuber, "Long short-term memory", 1997. Gate rows i, f, g, o as in torch.nn.
///
/// State: h and c `[H]`. Engine: `CellScan`.
public struct LSTM: SequenceMixer {
  public static let kind = "lstm"
  public typealias Configuration = CellConfiguration
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.hidden = 24; $0.heads = 3
    },
    with(Configuration()) { $0.projects = false },
    with(Configuration()) {
      $0.execution = .newton; $0.hidden = 24; $0.heads = 3
    },
    with(Configuration()) {
      $0.dropout.zoneout = 0.1; $0.dropout.zoneoutMemory = 0.4; $0.dropout.variational = 0.2
    },
  ]
  private let layer: CellLayer

  public init(
    _ c: Configuration, width: Int, layer _: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let forget = c.forgetBias
    layer = try CellLayer(
      .lstm, gates: 4, bias: { i, hidden in i / hidden == 1 ? forget : 0 }, c, width: width, &p)
  }
  public var stateSpec: StateSpec { layer.stateSpec }
  public var takesTimeMajor: Bool { layer.takesTimeMajor }
  public var onlyMultipliesInput: Bool { layer.onlyMultipliesInput }
  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    layer(x, &state, context)
  }
}

/// Gated recurrent unit.
///
///     r, z = σ(W x + R h + b)    n = tanh(W x + b + r ∘ (R h + b'))    h ← (1 − z) ∘ n + z ∘ h
///
/// Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014, with the reset
/// gate after the product. Gate rows r, z, n as in torch.nn.
///
/// State: h `[H]`. Engine: `CellScan`.
public struct GRU: SequenceMixer {
  public static let kind = "gru"
  public struct Configuration: MixerConfiguration {
    /// Hidden units; 0: the model's width.
    public var hidden = 0
    /// Blocks of a block-diagonal recurrent matrix; 1: dense.
    public var heads = 1
    /// Whether an output projection follows; without one `hidden` must be the width.
    public var projects = true
    /// n = tanh(W x + b + R (r ∘ h)): the reset gate before the product, as Cho et al. have it.
    public var resetsBefore = false
    /// Token by token or all tokens at once.
    public var execution = CellExecution.automatic
    public var dropout = RecurrentDropout()
    /// Steps that the slowest units keep what they hold at the start: biases of the update gate log 1 …
    /// log(memory − 1) over the units (Tallec and Ollivier, "Can recurrent neural networks warp time?",
    /// 2018, https://arxiv.org/abs/1804.11188); 0: biases of zero.
    public var memory = 0
    public init() {}

    var cells: CellConfiguration {
      with(CellConfiguration()) {
        $0.hidden = hidden; $0.heads = heads; $0.projects = projects; $0.dropout = dropout
        $0.execution = execution
      }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try cells.validate(width: width)
      try require(
        memory == 0 || (3...1 << 40).contains(memory), "memory",
        "must be 0 or at least 3, is \(memory)")
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.hidden = 24; $0.heads = 3
    },
    with(Configuration()) { $0.projects = false },
    with(Configuration()) { $0.execution = .newton },
    with(Configuration()) {
      $0.dropout.zoneout = 0.1; $0.dropout.recurrent = 0.2; $0.dropout.weight = 0.3
    },
    with(Configuration()) {
      $0.resetsBefore = true; $0.memory = 50
    },
  ]
  private let layer: CellLayer

  public init(
    _ c: Configuration, width: Int, layer _: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let memory = Double(c.memory)
    layer = try CellLayer(
      c.resetsBefore ? .gruOriginal : .gru, gates: 3,
      bias: { row, hidden in
        // Rows r, z, n: z keeps.
        guard memory > 0, row / hidden == 1 else { return 0 }
        return Functions.log(
          1 + (memory - 2) * Double(row % hidden) / Double(max(hidden - 1, 1)))
      }, c.cells, width: width, &p)
  }
  public var stateSpec: StateSpec { layer.stateSpec }
  public var takesTimeMajor: Bool { layer.takesTimeMajor }
  public var onlyMultipliesInput: Bool { layer.onlyMultipliesInput }
  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    layer(x, &state, context)
  }
}

/// sLSTM of xLSTM with block-diagonal recurrent matrices: exponential gates, normalised memory.
///
///     i = e^a    f = σ(a)    z = tanh a    o = σ(a)    c ← f c + i z    n ← f n + i    h = o c / n
///
/// with a = W x + R h + b. Beck et al., "xLSTM: extended long short-term memory", 2024.
/// https://arxiv.org/abs/2405.04517 Gate rows i, f, z, o; R starts at zero and the forget biases are
/// spread over the units as there. `slstm_log` has the exponential forget gate and diagonal
/// recurrence.
///
/// State: h, c, n and m `[H]`. Engine: `CellScan`.
public struct SLSTM: SequenceMixer {
  public static let kind = "slstm"
  public struct Configuration: MixerConfiguration {
    /// Hidden units; 0: the model's width.
    public var hidden = 0
    /// Blocks of the recurrent matrices.
    public var heads = 4
    /// Whether an output projection follows; without one `hidden` must be the width.
    public var projects = true
    /// Without zoneout and recurrent dropout: c, n and m are one number on a sliding scale.
    public var dropout = RecurrentDropout()
    public init() {}

    var cells: CellConfiguration {
      with(CellConfiguration()) {
        $0.hidden = hidden; $0.heads = heads; $0.projects = projects; $0.dropout = dropout
      }
    }
    public func validate(width: Int) throws(ConfigurationError) {
      try cells.validate(width: width)
      try dropout.validate(allowsNoise: false)
    }
  }
  public static let testConfigurations = [
    Configuration(),
    with(Configuration()) {
      $0.hidden = 24; $0.heads = 1
    },
    with(Configuration()) { $0.projects = false },
  ]
  private let layer: CellLayer

  public init(
    _ c: Configuration, width: Int, layer position: LayerPosition,
    parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let depth = Double(position.index) / Double(max(position.count - 1, 1))
    layer = try CellLayer(
      .slstm, gates: 4,
      bias: { i, hidden in
        guard i / hidden == 1 else { return 0 }
        // 5 − 12 (j / (D − 1))^(0.3 + 1.3 l / (L − 1)) within a head.
        let units = hidden / c.heads
        let place = Double(i % hidden % units) / Double(max(units - 1, 1))
        return 5 - 12 * Functions.pow(place, 0.3 + 1.3 * depth)
      }, c.cells, recurrent: .zeros, width: width, &p)
  }
  public var stateSpec: StateSpec { layer.stateSpec }
  public var takesTimeMajor: Bool { layer.takesTimeMajor }
  public var onlyMultipliesInput: Bool { layer.onlyMultipliesInput }
  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    layer(x, &state, context)
  }
}
