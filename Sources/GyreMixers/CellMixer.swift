import GyreLayers
import GyreRecurrence
import GyreTensors

/// Options that all described cells share, beside the cell's own.
public struct CellMixerConfiguration<C: Cell>: MixerConfiguration {
  public enum Matrix: String, Sendable, Hashable, Codable {
    /// What the cell is usually run with.
    case usual
    case dense, diagonal
    case lowRank = "low_rank"
    case lowRankPlusDiagonal = "low_rank_plus_diagonal"
  }
  /// The cell's options.
  public var cell = C()
  /// Hidden units; 0: the model's width.
  public var hidden = 0
  /// Shape of the recurrent matrices, blocks of dense ones, rank of those of low rank.
  public var matrix = Matrix.usual
  public var heads = 1
  public var rank = 8
  /// Whether an output projection follows; without one `hidden` must be the width.
  public var projects = true
  /// Token by token or all tokens at once.
  public var execution = CellExecution.automatic
  public var dropout = RecurrentDropout()
  public init() {}

  private enum CodingKeys: String, CodingKey {
    case hidden, matrix, heads, rank, projects, execution, dropout
  }
  /// The cell's options are in the same object.
  public init(from decoder: any Decoder) throws {
    let c = try decoder.container(keyedBy: CodingKeys.self)
    cell = try C(from: decoder)
    hidden = try c.decode(Int.self, forKey: .hidden)
    matrix = try c.decode(Matrix.self, forKey: .matrix)
    heads = try c.decode(Int.self, forKey: .heads)
    rank = try c.decode(Int.self, forKey: .rank)
    projects = try c.decode(Bool.self, forKey: .projects)
    execution = try c.decode(CellExecution.self, forKey: .execution)
    dropout = try c.decode(RecurrentDropout.self, forKey: .dropout)
  }
  public func encode(to encoder: any Encoder) throws {
    try cell.encode(to: encoder)
    var c = encoder.container(keyedBy: CodingKeys.self)
    try c.encode(hidden, forKey: .hidden)
    try c.encode(matrix, forKey: .matrix)
    try c.encode(heads, forKey: .heads)
    try c.encode(rank, forKey: .rank)
    try c.encode(projects, forKey: .projects)
    try c.encode(execution, forKey: .execution)
    try c.encode(dropout, forKey: .dropout)
  }

  func hiddenSize(_ width: Int) -> Int { hidden > 0 ? hidden : width }
  var recurrent: RecurrentMatrix {
    switch matrix {
    case .usual: C.defaultMatrix
    case .dense: .dense
    case .diagonal: .diagonal
    case .lowRank: .lowRank(rank)
    case .lowRankPlusDiagonal: .lowRankPlusDiagonal(rank)
    }
  }

  public func validate(width: Int) throws(ConfigurationError) {
    try require(hidden >= 0, "hidden", "must not be negative, is \(hidden)")
    try HeadSizes.divide(hiddenSize(width), by: heads, field: "heads", of: "hidden size")
    try require(
      (1...hiddenSize(width)).contains(rank)
        || (matrix != .lowRank && matrix != .lowRankPlusDiagonal),
      "rank", "must be in 1...\(hiddenSize(width)), is \(rank)")
    try require(
      projects || hiddenSize(width) == width, "projects",
      "must be true where hidden (\(hidden)) is not the width \(width)")
    try dropout.validate()
    if let problem = cell.problem(hidden: hiddenSize(width)) {
      throw ConfigurationError(problem.field, problem.reason)
    }
    if dropout.weight > 0 {
      let d = cell.description(hidden: hiddenSize(width), heads: heads, matrix: recurrent)
      try require(
        d.parts.matrices.contains { $0.constant == nil }, "dropout.weight",
        "must be 0 where the cell has no recurrent matrix")
    }
  }
}

/// A described cell as a layer: pre-activations W x + b, the recurrence, an output projection. The
/// cell's file has the equations.
///
/// State: the cell's. Engine: `RecurrentCell`.
public struct CellMixer<C: Cell>: SequenceMixer {
  public static var kind: String { C.kind }
  public typealias Configuration = CellMixerConfiguration<C>

  /// Every variant of the cell, every shape of matrix, both executions.
  public static var testConfigurations: [Configuration] {
    let plain = with(Configuration()) { $0.execution = .sequential }
    return [
      plain,
      with(plain) {
        $0.matrix = .dense; $0.hidden = 24; $0.heads = 3
      },
      with(plain) {
        $0.matrix = .lowRankPlusDiagonal; $0.rank = 3; $0.projects = hasOwnWidth
      },
      with(plain) {
        $0.matrix = .diagonal; $0.execution = .newton
      },
      with(plain) {
        $0.matrix = .dense; $0.execution = .newton
      },
      with(plain) {
        $0.dropout.zoneout = 0.1; $0.dropout.zoneoutMemory = 0.2; $0.dropout.recurrent = 0.3
      },
    ]
      + C.variants.map { variant in with(plain) { $0.cell = variant } }
  }

  /// Whether the cell gives other than its hidden units.
  private static var hasOwnWidth: Bool {
    let d = C().description(hidden: 32)
    return d.parts.states[d.output].space != 0
  }

  private let input: Linear
  private let matrices, parameters: [Parameter?]
  private let output: Linear?
  private let engine: RecurrentCell
  private let constants: (matrices: [Tensor?], parameters: [Tensor?])
  private let dropout: RecurrentDropout
  private let noiseInputs: [(name: String, width: Int)]
  private let outputState: String

  public init(
    _ c: Configuration, width: Int, layer _: LayerPosition, parameters p: inout ParameterBuilder
  ) throws(ConfigurationError) {
    let hidden = c.hiddenSize(width)
    let description = c.cell.description(hidden: hidden, heads: c.heads, matrix: c.recurrent)
    let parts = description.parts
    dropout = c.dropout
    outputState = parts.states[description.output].name
    engine = RecurrentCell(description.with(c.dropout.noise), execution: c.execution)
    let all = engine.plan.parts
    noiseInputs = all.inputs.dropFirst(parts.inputs.count).map { ($0.name, all.spaces[$0.space]) }
    input = try Linear(
      "input", inputs: width, outputs: parts.inputWidth, bias: CellMixer.bias(parts),
      initializer: .fanIn(hidden), &p)
    let given = parts.spaces[parts.states[description.output].space]
    try require(
      c.projects || given == width, "projects",
      "must be true where the cell gives \(given) units for the width \(width)")
    output = c.projects ? try Linear("output", inputs: given, outputs: width, &p) : nil
    (matrices, parameters) = try p.scoped("recurrent") { p throws(ConfigurationError) in
      var made: ([Parameter?], [Parameter?]) = ([], [])
      for m in parts.matrices {
        made.0.append(
          m.constant == nil
            ? try p.parameter(m.name + ".weight", parts.shape(m), m.initializer) : nil)
      }
      for v in parts.parameters {
        made.1.append(
          v.constant == nil
            ? try p.parameter(v.name, [parts.spaces[v.space]], v.initializer) : nil)
      }
      return made
    }
    let device = input.weight.value.device
    constants = (
      parts.matrices.map { m in
        m.constant.map { Tensor($0, shape: parts.shape(m), on: device) }
      },
      parts.parameters.map { v in
        v.constant.map { Tensor($0, shape: [$0.count], on: device) }
      }
    )
  }

  /// The biases of the gates, one after the other.
  private static func bias(_ parts: CellParts) -> Initializer {
    .values { _, generator in
      parts.inputs.enumerated().flatMap { i, input in
        var own = generator
        own.stream &+= UInt64(i) << 32
        return input.bias.elements([parts.spaces[input.space]], own)
      }
    }
  }

  public var stateSpec: StateSpec { engine.stateSpec }

  public func callAsFunction(_ x: Tensor, state: inout State, context: inout SequenceContext)
    -> Tensor
  {
    func values(_ trained: [Parameter?], _ given: [Tensor?]) -> [Tensor] {
      zip(trained, given).compactMap { $0?.value ?? $1 }
    }
    let (noise, name) = (context.dropout, input.weight.name)
    let gates = input(dropout.input(x, noise, name))
    let extra = dropout.values(noiseInputs, output: outputState, like: x, noise, name)
    let h = engine(
      .init(
        gates: extra.isEmpty ? gates : concatenated([gates] + extra),
        matrices: zip(matrices, constants.matrices).compactMap { trained, given in
          trained.map { dropout.matrix($0.value, noise, $0.name) } ?? given
        },
        parameters: values(parameters, constants.parameters)),
      state: &state, form: context.form, reset: context.reset)
    return output?(h) ?? h
  }
}
