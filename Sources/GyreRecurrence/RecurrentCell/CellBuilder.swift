import GyreTensors

/// Shape of the recurrent matrices of a cell.
public enum RecurrentMatrix: Sendable, Hashable {
  /// Block-diagonal with one block a head; one head is dense.
  case dense
  /// One weight a unit.
  case diagonal
  /// U Vᵀ of a rank.
  case lowRank(Int)
  /// U Vᵀ + diagonal.
  case lowRankPlusDiagonal(Int)
}

/// A number per unit while a cell is described.
public struct CellValue {
  fileprivate let builder: CellBuilder
  fileprivate let node: Int
  fileprivate var space: Int { builder.graph.nodes[node].space }

  fileprivate static func binary(_ op: CellOperation, _ a: CellValue, _ b: CellValue) -> CellValue {
    CellValue(builder: a.builder, node: a.builder.graph.binary(op, a.node, b.node))
  }
  fileprivate func constant(_ x: Double) -> CellValue {
    CellValue(builder: builder, node: builder.graph.constant(x, space: space))
  }
  fileprivate func unary(_ op: CellOperation) -> CellValue {
    CellValue(builder: builder, node: builder.graph.unary(op, node))
  }

  public static func + (a: CellValue, b: CellValue) -> CellValue { binary(.add, a, b) }
  public static func - (a: CellValue, b: CellValue) -> CellValue { binary(.subtract, a, b) }
  public static func * (a: CellValue, b: CellValue) -> CellValue { binary(.multiply, a, b) }
  public static func / (a: CellValue, b: CellValue) -> CellValue { binary(.divide, a, b) }
  public static func + (a: CellValue, b: Double) -> CellValue { a + a.constant(b) }
  public static func - (a: CellValue, b: Double) -> CellValue { a - a.constant(b) }
  public static func * (a: CellValue, b: Double) -> CellValue { a * a.constant(b) }
  public static func + (a: Double, b: CellValue) -> CellValue { b.constant(a) + b }
  public static func - (a: Double, b: CellValue) -> CellValue { b.constant(a) - b }
  public static func * (a: Double, b: CellValue) -> CellValue { b.constant(a) * b }
  public static func / (a: Double, b: CellValue) -> CellValue { b.constant(a) / b }
  public static prefix func - (a: CellValue) -> CellValue { -1 * a }
}

public func tanh(_ x: CellValue) -> CellValue { x.unary(.tanh) }
public func sigmoid(_ x: CellValue) -> CellValue { x.unary(.sigmoid) }
public func relu(_ x: CellValue) -> CellValue { x.unary(.relu) }
public func exp(_ x: CellValue) -> CellValue { x.unary(.exp) }
public func softplus(_ x: CellValue) -> CellValue { x.unary(.softplus) }
public func logSigmoid(_ x: CellValue) -> CellValue { -softplus(-x) }
public func maximum(_ a: CellValue, _ b: CellValue) -> CellValue { .binary(.maximum, a, b) }

/// Collects what a cell is: gates, states, weights, and how the next state follows from them.
///
/// A value lives in a space of units; point-wise operations stay in it, products lead from one space
/// to another. Space 0 has the hidden units.
public final class CellBuilder {
  /// Hidden units, blocks of the recurrent matrices, their shape.
  public let hidden: Int
  public let heads: Int
  public let matrix: RecurrentMatrix
  fileprivate(set) var graph = CellGraph()
  private(set) var parts = CellParts()

  init(hidden: Int, heads: Int, matrix: RecurrentMatrix) {
    (self.hidden, self.heads, self.matrix) = (hidden, heads, matrix)
    parts.spaces = [hidden]
  }

  private func value(_ node: Int) -> CellValue { CellValue(builder: self, node: node) }

  /// Another space of `width` units.
  public func space(_ width: Int) -> Int {
    parts.spaces.append(width)
    return parts.spaces.count - 1
  }

  /// A gate's share of the pre-activations W x + b of a token.
  public func input(_ name: String, bias: Initializer = .zeros, space: Int = 0) -> CellValue {
    parts.inputs.append(.init(name: name, space: space, bias: bias))
    return value(graph.leaf(.input, parts.inputs.count - 1, space: space))
  }

  /// What the cell remembers. `bounds`: what it cannot leave when it starts inside, for projections.
  public func state(
    _ name: String, initial: Double = 0, bounds: ClosedRange<Double>? = nil, space: Int = 0
  ) -> CellValue {
    let node = graph.leaf(.state, parts.states.count, space: space)
    parts.states.append(
      .init(name: name, space: space, initial: initial, bounds: bounds, next: node))
    return value(node)
  }

  /// A trained number per unit.
  public func parameter(_ name: String, _ initializer: Initializer, space: Int = 0) -> CellValue {
    parts.parameters.append(
      .init(name: name, space: space, initializer: initializer, constant: nil))
    return value(graph.leaf(.parameter, parts.parameters.count - 1, space: space))
  }

  /// A given number per unit that is not trained.
  public func constant(_ name: String, _ values: [Double], space: Int = 0) -> CellValue {
    precondition(values.count == parts.spaces[space], "cell: \(name) has \(values.count) units")
    parts.parameters.append(
      .init(name: name, space: space, initializer: .zeros, constant: values.map(Float.init)))
    return value(graph.leaf(.parameter, parts.parameters.count - 1, space: space))
  }

  /// R v with a matrix of the kind that the configuration asks for.
  public func recurrent(_ name: String, _ v: CellValue, _ initializer: Initializer? = nil)
    -> CellValue
  {
    switch matrix {
    case .dense:
      return product(
        name, v, heads: heads, initializer ?? .fanIn(hidden / max(heads, 1)))
    case .diagonal: return parameter(name, CellBuilder.diagonalStart(hidden)) * v
    case .lowRank(let rank): return lowRank(name, v, rank, initializer)
    case .lowRankPlusDiagonal(let rank):
      return lowRank(name, v, rank, initializer)
        + parameter(name + ".diagonal", CellBuilder.diagonalStart(hidden)) * v
    }
  }

  /// Normal with variance 4/(5d), as ParaRNN's diagonals.
  static func diagonalStart(_ hidden: Int) -> Initializer {
    .normal(standardDeviation: 2 / (5 * Double(hidden)).squareRoot())
  }

  private func lowRank(
    _ name: String, _ v: CellValue, _ rank: Int, _ initializer: Initializer?
  ) -> CellValue {
    let inner = space(rank)
    let down = product(name + ".right", v, to: inner, heads: 1, .fanIn(hidden))
    return product(name + ".left", down, to: v.space, heads: 1, initializer ?? .fanIn(rank))
  }

  /// M v into a space, block-diagonal with `heads` blocks `[heads, rows / heads, columns / heads]`.
  public func product(
    _ name: String, _ v: CellValue, to space: Int = 0, heads: Int, _ initializer: Initializer
  ) -> CellValue {
    let (rows, columns) = (parts.spaces[space], parts.spaces[v.space])
    precondition(
      heads > 0 && rows % heads == 0 && columns % heads == 0,
      "cell: \(heads) heads do not divide \(rows) and \(columns)")
    parts.matrices.append(
      .init(
        name: name, from: v.space, to: space, heads: heads, isShared: false,
        initializer: initializer, constant: nil))
    return value(graph.product(.product, parts.matrices.count - 1, v.node, space: space))
  }

  /// M v with a given matrix `[rows / heads, columns / heads]`, the same for all heads and not
  /// trained.
  public func product(
    _ name: String, _ v: CellValue, to space: Int, heads: Int, constant: [Double]
  ) -> CellValue {
    let (rows, columns) = (parts.spaces[space] / heads, parts.spaces[v.space] / heads)
    precondition(constant.count == rows * columns, "cell: \(name) is not \(rows) by \(columns)")
    parts.matrices.append(
      .init(
        name: name, from: v.space, to: space, heads: heads, isShared: true, initializer: .zeros,
        constant: constant.map(Float.init)))
    return value(graph.product(.product, parts.matrices.count - 1, v.node, space: space))
  }

  /// Says what a state becomes.
  public func next(_ state: CellValue, _ value: CellValue) {
    let leaf = graph.nodes[state.node]
    precondition(leaf.operation == .state, "cell: next of what is not a state")
    parts.states[leaf.index].next = value.node
  }

  /// The finished description; `output` is a state whose next value the cell gives out.
  func description(output: CellValue) -> CellDescription {
    let leaf = graph.nodes[output.node]
    precondition(leaf.operation == .state, "cell: the output must be a state")
    return CellDescription(parts: parts, graph: graph, output: leaf.index)
  }
}

/// The declared parts of a cell.
public struct CellParts: Sendable {
  public struct Input: Sendable {
    public let name: String
    public let space: Int
    public let bias: Initializer
  }
  public struct StateEntry: Sendable {
    public let name: String
    public let space: Int
    public let initial: Double
    public let bounds: ClosedRange<Double>?
    /// The node that it becomes.
    public fileprivate(set) var next: Int
  }
  public struct ParameterEntry: Sendable {
    public let name: String
    public let space: Int
    public let initializer: Initializer
    /// Elements that are not trained.
    public let constant: [Float]?
  }
  public struct Matrix: Sendable {
    public let name: String
    public let from, to, heads: Int
    /// One block for all heads.
    public let isShared: Bool
    public let initializer: Initializer
    /// Elements that are not trained.
    public let constant: [Float]?
  }
  /// Units of each space.
  public fileprivate(set) var spaces: [Int] = []
  public fileprivate(set) var inputs: [Input] = []
  public fileprivate(set) var states: [StateEntry] = []
  public fileprivate(set) var parameters: [ParameterEntry] = []
  public fileprivate(set) var matrices: [Matrix] = []

  /// Appends an input without a bias; its number.
  mutating func addInput(_ name: String, space: Int) -> Int {
    inputs.append(.init(name: name, space: space, bias: .zeros))
    return inputs.count - 1
  }
  /// Replaces the nodes that states become.
  mutating func setNext(_ nodes: [Int]) {
    for (s, node) in nodes.enumerated() { states[s].next = node }
  }

  /// `[blocks, rows, columns]` of a matrix.
  public func shape(_ m: Matrix) -> Shape {
    [m.isShared ? 1 : m.heads, spaces[m.to] / m.heads, spaces[m.from] / m.heads]
  }
  /// Width of all pre-activations of a token.
  public var inputWidth: Int { inputs.reduce(0) { $0 + spaces[$1.space] } }
  /// Where an input starts among the pre-activations.
  func inputOffset(_ i: Int) -> Int { inputs[..<i].reduce(0) { $0 + spaces[$1.space] } }
}

/// A cell with its sizes: parts and the expression of the next state.
public struct CellDescription: Sendable {
  public let parts: CellParts
  public let graph: CellGraph
  /// The state whose next value is the output.
  public let output: Int
}

/// A recurrent cell: one short file that says how the next state follows from the input and the
/// state. Derivatives, kernels, parallel execution and the mixer follow from the description.
///
/// The stored properties are the cell's options, each with a default.
public protocol Cell: Codable, Hashable, Sendable {
  /// The name in configurations: "mgu".
  static var kind: String { get }
  init()
  /// Options for tests besides the defaults.
  static var variants: [Self] { get }
  /// Describes the cell and returns the state that is the output.
  func describe(_ c: CellBuilder) -> CellValue
  /// The first option that cannot be, and what it must be; nil where all can.
  func problem(hidden: Int) -> (field: String, reason: String)?
  /// The shape of the recurrent matrices where the configuration does not say.
  static var defaultMatrix: RecurrentMatrix { get }
}

extension Cell {
  public static var variants: [Self] { [] }
  public static var defaultMatrix: RecurrentMatrix { .dense }
  public func problem(hidden: Int) -> (field: String, reason: String)? { nil }

  /// The description for sizes.
  public func description(
    hidden: Int, heads: Int = 1, matrix: RecurrentMatrix = Self.defaultMatrix
  ) -> CellDescription {
    let builder = CellBuilder(hidden: hidden, heads: heads, matrix: matrix)
    let output = describe(builder)
    return builder.description(output: output)
  }
}
