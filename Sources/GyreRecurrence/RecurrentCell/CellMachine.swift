import GyreTensors

/// A cell on the host in Double, one row at a time: the definition.
struct CellMachine {
  struct Arguments {
    /// Pre-activations of the row `[T, ΣW]`.
    var gates: ArraySlice<Double>
    var matrices, parameters: [[Double]]
  }
  let plan: CellPlan
  let arguments: Arguments

  private func product(_ matrix: Int, _ v: [Double], transposed: Bool) -> [Double] {
    let m = plan.parts.matrices[matrix]
    let weights = arguments.matrices[matrix]
    let (rows, columns) = (
      plan.parts.spaces[m.to] / m.heads, plan.parts.spaces[m.from] / m.heads
    )
    var result = [Double](repeating: 0, count: (transposed ? columns : rows) * m.heads)
    for head in 0..<m.heads {
      let start = m.isShared ? 0 : head * rows * columns
      for r in 0..<rows {
        for c in 0..<columns {
          let w = weights[start + r * columns + c]
          if transposed {
            result[head * columns + c] += w * v[head * rows + r]
          } else {
            result[head * rows + r] += w * v[head * columns + c]
          }
        }
      }
    }
    return result
  }

  /// The values of the nodes that `roots` need.
  private func evaluate(
    _ graph: CellGraph, _ roots: [Int], _ leaf: (CellNode) -> [Double]
  ) -> [[Double]] {
    var values = [[Double]](repeating: [], count: graph.nodes.count)
    for i in graph.needed(by: roots) {
      let n = graph.nodes[i]
      switch n.operation {
      case .constant:
        values[i] = [Double](repeating: n.constant, count: plan.parts.spaces[n.space])
      case .input, .state, .parameter, .kept, .cotangent: values[i] = leaf(n)
      case .product, .transposed:
        values[i] = product(n.index, values[n.a], transposed: n.operation == .transposed)
      default:
        let b = n.b >= 0 ? values[n.b] : values[n.a]
        values[i] = zip(values[n.a], b).map { CellGraph.apply(n.operation, $0, $1, n.constant) }
      }
    }
    return values
  }

  private func input(_ i: Int, _ t: Int) -> [Double] {
    let start = arguments.gates.startIndex + t * plan.parts.inputWidth + plan.parts.inputOffset(i)
    return Array(arguments.gates[start..<start + plan.parts.spaces[plan.parts.inputs[i].space]])
  }

  /// The values of an expression of inputs, states and parameters at a token.
  func evaluate(_ graph: CellGraph, _ roots: [Int], at t: Int, _ states: [[Double]]) -> [[Double]] {
    evaluate(graph, roots) { n in
      switch n.operation {
      case .input: input(n.index, t)
      case .state: states[n.index]
      default: arguments.parameters[n.index]
      }
    }
  }

  /// The next states and the products of a step.
  func step(_ t: Int, _ states: [[Double]]) -> (next: [[Double]], products: [[Double]]) {
    let d = plan.description
    let next = d.parts.states.map(\.next)
    let values = evaluate(d.graph, next, at: t, states)
    return (next.map { values[$0] }, plan.products.map { values[$0.node] })
  }

  struct Cotangents {
    var states, inputs, parameters, products, operands: [[Double]]
  }

  /// The adjoint of a step: `cotangents` of the next states and of the output.
  func adjoint(
    _ t: Int, _ states: [[Double]], products: [[Double]], _ cotangents: [[Double]],
    output: [Double]
  ) -> Cotangents {
    let (graph, roots, parts) = (plan.adjointGraph, plan.adjointRoots, plan.parts)
    let lists = [roots.states, roots.inputs, roots.parameters, roots.products, roots.operands]
    let values = evaluate(graph, lists.joined().compactMap(\.self)) { n in
      switch n.operation {
      case .input: input(n.index, t)
      case .state: states[n.index]
      case .parameter: arguments.parameters[n.index]
      case .kept: products[n.index]
      default: n.index < cotangents.count ? cotangents[n.index] : output
      }
    }
    func take(_ roots: [Int?], _ spaces: [Int]) -> [[Double]] {
      zip(roots, spaces).map { root, space in
        root.map { values[$0] } ?? [Double](repeating: 0, count: parts.spaces[space])
      }
    }
    return Cotangents(
      states: take(roots.states, parts.states.map(\.space)),
      inputs: take(roots.inputs, parts.inputs.map(\.space)),
      parameters: take(roots.parameters, parts.parameters.map(\.space)),
      products: take(roots.products, plan.products.map(\.to)),
      operands: take(roots.operands, plan.operandSpaces))
  }
}
