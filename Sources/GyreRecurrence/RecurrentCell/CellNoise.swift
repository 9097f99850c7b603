import GyreTensors

/// Random choices inside a recurrence, as inputs of the cell beside its gates.
public struct CellNoise: Sendable, Hashable {
  /// s ← m ∘ s + (1 − m) ∘ next for every state: an input "zoneout.STATE" each (Krueger et al.,
  /// "Zoneout", 2016, https://arxiv.org/abs/1606.01305).
  public var zoneout = false
  /// Recurrent matrices multiply m ∘ v: an input "operand.SPACE" for every space of states that they
  /// read (Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent neural
  /// networks", 2016, https://arxiv.org/abs/1512.05287).
  public var operands = false
  public init(zoneout: Bool = false, operands: Bool = false) {
    (self.zoneout, self.operands) = (zoneout, operands)
  }
}

extension CellDescription {
  /// The cell with further inputs behind its own, in the order of `CellParts.inputs`.
  public func with(_ noise: CellNoise) -> CellDescription {
    var parts = parts
    var new = CellGraph()
    func mask(_ name: String, _ space: Int) -> Int {
      let i =
        parts.inputs.firstIndex { $0.name == name } ?? parts.addInput(name, space: space)
      return new.leaf(.input, i, space: space)
    }
    let stateSpaces = Set(parts.states.map(\.space))
    var moved: [Int: Int] = [:]
    for i in graph.nodes.indices {
      var n = graph.nodes[i]
      if n.a >= 0 { n.a = moved[n.a] ?? 0 }
      if n.b >= 0 { n.b = moved[n.b] ?? 0 }
      if noise.operands, n.operation == .product {
        let space = new.nodes[n.a].space
        if stateSpaces.contains(space) {
          let factor = mask("operand.\(space)", space)
          n.a = new.binary(.multiply, n.a, factor)
        }
      }
      moved[i] = new.intern(n)
    }
    var next: [Int] = []
    for (s, state) in self.parts.states.enumerated() {
      let to = moved[state.next] ?? 0
      guard noise.zoneout else {
        next.append(to)
        continue
      }
      let old = new.leaf(.state, s, space: state.space)
      let kept = mask("zoneout." + state.name, state.space)
      let change = new.binary(.subtract, old, to)
      let back = new.binary(.multiply, kept, change)
      next.append(new.binary(.add, to, back))
    }
    parts.setNext(next)
    return CellDescription(parts: parts, graph: new, output: output)
  }
}
