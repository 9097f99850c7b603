import GyreTensors

/// A cell ready to run: its description and the code of its forward step, its Jacobian and its
/// adjoint.
///
/// Numbers of tiles: forward and Jacobian have the states, then the next states, then the
/// parameters, then the Jacobian's entries; the adjoint has the states, the cotangents of the next
/// states, the cotangents of the states, the parameters and the gradients of the parameters.
public final class CellPlan: Sendable {
  public let description: CellDescription
  public var parts: CellParts { description.parts }
  /// A product R v of the step, in the order of the kept values.
  public struct Product: Sendable, Hashable {
    public let matrix: Int
    /// Which of the distinct operands.
    public let operand: Int
    public let from, to: Int
    let node: Int
  }
  public let products: [Product]
  /// Spaces of the distinct operands.
  public let operandSpaces: [Int]
  /// States of a cell that Newton's method can have.
  public static let newtonStates = 3
  /// Whether units do not mix, so that the step has a diagonal or small block Jacobian.
  public let isDiagonal: Bool
  public let forward, adjoint: CellCode
  /// Next states and ∂next/∂state, row by row; only of diagonal cells.
  public let jacobian: CellCode?
  /// The expressions of the adjoint, for the definition in Double.
  let adjointGraph: CellGraph
  let adjointRoots: AdjointRoots
  struct AdjointRoots: Sendable {
    var states, inputs, parameters, products, operands: [Int?]
  }

  /// Arrays of the forward code: inputs, histories of the states, kept products.
  public func historyArray(_ state: Int) -> Int { parts.inputs.count + state }
  public func keptArray(_ product: Int) -> Int {
    parts.inputs.count + parts.states.count + product
  }
  /// Arrays of the adjoint: inputs, kept products, dy, d inputs, d products, operands.
  public func adjointKept(_ product: Int) -> Int { parts.inputs.count + product }
  public var outputCotangentArray: Int { parts.inputs.count + products.count }
  public func inputCotangentArray(_ i: Int) -> Int { outputCotangentArray + 1 + i }
  public func productCotangentArray(_ p: Int) -> Int {
    outputCotangentArray + 1 + parts.inputs.count + p
  }
  public func operandArray(_ o: Int) -> Int { productCotangentArray(products.count) + o }
  public var adjointArrayCount: Int { operandArray(operandSpaces.count) }

  public init(_ description: CellDescription) {
    self.description = description
    let (parts, graph) = (description.parts, description.graph)
    let next = parts.states.map(\.next)
    let needed = graph.needed(by: next)
    var operands: [Int] = []
    products = needed.filter { graph.nodes[$0].operation == .product }.map { i in
      let n = graph.nodes[i]
      if !operands.contains(n.a) { operands.append(n.a) }
      let matrix = parts.matrices[n.index]
      return Product(
        matrix: n.index, operand: operands.firstIndex(of: n.a) ?? 0, from: matrix.from,
        to: matrix.to, node: i)
    }
    operandSpaces = operands.map { graph.nodes[$0].space }
    isDiagonal = products.isEmpty && parts.states.allSatisfy { $0.space == 0 }
    forward = CellPlan.forwardCode(description, products, needed)
    jacobian = isDiagonal ? CellPlan.jacobianCode(description) : nil
    (adjointGraph, adjointRoots) = CellPlan.adjointExpressions(description, products, operands)
    adjoint = CellPlan.adjointCode(parts, products, operands.count, adjointGraph, adjointRoots)
  }

  private static func leafTiles(_ graph: CellGraph, _ parts: CellParts, parametersAt: Int) -> [Int:
    Int]
  {
    var tiles: [Int: Int] = [:]
    for (i, n) in graph.nodes.enumerated() {
      if n.operation == .state { tiles[i] = n.index }
      if n.operation == .parameter { tiles[i] = parametersAt + n.index }
    }
    return tiles
  }
  private static func leaves(_ graph: CellGraph, _ operation: CellOperation, _ place: (Int) -> Int)
    -> [Int: Int]
  {
    var result: [Int: Int] = [:]
    for (i, n) in graph.nodes.enumerated() where n.operation == operation {
      result[i] = place(n.index)
    }
    return result
  }

  private static func forwardCode(
    _ d: CellDescription, _ products: [Product], _ needed: [Int]
  ) -> CellCode {
    let (parts, S, I) = (d.parts, d.parts.states.count, d.parts.inputs.count)
    var roots: [(node: Int, root: CellCode.Root)] = []
    for (i, state) in parts.states.enumerated() {
      roots.append((state.next, .tile(S + i)))
      roots.append((state.next, .store(I + i)))
    }
    for (p, product) in products.enumerated() { roots.append((product.node, .store(I + S + p))) }
    let spaces = parts.states.map(\.space)
    return CellCode(
      d.graph, tileSpaces: spaces + spaces + parts.parameters.map(\.space),
      tiles: leafTiles(d.graph, parts, parametersAt: 2 * S),
      loads: leaves(d.graph, .input) { $0 }, roots: roots)
  }

  private static func jacobianCode(_ d: CellDescription) -> CellCode {
    let (parts, S, P) = (d.parts, d.parts.states.count, d.parts.parameters.count)
    var graph = d.graph
    let next = parts.states.map(\.next)
    var roots: [(node: Int, root: CellCode.Root)] = next.indices.map { (next[$0], .tile(S + $0)) }
    for j in 0..<S {
      let seed = graph.constant(1, space: 0)
      let leaf = graph.leaf(.state, j, space: 0)
      let column = graph.tangents(of: next, along: [leaf: seed])
      for (i, entry) in column.enumerated() {
        roots.append((entry ?? graph.constant(0, space: 0), .tile(2 * S + P + i * S + j)))
      }
    }
    return CellCode(
      graph, tileSpaces: [Int](repeating: 0, count: 2 * S + P + S * S),
      tiles: leafTiles(graph, parts, parametersAt: 2 * S), loads: leaves(graph, .input) { $0 },
      roots: roots)
  }

  /// The forward expressions with kept values in place of products, and the adjoint of them.
  private static func adjointExpressions(
    _ d: CellDescription, _ products: [Product], _ operands: [Int]
  ) -> (CellGraph, AdjointRoots) {
    let parts = d.parts
    var graph = CellGraph()
    var moved: [Int: Int] = [:]
    for i in d.graph.needed(by: parts.states.map(\.next)) {
      var n = d.graph.nodes[i]
      if let p = products.firstIndex(where: { $0.node == i }) {
        // The operand's expression is still needed: it is an output of the adjoint.
        moved[i] = graph.leaf(.kept, p, space: n.space)
        continue
      }
      if n.a >= 0 { n.a = moved[n.a] ?? 0 }
      if n.b >= 0 { n.b = moved[n.b] ?? 0 }
      moved[i] = graph.intern(n)
    }
    func at(_ i: Int) -> Int { moved[i] ?? 0 }
    // Cotangents of products reach their operands after all of theirs have been summed, so products
    // are taken from last to first.
    let S = parts.states.count
    var seeds: [(node: Int, cotangent: Int)] = []
    for (i, state) in parts.states.enumerated() {
      var g = graph.leaf(.cotangent, i, space: state.space)
      if i == d.output {
        g = graph.binary(.add, g, graph.leaf(.cotangent, S, space: state.space))
      }
      seeds.append((at(state.next), g))
    }
    // One pass over the original order with kept leaves standing for products.
    let sums = graph.adjoint(
      of: seeds,
      products: products.enumerated().map { p, product in
        (leaf: at(product.node), operand: at(d.graph.nodes[product.node].a), matrix: product.matrix)
      })
    func leaf(_ operation: CellOperation, _ index: Int, _ space: Int) -> Int? {
      let node = CellNode(operation: operation, index: index, space: space)
      return graph.nodes.firstIndex(of: node).flatMap { sums[$0] }
    }
    let roots = AdjointRoots(
      states: parts.states.enumerated().map { leaf(.state, $0.offset, $0.element.space) },
      inputs: parts.inputs.enumerated().map { leaf(.input, $0.offset, $0.element.space) },
      parameters: parts.parameters.enumerated().map {
        leaf(.parameter, $0.offset, $0.element.space)
      },
      products: products.map { sums[at($0.node)] }, operands: operands.map { at($0) })
    return (graph, roots)
  }

  private static func adjointCode(
    _ parts: CellParts, _ products: [Product], _ operandCount: Int, _ source: CellGraph,
    _ adjoint: AdjointRoots
  ) -> CellCode {
    var graph = source
    let (S, P, I) = (parts.states.count, parts.parameters.count, parts.inputs.count)
    let dy = I + products.count
    var roots: [(node: Int, root: CellCode.Root)] = []
    func add(_ node: Int?, _ space: Int, _ root: CellCode.Root) {
      roots.append((node ?? graph.constant(0, space: space), root))
    }
    for i in 0..<S { add(adjoint.states[i], parts.states[i].space, .tile(2 * S + i)) }
    for i in 0..<I { add(adjoint.inputs[i], parts.inputs[i].space, .store(dy + 1 + i)) }
    for (k, parameter) in parts.parameters.enumerated() where adjoint.parameters[k] != nil {
      add(adjoint.parameters[k], parameter.space, .accumulate(3 * S + P + k))
    }
    for (p, product) in products.enumerated() {
      add(adjoint.products[p], product.to, .store(dy + 1 + I + p))
    }
    for o in 0..<operandCount {
      add(adjoint.operands[o], 0, .store(dy + 1 + I + products.count + o))
    }
    var tiles = leafTiles(graph, parts, parametersAt: 3 * S)
    tiles.merge(leaves(graph, .cotangent) { S + $0 }.filter { $0.value < 2 * S }) { a, _ in a }
    var loads = leaves(graph, .input) { $0 }
    loads.merge(leaves(graph, .kept) { I + $0 }) { a, _ in a }
    loads.merge(leaves(graph, .cotangent) { _ in dy }.filter { tiles[$0.key] == nil }) { a, _ in a }
    let spaces = parts.states.map(\.space)
    let weights = parts.parameters.map(\.space)
    return CellCode(
      graph, tileSpaces: spaces + spaces + spaces + weights + weights, tiles: tiles, loads: loads,
      roots: roots)
  }
}
