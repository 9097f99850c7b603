import GyreTensors

/// Inputs: the forward's, histories of the states, kept products, dy, then d of the final states
/// where present. Outputs: d of the pre-activations; d of the parameters row by row `[B, W]`; d of
/// the initial states that the forward had; the cotangent of every product `[B, T, rows]`; the
/// distinct operands of products `[B, T, columns]`.
public struct RecurrentCellBackward: Op {
  public static let name = "recurrent_cell_backward"
  public let forward: RecurrentCellForward
  public let inputCount: Int
  public let finals: [Bool]

  public var plan: CellPlan { forward.plan }
  private var parts: CellParts { plan.parts }
  /// Positions after the forward's inputs: histories, products, dy, d final states.
  public var extra: OptionalInputs {
    OptionalInputs(
      [Bool](repeating: true, count: parts.states.count + plan.products.count + 1) + finals)
  }
  public func keptPlace(_ product: Int) -> Int { parts.states.count + product }
  public var outputCotangentPlace: Int { parts.states.count + plan.products.count }
  public func finalPlace(_ s: Int) -> Int { outputCotangentPlace + 1 + s }
  /// Positions among the outputs.
  public func statePlace(_ s: Int) -> Int? {
    guard forward.optional.has(forward.statePlace(s)) else { return nil }
    let before = (0..<s).filter { forward.optional.has(forward.statePlace($0)) }.count
    return 1 + parts.parameters.count + before
  }
  private var statesPresent: [Int] { parts.states.indices.filter { statePlace($0) != nil } }
  public func productPlace(_ p: Int) -> Int {
    1 + parts.parameters.count + statesPresent.count + p
  }
  public func operandPlace(_ o: Int) -> Int { productPlace(plan.products.count) + o }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let (batch, tokens) = (i[0].shape[0], i[0].shape[1])
    func width(_ space: Int) -> Int { parts.spaces[space] }
    var outputs = [i[0]]
    outputs += parts.parameters.map { TensorSpec([batch, width($0.space)]) }
    outputs += statesPresent.map { TensorSpec([batch, width(parts.states[$0].space)]) }
    outputs += plan.products.map { TensorSpec([batch, tokens, width($0.to)]) }
    return outputs + plan.operandSpaces.map { TensorSpec([batch, tokens, width($0)]) }
  }

  public func reference(_ a: inout HostArguments) {
    let (batch, tokens) = (a.inputSpecs[0].shape[0], a.inputSpecs[0].shape[1])
    let inputs = Array(a.inputs[..<inputCount])
    let rest = Array(a.inputs[inputCount...])
    let dy = extra.pick(outputCotangentPlace, rest) ?? []
    let outputWidth = parts.spaces[parts.states[plan.description.output].space]
    for b in 0..<batch {
      let machine = forward.machine(inputs, row: b, tokens: tokens)
      var before: [[[Double]]] = []
      var products: [[[Double]]] = []
      var states = forward.start(inputs, row: b)
      for t in 0..<tokens {
        if forward.isReset(inputs, b * tokens + t) { states = forward.blank() }
        before.append(states)
        let step = machine.step(t, states)
        states = step.next
        products.append(step.products)
      }
      var carry: [[Double]] = parts.states.indices.map { s in
        let n = parts.spaces[parts.states[s].space]
        return extra.pick(finalPlace(s), rest).map { Array($0[b * n..<(b + 1) * n]) }
          ?? [Double](repeating: 0, count: n)
      }
      for t in stride(from: tokens - 1, through: 0, by: -1) {
        let at = b * tokens + t
        let g = machine.adjoint(
          t, before[t], products: products[t], carry,
          output: Array(dy[at * outputWidth..<(at + 1) * outputWidth]))
        var offset = at * parts.inputWidth
        for value in g.inputs {
          accumulate(value, into: &a.outputs[0], at: offset)
          offset += value.count
        }
        for (p, value) in g.parameters.enumerated() {
          accumulate(value, into: &a.outputs[1 + p], at: b * value.count)
        }
        for (p, value) in g.products.enumerated() {
          accumulate(value, into: &a.outputs[productPlace(p)], at: at * value.count)
        }
        for (o, value) in g.operands.enumerated() {
          accumulate(value, into: &a.outputs[operandPlace(o)], at: at * value.count)
        }
        carry =
          forward.isReset(inputs, at)
          ? g.states.map { [Double](repeating: 0, count: $0.count) } : g.states
      }
      for s in statesPresent {
        if let place = statePlace(s) {
          accumulate(carry[s], into: &a.outputs[place], at: b * carry[s].count)
        }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
