import GyreTensors

/// What a node of a cell's description does with a number per unit.
public enum CellOperation: Sendable, Hashable, CaseIterable {
  // Leaves.
  case constant, input, state, parameter
  /// A product's value that the forward pass kept, and a cotangent, in derived graphs.
  case kept, cotangent
  // Between units: R v and Rᵀ v.
  case product, transposed
  // Point-wise.
  case add, subtract, multiply, divide
  /// c·a, a + c, c − a and c / a with a constant c.
  case scale, offset, from, over
  case tanh, sigmoid, relu, exp, softplus, maximum
  /// 1 where a > 0, and where a > b.
  case step, greater

  public var isLeaf: Bool {
    switch self {
    case .constant, .input, .state, .parameter, .kept, .cotangent: true
    default: false
    }
  }
  public var isProduct: Bool { self == .product || self == .transposed }
}

/// One node: an operation on earlier nodes, in one space of units.
public struct CellNode: Sendable, Hashable {
  public var operation: CellOperation
  /// Operands by number, −1 where there is none.
  public var a = -1
  public var b = -1
  /// Which input, state, parameter, matrix or cotangent.
  public var index = -1
  public var constant = 0.0
  public var space = 0
}

/// An expression over the units of a cell. Equal nodes are one node, constants are folded, so
/// derivatives can be written without care.
public struct CellGraph: Sendable {
  public private(set) var nodes: [CellNode] = []
  private var known: [CellNode: Int] = [:]

  public init() {}

  public mutating func intern(_ node: CellNode) -> Int {
    if let i = known[node] { return i }
    nodes.append(node)
    known[node] = nodes.count - 1
    return nodes.count - 1
  }

  mutating func leaf(_ operation: CellOperation, _ index: Int, space: Int) -> Int {
    intern(CellNode(operation: operation, index: index, space: space))
  }
  mutating func constant(_ value: Double, space: Int) -> Int {
    intern(CellNode(operation: .constant, constant: value, space: space))
  }
  mutating func product(_ operation: CellOperation, _ matrix: Int, _ a: Int, space: Int) -> Int {
    intern(CellNode(operation: operation, a: a, index: matrix, space: space))
  }

  private func value(_ i: Int) -> Double? {
    nodes[i].operation == .constant ? nodes[i].constant : nil
  }
  private mutating func immediate(_ operation: CellOperation, _ a: Int, _ c: Double) -> Int {
    intern(CellNode(operation: operation, a: a, constant: c, space: nodes[a].space))
  }

  mutating func unary(_ operation: CellOperation, _ a: Int) -> Int {
    if let x = value(a) {
      return constant(CellGraph.apply(operation, x, 0, 0), space: nodes[a].space)
    }
    return intern(CellNode(operation: operation, a: a, space: nodes[a].space))
  }

  mutating func scale(_ a: Int, by c: Double) -> Int {
    if let x = value(a) { return constant(c * x, space: nodes[a].space) }
    if c == 1 { return a }
    if nodes[a].operation == .scale { return scale(nodes[a].a, by: c * nodes[a].constant) }
    return immediate(.scale, a, c)
  }

  mutating func binary(_ operation: CellOperation, _ a: Int, _ b: Int) -> Int {
    precondition(
      nodes[a].space == nodes[b].space, "cell: \(operation) of values with different units")
    let space = nodes[a].space
    switch (operation, value(a), value(b)) {
    case (_, let x?, let y?): return constant(CellGraph.apply(operation, x, y, 0), space: space)
    case (.add, let x?, nil): return x == 0 ? b : immediate(.offset, b, x)
    case (.add, nil, let y?), (.subtract, nil, let y?):
      return y == 0 ? a : immediate(.offset, a, operation == .add ? y : -y)
    case (.subtract, let x?, nil): return immediate(.from, b, x)
    case (.multiply, let x?, nil): return scale(b, by: x)
    case (.multiply, nil, let y?): return scale(a, by: y)
    case (.divide, nil, let y?): return scale(a, by: 1 / y)
    case (.divide, let x?, nil): return immediate(.over, b, x)
    case (.add, nil, nil), (.multiply, nil, nil):
      return intern(CellNode(operation: operation, a: min(a, b), b: max(a, b), space: space))
    default: return intern(CellNode(operation: operation, a: a, b: b, space: space))
    }
  }

  /// The definition of the point-wise operations.
  static func apply(_ operation: CellOperation, _ a: Double, _ b: Double, _ c: Double) -> Double {
    switch operation {
    case .constant, .input, .state, .parameter, .kept, .cotangent, .product, .transposed: a
    case .add: a + b
    case .subtract: a - b
    case .multiply: a * b
    case .divide: a / b
    case .scale: c * a
    case .offset: a + c
    case .from: c - a
    case .over: c / a
    case .tanh: Functions.tanh(a)
    case .sigmoid: Functions.sigmoid(a)
    case .relu: a < 0 ? 0 : a
    case .exp: Functions.exp(a)
    case .softplus: Functions.softplus(a)
    case .maximum: a > b ? a : b
    case .step: a > 0 ? 1 : 0
    case .greater: a > b ? 1 : 0
    }
  }

  /// Nodes that `roots` need, in an order in which operands come first.
  func needed(by roots: some Sequence<Int>) -> [Int] {
    var isNeeded = [Bool](repeating: false, count: nodes.count)
    var pending = Array(roots)
    while let i = pending.popLast() {
      if isNeeded[i] { continue }
      isNeeded[i] = true
      for operand in [nodes[i].a, nodes[i].b] where operand >= 0 { pending.append(operand) }
    }
    return nodes.indices.filter { isNeeded[$0] }
  }
}
