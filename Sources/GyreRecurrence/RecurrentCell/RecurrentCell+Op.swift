import GyreTensors

/// Possible inputs: pre-activations, matrices, parameters, initial states, reset. Outputs: the output
/// over time, the final states; with `keeps` the other states over time and the products R v; last
/// the report of Newton's method `[4]`.
public struct RecurrentCellForward: Op {
  public static let name = "recurrent_cell"
  public let plan: CellPlan
  public let isNewton: Bool
  public let keeps: Bool
  public let optional: OptionalInputs

  private var parts: CellParts { plan.parts }
  /// Positions among the possible inputs.
  public func matrixPlace(_ i: Int) -> Int { 1 + i }
  public func parameterPlace(_ i: Int) -> Int { 1 + parts.matrices.count + i }
  public func statePlace(_ i: Int) -> Int {
    1 + parts.matrices.count + parts.parameters.count + i
  }
  public var resetPlace: Int { statePlace(parts.states.count) }

  /// Positions among the outputs; nil for what is not kept.
  public func historyPlace(_ state: Int) -> Int? {
    let output = plan.description.output
    if state == output { return 0 }
    return keeps ? 1 + parts.states.count + state - (state > output ? 1 : 0) : nil
  }
  public func keptPlace(_ product: Int) -> Int? {
    keeps ? 2 * parts.states.count + product : nil
  }
  public var reportPlace: Int {
    1 + parts.states.count + (keeps ? parts.states.count - 1 + plan.products.count : 0)
  }

  func width(_ space: Int) -> Int { parts.spaces[space] }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let gates = i[0].shape
    precondition(
      gates.rank == 3 && gates[2] == parts.inputWidth,
      "recurrent_cell: gates \(gates) where [B, T, \(parts.inputWidth)] belongs")
    func check(_ place: Int, _ shape: Shape, _ what: String) {
      let given = optional.pick(place, i)?.shape
      precondition(
        given == nil || given == shape, "recurrent_cell: \(what) \(given ?? []) for \(shape)")
    }
    for (m, matrix) in parts.matrices.enumerated() {
      check(matrixPlace(m), parts.shape(matrix), matrix.name)
    }
    for (p, parameter) in parts.parameters.enumerated() {
      check(parameterPlace(p), [width(parameter.space)], parameter.name)
    }
    let (batch, tokens) = (gates[0], gates[1])
    for (s, state) in parts.states.enumerated() {
      check(statePlace(s), [batch, width(state.space)], state.name)
    }
    func sequence(_ space: Int) -> TensorSpec { TensorSpec([batch, tokens, width(space)]) }
    let states = parts.states.map(\.space)
    let output = plan.description.output
    var outputs = [sequence(states[output])] + states.map { TensorSpec([batch, width($0)]) }
    if keeps {
      outputs += states.indices.filter { $0 != output }.map { sequence(states[$0]) }
      outputs += plan.products.map { sequence($0.to) }
    }
    return outputs + [TensorSpec([4])]
  }

  func machine(_ inputs: [[Double]], row: Int, tokens: Int) -> CellMachine {
    let n = tokens * parts.inputWidth
    return CellMachine(
      plan: plan,
      arguments: .init(
        gates: inputs[0][row * n..<(row + 1) * n],
        matrices: parts.matrices.indices.map { optional.pick(matrixPlace($0), inputs) ?? [] },
        parameters: parts.parameters.indices.map { optional.pick(parameterPlace($0), inputs) ?? [] }
      ))
  }
  /// The state before any token.
  func blank() -> [[Double]] {
    parts.states.map { [Double](repeating: $0.initial, count: width($0.space)) }
  }
  func start(_ inputs: [[Double]], row: Int) -> [[Double]] {
    zip(blank(), parts.states.indices).map { blank, s in
      optional.pick(statePlace(s), inputs).map {
        Array($0[row * blank.count..<(row + 1) * blank.count])
      } ?? blank
    }
  }
  func isReset(_ inputs: [[Double]], _ index: Int) -> Bool {
    (optional.pick(resetPlace, inputs)?[index] ?? 0) != 0
  }

  public func reference(_ a: inout HostArguments) {
    let (batch, tokens) = (a.inputSpecs[0].shape[0], a.inputSpecs[0].shape[1])
    for b in 0..<batch {
      let machine = machine(a.inputs, row: b, tokens: tokens)
      var states = start(a.inputs, row: b)
      for t in 0..<tokens {
        if isReset(a.inputs, b * tokens + t) { states = blank() }
        let step = machine.step(t, states)
        states = step.next
        for (s, value) in states.enumerated() {
          guard let place = historyPlace(s) else { continue }
          accumulate(value, into: &a.outputs[place], at: (b * tokens + t) * value.count)
        }
        for (p, value) in step.products.enumerated() {
          guard let place = keptPlace(p) else { continue }
          accumulate(value, into: &a.outputs[place], at: (b * tokens + t) * value.count)
        }
      }
      for (s, value) in states.enumerated() {
        accumulate(value, into: &a.outputs[1 + s], at: b * value.count)
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    precondition(keeps, "recurrent_cell: products were not kept")
    let S = parts.states.count
    let op = RecurrentCellBackward(
      forward: self, inputCount: c.inputs.count,
      finals: (0..<S).map { c.cotangents[1 + $0] != nil })
    let kept = (0..<S).compactMap { historyPlace($0) } + plan.products.indices.compactMap(keptPlace)
    let g = applyPresent(
      op,
      c.inputs.map { $0 } + kept.map { c.outputs[$0] } + [c.cotangent(0)]
        + (0..<S).map { c.cotangents[1 + $0] })
    return optional.gather { i in
      if i == 0 { return g[0] }
      if let p = parts.parameters.indices.first(where: { parameterPlace($0) == i }) {
        return g[1 + p].summed(to: [g[1 + p].shape.last])
      }
      if let s = (0..<S).first(where: { statePlace($0) == i }) {
        return op.statePlace(s).map { g[$0] }
      }
      if let m = parts.matrices.indices.first(where: { matrixPlace($0) == i }),
        let place = optional[i], c.needs[place]
      {
        return matrixGradient(m, g, op)
      }
      return nil
    }
  }

  /// dR = Σ (cotangent of R v) vᵀ over all tokens, block by block.
  private func matrixGradient(_ m: Int, _ g: [Tensor], _ op: RecurrentCellBackward) -> Tensor? {
    let matrix = parts.matrices[m]
    var sum: Tensor?
    for (p, product) in plan.products.enumerated() where product.matrix == m {
      let (left, right) = (g[op.productPlace(p)], g[op.operandPlace(product.operand)])
      let rows = left.shape[0] * left.shape[1]
      func blocks(_ t: Tensor) -> Tensor {
        t.reshaped([rows, matrix.heads, t.shape.last / matrix.heads]).permuted([1, 0, 2])
      }
      let term =
        matrix.heads == 1
        ? left.reshaped([rows, left.shape.last]).matmul(
          right.reshaped([rows, right.shape.last]), transposingLeft: true
        ).reshaped(parts.shape(matrix))
        : blocks(left).matmul(blocks(right), transposingLeft: true)
      sum = sum.map { $0 + term } ?? term
    }
    return sum.map { matrix.isShared ? $0.summed(to: parts.shape(matrix)) : $0 }
  }

  public var saved: SavedValues {
    let report = reportPlace
    let S = parts.states.count
    return SavedValues(
      keepsInput: { _ in true }, keepsOutput: { $0 == 0 || ($0 > S && $0 < report) })
  }

  public static let cases: [OpCase] = CellCatalog.cells.flatMap { $0.opCases }
}

extension Cell {
  /// Examples of the op for this cell: dense and diagonal, both executions, every variant, and wide
  /// enough for the executions that share a row's units out.
  static var opCases: [OpCase] {
    func plan(_ cell: Self, _ matrix: RecurrentMatrix) -> CellPlan {
      CellPlan(cell.description(hidden: 6, matrix: matrix))
    }
    let diagonal = plan(Self(), .diagonal)
    var cases = [
      opCase("\(kind)", plan(Self(), .dense), full: true, isNewton: false),
      opCase("\(kind) diagonal", diagonal, full: true, isNewton: false),
    ]
    let mixed = plan(Self(), .dense)
    if !mixed.products.isEmpty {
      cases.append(opCase("\(kind) frozen", mixed, full: true, isNewton: true))
      let wide = CellPlan(
        Self().description(hidden: 188, heads: mixed.products.count < 3 ? 1 : 2, matrix: .dense))
      cases.append(
        opCase(
          "\(kind) wide", wide, batch: 9, tokens: 4, scale: 0.06, full: true, isNewton: false))
    }
    if diagonal.isDiagonal {
      cases.append(opCase("\(kind) newton", diagonal, full: true, isNewton: true))
      cases.append(opCase("\(kind) newton plain", diagonal, full: false, isNewton: true))
    }
    return cases
      + variants.enumerated().map {
        opCase(
          "\(kind) variant \($0.offset)", plan($0.element, defaultMatrix), full: true,
          isNewton: false)
      }
  }

  private static func opCase(
    _ label: String, _ plan: CellPlan, batch B: Int = 2, tokens T: Int = 13, scale: Double = 0.3,
    full: Bool, isNewton: Bool
  ) -> OpCase {
    let parts = plan.parts
    func weights(_ shape: Shape, _ constant: [Float]?, _ scale: Double) -> TestInput {
      constant.map { TestInput(shape, .elements($0.map(Double.init)), differentiable: false) }
        ?? TestInput(shape, .normal(scale: scale))
    }
    var inputs: [TestInput?] = [TestInput([B, T, parts.inputWidth])]
    inputs += parts.matrices.map { weights(parts.shape($0), $0.constant, scale) }
    inputs += parts.parameters.map { weights([parts.spaces[$0.space]], $0.constant, 0.4) }
    inputs += parts.states.map {
      full ? TestInput([B, parts.spaces[$0.space]], .normal(scale: 0.5)) : nil
    }
    inputs.append(full ? testResets(batch: B, tokens: T) : nil)
    let op = RecurrentCellForward(
      plan: plan, isNewton: isNewton, keeps: true,
      optional: OptionalInputs(inputs.map { $0 != nil })
    )
    return OpCase(
      label + (full ? " full" : ""), op, inputs.compactMap { $0 }, tolerance: 2e-5,
      gradientTolerance: 2e-4, differentiableOutputs: 1 + parts.states.count,
      comparedOutputs: op.reportPlace)
  }
}
