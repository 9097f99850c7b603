import GyreTensors

/// Exact gradients while a sequence goes on, without a tape and without looking back: real-time
/// recurrent learning of cells whose units do not mix (Williams and Zipser, 1989; Irie et al., 2023,
/// https://arxiv.org/abs/2305.19044; Javed et al., 2023, https://arxiv.org/abs/2302.05326, whose
/// columns are such units).
///
/// The sensitivity E of a unit's states to each of its own weights is a recurrence like the state's:
///
///     E ← J E + ∂f/∂weight    J = ∂f/∂state, small and per unit
///
/// Memory: states · gates · inputs numbers a unit, whatever the length.
public struct OnlineLearner: Sendable {
  /// Gradients in the layout of the layer's parameters.
  public struct Gradients: Sendable {
    /// `[ΣW, inputs]` and `[ΣW]`.
    public var inputWeight, inputBias: [Double]
    /// `[W]` each.
    public var parameters: [[Double]]
  }

  public let plan: CellPlan
  public let inputs: Int
  /// W `[ΣW, inputs]`, b `[ΣW]` and the cell's parameters; may be changed between steps.
  public var inputWeight, inputBias: [Double]
  public var parameters: [[Double]]
  public private(set) var states: [[Double]]

  private let graph: CellGraph
  /// Nodes of the next states, of ∂next/∂state, ∂next/∂gate and ∂next/∂parameter; nil for zero.
  private let next: [Int]
  private let byState, byGate, byParameter: [[Int?]]
  /// Sensitivity of state s to gate g's pre-activation weights `[S][G][units · inputs]`, biases
  /// `[S][G][units]`, parameters `[S][P][units]`.
  private var weightTrace, biasTrace, parameterTrace: [[[Double]]]

  /// - Precondition: the cell's units do not mix, and the arrays have the sizes of its parts.
  public init(
    _ description: CellDescription, inputs: Int, inputWeight: [Double], inputBias: [Double],
    parameters: [[Double]]
  ) {
    plan = CellPlan(description)
    let parts = description.parts
    precondition(plan.isDiagonal, "online learning: the cell's units mix")
    precondition(
      inputWeight.count == parts.inputWidth * inputs && inputBias.count == parts.inputWidth
        && parameters.map(\.count) == parts.parameters.map { parts.spaces[$0.space] },
      "online learning: sizes of weights")
    self.inputs = inputs
    (self.inputWeight, self.inputBias, self.parameters) = (inputWeight, inputBias, parameters)
    var graph = description.graph
    let next = parts.states.map(\.next)
    func columns(_ operation: CellOperation, _ count: Int) -> [[Int?]] {
      (0..<count).map { i in
        let seed = graph.constant(1, space: 0)
        return graph.tangents(of: next, along: [graph.leaf(operation, i, space: 0): seed])
      }
    }
    byState = columns(.state, parts.states.count)
    byGate = columns(.input, parts.inputs.count)
    byParameter = columns(.parameter, parts.parameters.count)
    (self.graph, self.next) = (graph, next)
    let units = parts.spaces[0]
    states = parts.states.map { [Double](repeating: $0.initial, count: units) }
    func zeros(_ count: Int, _ size: Int) -> [[[Double]]] {
      let row = [[Double]](repeating: [Double](repeating: 0, count: size), count: count)
      return [[[Double]]](repeating: row, count: parts.states.count)
    }
    weightTrace = zeros(parts.inputs.count, units * inputs)
    biasTrace = zeros(parts.inputs.count, units)
    parameterTrace = zeros(parts.parameters.count, units)
  }

  private var units: Int { plan.parts.spaces[0] }

  /// Forgets the past: a new sequence.
  public mutating func reset() {
    self = OnlineLearner(
      plan.description, inputs: inputs, inputWeight: inputWeight, inputBias: inputBias,
      parameters: parameters)
  }

  /// Consumes one input and returns the cell's output.
  ///
  /// - Precondition: `x` has `inputs` elements.
  public mutating func step(_ x: [Double]) -> [Double] {
    precondition(x.count == inputs, "online learning: \(x.count) inputs, not \(inputs)")
    var gates = inputBias
    for row in gates.indices {
      for i in 0..<inputs { gates[row] += inputWeight[row * inputs + i] * x[i] }
    }
    let machine = CellMachine(
      plan: plan, arguments: .init(gates: gates[...], matrices: [], parameters: parameters))
    let roots =
      next + (byState + byGate + byParameter).joined().compactMap(\.self)
    let values = machine.evaluate(graph, roots, at: 0, states)
    func slope(_ node: Int?) -> [Double]? { node.map { values[$0] } }
    let J = byState.map { $0.map(slope) }

    func carried(_ trace: [[[Double]]], _ weight: Int, stride: Int, _ direct: [[Double]?])
      -> [[Double]]
    {
      states.indices.map { s in
        var sum = [Double](repeating: 0, count: units * stride)
        for from in states.indices {
          guard let j = J[from][s] else { continue }
          for k in sum.indices { sum[k] += j[k / stride] * trace[from][weight][k] }
        }
        if let d = direct[s] {
          for k in sum.indices { sum[k] += d[k / stride] * (stride == 1 ? 1 : x[k % stride]) }
        }
        return sum
      }
    }
    for g in byGate.indices {
      let direct = byGate[g].map(slope)
      let weights = carried(weightTrace, g, stride: inputs, direct)
      let biases = carried(biasTrace, g, stride: 1, direct)
      for s in states.indices { (weightTrace[s][g], biasTrace[s][g]) = (weights[s], biases[s]) }
    }
    for p in byParameter.indices {
      let updated = carried(parameterTrace, p, stride: 1, byParameter[p].map(slope))
      for s in states.indices { parameterTrace[s][p] = updated[s] }
    }
    states = next.map { values[$0] }
    return states[plan.description.output]
  }

  /// The gradient of ⟨cotangent, output⟩ of the last step, with respect to all weights and through
  /// all steps so far.
  public func gradients(_ cotangent: [Double]) -> Gradients {
    let s = plan.description.output
    func weighted(_ trace: [Double]) -> [Double] {
      let stride = trace.count / max(units, 1)
      return trace.indices.map { trace[$0] * cotangent[$0 / max(stride, 1)] }
    }
    return Gradients(
      inputWeight: weightTrace[s].flatMap(weighted), inputBias: biasTrace[s].flatMap(weighted),
      parameters: parameterTrace[s].map(weighted))
  }
}
