/// Derivatives of a cell's description, by one table of partial derivatives.
extension CellGraph {
  /// ∂node/∂operand for each point-wise operand; nil means 1.
  private mutating func partials(_ i: Int) -> [(operand: Int, factor: Int?)] {
    let n = nodes[i]
    func make(_ body: (inout CellGraph) -> Int) -> Int { body(&self) }
    switch n.operation {
    case .constant, .input, .state, .parameter, .kept, .cotangent, .step, .greater: return []
    case .product, .transposed: return []
    case .add: return [(n.a, nil), (n.b, nil)]
    case .subtract: return [(n.a, nil), (n.b, constant(-1, space: n.space))]
    case .multiply: return [(n.a, n.b), (n.b, n.a)]
    case .divide:
      let inverse = binary(.divide, constant(1, space: n.space), n.b)
      return [(n.a, inverse), (n.b, scale(binary(.multiply, i, inverse), by: -1))]
    case .scale: return [(n.a, constant(n.constant, space: n.space))]
    case .offset: return [(n.a, nil)]
    case .from: return [(n.a, constant(-1, space: n.space))]
    case .over: return [(n.a, scale(binary(.divide, i, n.a), by: -1))]
    case .tanh:
      return [(n.a, binary(.subtract, constant(1, space: n.space), binary(.multiply, i, i)))]
    case .sigmoid:
      let rest = binary(.subtract, constant(1, space: n.space), i)
      return [(n.a, binary(.multiply, i, rest))]
    case .relu: return [(n.a, unary(.step, n.a))]
    case .exp: return [(n.a, i)]
    case .softplus: return [(n.a, unary(.sigmoid, n.a))]
    case .maximum:
      let first = binary(.greater, n.a, n.b)
      return [(n.a, first), (n.b, binary(.subtract, constant(1, space: n.space), first))]
    }
  }

  /// Vector-Jacobian product: for every node the sum of the cotangents that reach it from `seeds`
  /// (node, cotangent). `products` are leaves that stand for R·operand: what reaches one goes on to
  /// its operand as a `transposed` node.
  mutating func adjoint(
    of seeds: [(node: Int, cotangent: Int)],
    products: [(leaf: Int, operand: Int, matrix: Int)]
  ) -> [Int: Int] {
    var sums: [Int: Int] = [:]
    func add(_ node: Int, _ g: Int, _ graph: inout CellGraph) {
      sums[node] = sums[node].map { graph.binary(.add, $0, g) } ?? g
    }
    for seed in seeds { add(seed.node, seed.cotangent, &self) }
    // Operands come before the leaf that stands for their product, so one pass from last to first
    // meets every node after all of its users.
    for i in nodes.indices.reversed() {
      guard let g = sums[i] else { continue }
      if let product = products.first(where: { $0.leaf == i }) {
        let space = nodes[product.operand].space
        add(product.operand, self.product(.transposed, product.matrix, g, space: space), &self)
      }
      for (operand, factor) in partials(i) {
        add(operand, factor.map { binary(.multiply, g, $0) } ?? g, &self)
      }
    }
    return sums
  }

  /// Jacobian-vector product: the tangents of `roots` for given tangents of leaves; nil for zero.
  mutating func tangents(of roots: [Int], along leaves: [Int: Int]) -> [Int?] {
    var tangent = leaves
    for i in needed(by: roots) where tangent[i] == nil {
      let n = nodes[i]
      if n.operation == .product, let v = tangent[n.a] {
        tangent[i] = product(.product, n.index, v, space: n.space)
      }
      for (operand, factor) in partials(i) {
        guard let v = tangent[operand] else { continue }
        let term = factor.map { binary(.multiply, v, $0) } ?? v
        tangent[i] = tangent[i].map { binary(.add, $0, term) } ?? term
      }
    }
    return roots.map { tangent[$0] }
  }
}
