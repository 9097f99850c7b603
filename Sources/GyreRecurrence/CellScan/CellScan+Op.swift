import GyreTensors

/// Possible inputs: gates, R, bias, h₀, c₀, reset, n₀, m₀. Outputs: h, final h, the final memories the
/// cell has; with `keepsGates` then the activated gates `[B, T, G·H]` of gated cells, and Rₙ h + bₙ
/// (GRU), c (LSTM) or c, n and m (sLSTM) of every token.
public struct CellForward: Op {
  public static let name = "cell_scan"
  public let cell: CellScan.Cell
  public let heads: Int
  public let precision: ComputePrecision
  public let keepsGates: Bool
  public let optional: OptionalInputs
  /// Element type of the kept gates, of the GRU's kept sums and of what the derivative leaves for the
  /// gradient of R; bfloat16 where pre-activations are.
  public var kept: DType = .float32
  /// Element type of h of all tokens.
  public var output: DType = .float32
  /// Arrays of all tokens, resets too, are `[T, B, ·]` in place of `[B, T, ·]`.
  public var isTimeMajor = false

  /// Where the kept gates and the kept cell states are among the outputs.
  public var gatesPlace: Int? {
    keepsGates && cell.gateCount > 1 ? 2 + cell.memories.count : nil
  }
  public var cellsPlace: Int? {
    cell == .gru || cell.hasMemory ? gatesPlace.map { $0 + 1 } : nil
  }
  /// Where the kept normalisers and stabilisers of sLSTM are.
  public var normalizersPlace: Int? { cell == .slstm ? gatesPlace.map { $0 + 2 } : nil }
  public var stabilizersPlace: Int? { cell == .slstm ? gatesPlace.map { $0 + 3 } : nil }
  public var keptPlaces: [Int] {
    [gatesPlace, cellsPlace, normalizersPlace, stabilizersPlace].compactMap(\.self)
  }

  public func extents(_ i: [TensorSpec]) -> CellExtents {
    let (gates, weight) = (i[0].shape, i[1].shape)
    let G = cell.gateCount
    precondition(
      gates.rank == 3 && gates[2] % (G * heads) == 0, "cell_scan: gates \(gates), \(G) a unit")
    let hidden = gates[2] / G
    let units = hidden / heads
    precondition(
      weight == [heads, G * units, units] || (heads == 1 && weight == [G * hidden, hidden]),
      "cell_scan: recurrent weight \(weight) where [\(heads), \(G * units), \(units)] belongs")
    let (batch, tokens) = isTimeMajor ? (gates[1], gates[0]) : (gates[0], gates[1])
    return CellExtents(
      batch: batch, tokens: tokens, heads: heads, units: units, gates: G, isTimeMajor: isTimeMajor)
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let x = extents(i)
    let state: Shape = [x.batch, x.hidden]
    for place in [3, 4, 6, 7] {
      let given = optional.pick(place, i)?.shape
      precondition(given == nil || given == state, "cell_scan: state \(given ?? []) for \(state)")
    }
    let sequence: Shape = [i[0].shape[0], i[0].shape[1], x.hidden]
    return [TensorSpec(sequence, output), TensorSpec(state)]
      + cell.memories.map { _ in TensorSpec(state) }
      + keptPlaces.map { TensorSpec($0 == gatesPlace ? i[0].shape : sequence, kept) }
  }

  public func reference(_ a: inout HostArguments) {
    let x = extents(a.inputSpecs)
    for b in 0..<x.batch {
      var walk = CellWalk(self, x, a.inputs, row: b)
      for t in 0..<x.tokens {
        let step = walk.advance(t)
        let place = x.place(b, t)
        accumulate(step.h, into: &a.outputs[0], at: place * x.hidden)
        if let gatesPlace {
          accumulate(step.gates, into: &a.outputs[gatesPlace], at: place * x.gates * x.hidden)
        }
        if let cellsPlace {
          let kept = cell == .gru ? Array(step.product[(2 * x.hidden)...]) : step.c
          accumulate(kept, into: &a.outputs[cellsPlace], at: place * x.hidden)
        }
        for (output, kept) in [(normalizersPlace, walk.n), (stabilizersPlace, walk.m)] {
          guard let output else { continue }
          accumulate(kept, into: &a.outputs[output], at: place * x.hidden)
        }
      }
      accumulate(walk.h, into: &a.outputs[1], at: b * x.hidden)
      for (k, final) in [walk.c, walk.n, walk.m].prefix(cell.memories.count).enumerated() {
        accumulate(final, into: &a.outputs[2 + k], at: b * x.hidden)
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] {
    precondition(gatesPlace != nil || cell.gateCount == 1, "cell_scan: gates were not kept")
    let op = CellBackward(
      forward: self, inputCount: c.inputs.count, hasFinal: c.cotangents[1] != nil,
      hasFinalMemory: cell.hasMemory && c.cotangents[2] != nil,
      hasFinalNormalizer: cell == .slstm && c.cotangents[3] != nil)
    let g = applyPresent(
      op,
      c.inputs.map { $0 } + [
        c.outputs[0], gatesPlace.map { c.outputs[$0] }, cellsPlace.map { c.outputs[$0] },
        c.cotangent(0), c.cotangents[1], cell.hasMemory ? c.cotangents[2] : nil,
        normalizersPlace.map { c.outputs[$0] }, stabilizersPlace.map { c.outputs[$0] },
        cell == .slstm ? c.cotangents[3] : nil,
      ])
    let x = extents(c.inputs.map(\.spec))
    let (weight, bias) = recurrentGradients(g, op, x, c)
    return optional.gather { i in
      switch i {
      case 0: g[0]
      case 1: weight
      case 2: bias
      case 3, 4, 6, 7: op.place(i).map { g[$0] }
      default: nil
      }
    }
  }

  private func recurrentGradients(
    _ g: [Tensor], _ op: CellBackward, _ x: CellExtents, _ c: VJPContext
  ) -> (weight: Tensor?, bias: Tensor?) {
    let sums = RecurrentGradients(precision: precision)
    if cell == .gru || cell == .lstm, heads == 1, c.needs[1], g[0].device.fuses(sums) {
      let last = cell == .gru ? [g[op.previousPlace + 1]] : []
      let both = apply(sums, [g[0]] + last + [g[op.previousPlace]])
      return (both[0].reshaped(c.inputs[1].shape), optional.has(2) ? both[1] : nil)
    }
    let recurrent = recurrentCotangents(g, op)
    return (
      c.needs[1] ? weightGradient(g, op, recurrent, x, as: c.inputs[1].shape) : nil,
      optional.has(2) ? recurrent.summed(to: [x.gates * x.hidden]) : nil
    )
  }

  /// The cotangent of R h + b: that of the pre-activations but for GRU's candidate.
  private func recurrentCotangents(_ g: [Tensor], _ op: CellBackward) -> Tensor {
    guard cell == .gru else { return g[0] }
    let hidden = g[op.previousPlace].shape.last
    return concatenated([g[0].sliced(0..<2 * hidden, axis: 2), g[op.previousPlace + 1]])
  }

  /// dR = Σ (cotangent of R h) hᵀ over all tokens, head by head.
  private func weightGradient(
    _ g: [Tensor], _ op: CellBackward, _ recurrent: Tensor, _ x: CellExtents, as shape: Shape
  ) -> Tensor {
    let rows = x.batch * x.tokens
    func product(_ cotangent: Tensor, _ operand: Tensor, gates: Int) -> Tensor {
      let left = cotangent.reshaped([rows, gates, heads, x.units])
      let right = operand.reshaped([rows, heads, x.units])
      if heads == 1 {
        return left.reshaped([rows, gates * x.units]).matmul(
          right.reshaped([rows, x.units]), transposingLeft: true, precision: precision
        ).reshaped([1, gates * x.units, x.units])
      }
      return left.permuted([2, 0, 1, 3]).reshaped([heads, rows, gates * x.units]).matmul(
        right.permuted([1, 0, 2]), transposingLeft: true, precision: precision)
    }
    let previous = g[op.previousPlace]
    guard cell == .gruOriginal else {
      return product(recurrent, previous, gates: x.gates).reshaped(shape)
    }
    let parts = recurrent.split([2 * x.hidden, x.hidden])
    return concatenated(
      [
        product(parts[0], previous, gates: 2),
        product(parts[1], g[op.previousPlace + 1], gates: 1),
      ], axis: 1
    ).reshaped(shape)
  }

  public var saved: SavedValues {
    let kept = Set(keptPlaces + [0])
    return SavedValues(keepsInput: { _ in true }, keepsOutput: { kept.contains($0) })
  }

  /// Small ones in float32, one of whole tiles of rows and units, one of a size and a precision for
  /// which devices keep the weights on chip, and one whose arrays are larger than caches.
  public static let cases: [OpCase] =
    CellScan.Cell.allCases.flatMap { cell in
      [(1, true), (3, true), (2, false)].map { heads, full in
        example(cell, heads: heads, full: full, (2, 23, 12), .float32)
      } + [
        example(cell, heads: 1, full: true, (16, 4, 32), .float32),
        example(cell, heads: 2, full: true, (3, 7, 80), .bfloat16),
      ]
    }
    + CellScan.Cell.allCases.map {
      example($0, heads: 1, full: true, (3, 7, 24), .float32, isTimeMajor: true)
    }
    + [CellScan.Cell.lstm, .gru].map {
      example(
        $0, heads: 1, full: true, (34, 3, 272), .bfloat16, stored: .bfloat16, kept: .bfloat16,
        isTimeMajor: true)
    }
    + [CellScan.Cell.lstm, .gru].flatMap { cell in
      [((17, 5, 40), false), ((34, 3, 272), true)].map {
        example(
          cell, heads: 1, full: true, $0, .bfloat16, stored: .bfloat16, kept: .bfloat16,
          output: .bfloat16, isTimeMajor: $1)
      }
    }
    + [CellScan.Cell.lstm, .gru].flatMap { cell in
      [((17, 5, 40), DType.float32), ((17, 5, 40), .bfloat16), ((32, 520, 32), .bfloat16)].map {
        example(cell, heads: 1, full: true, $0, .bfloat16, stored: .bfloat16, kept: $1)
      }
    }

  private static func example(
    _ cell: CellScan.Cell, heads: Int, full: Bool, _ sizes: (Int, Int, Int),
    _ precision: ComputePrecision, stored: DType = .float32, kept: DType = .float32,
    output: DType = .float32, isTimeMajor: Bool = false
  ) -> OpCase {
    let (B, T, H) = sizes
    let units = H / heads
    let G = cell.gateCount
    let inputs: [TestInput?] = [
      TestInput(isTimeMajor ? [T, B, G * H] : [B, T, G * H]).stored(as: stored),
      TestInput(
        heads == 1 ? [G * H, H] : [heads, G * units, units],
        .normal(scale: H > 12 ? 0.1 : 0.3)),
      full ? TestInput([G * H]) : nil, full ? TestInput([B, H]) : nil,
      full && cell.hasMemory ? TestInput([B, H]) : nil,
      full ? isTimeMajor ? testResets(batch: T, tokens: B) : testResets(batch: B, tokens: T) : nil,
      full && cell == .slstm ? TestInput([B, H], .uniform(0.5, 2)) : nil,
      full && cell == .slstm ? TestInput([B, H]) : nil,
    ]
    let isExact = precision == .float32
    let more = (kept == .float32 ? "" : " kept") + (output == .float32 ? "" : " and h")
    let rounded = " bfloat16 gates\(more) B\(B)"
    return OpCase(
      "\(cell) \(heads) heads\(full ? " full" : "")\(B == 16 ? " tiles" : "")"
        + (isExact ? "" : stored == .float32 ? " bfloat16" : rounded)
        + (isTimeMajor ? " time-major" : ""),
      CellForward(
        cell: cell, heads: heads, precision: precision, keepsGates: true,
        optional: OptionalInputs(inputs.map { $0 != nil }), kept: kept, output: output,
        isTimeMajor: isTimeMajor),
      inputs.compactMap { $0 },
      tolerance: isExact ? 2e-5 : 5e-3, gradientTolerance: isExact ? 2e-4 : 1.5e-2,
      differenceTolerance: stored == .float32 ? 2e-4 : 1e-2,
      differentiableOutputs: cell == .lstm ? 3 : 2)
  }
}

/// Inputs: the forward's, h, kept gates and cell states where there are, dh, then d final h and
/// d final c where present; for sLSTM the kept n and m and d final n. Outputs: d of the pre-activations `[B, T, G·H]`; dh₀, dc₀, dn₀ and dm₀
/// where the forward had them; the vector that multiplied R at each token `[B, T, H]`; for `gru` the cotangent
/// of Rₙ h + bₙ, for `gruOriginal` the vector that multiplied Rₙ.
public struct CellBackward: Op {
  public static let name = "cell_scan_backward"
  public let forward: CellForward
  public let inputCount: Int
  public let hasFinal: Bool
  public let hasFinalMemory: Bool
  public let hasFinalNormalizer: Bool

  /// Positions after the forward's inputs: h, gates, cell states, dh, d final h, d final c, n, m,
  /// d final n.
  public var extra: OptionalInputs {
    OptionalInputs([
      true, forward.gatesPlace != nil, forward.cellsPlace != nil, true, hasFinal, hasFinalMemory,
      forward.normalizersPlace != nil, forward.stabilizersPlace != nil, hasFinalNormalizer,
    ])
  }
  /// The initial states that the forward had, among its possible inputs.
  private var states: [Int] { [3, 4, 6, 7].filter { forward.optional.has($0) } }
  /// Position among the outputs of the gradient of possible input 0, 3, 4, 6 or 7.
  public func place(_ i: Int) -> Int? {
    i == 0 ? 0 : states.firstIndex(of: i).map { $0 + 1 }
  }
  public var previousPlace: Int { 1 + states.count }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let x = forward.extents(i)
    let sequence = TensorSpec([i[0].shape[0], i[0].shape[1], x.hidden], forward.kept)
    return [i[0]] + states.compactMap { forward.optional.pick($0, i) } + [sequence]
      + (forward.cell.isGRU ? [sequence] : [])
  }

  public func reference(_ a: inout HostArguments) {
    let x = forward.extents(a.inputSpecs)
    let H = x.hidden
    let inputs = Array(a.inputs[..<inputCount])
    let rest = Array(a.inputs[inputCount...])
    guard let dy = extra.pick(3, rest) else { return }
    for b in 0..<x.batch {
      var walk = CellWalk(forward, x, inputs, row: b)
      let steps = (0..<x.tokens).map { walk.advance($0) }
      func final(_ i: Int) -> [Double] {
        extra.pick(i, rest).map { Array($0[b * H..<(b + 1) * H]) }
          ?? [Double](repeating: 0, count: H)
      }
      var (dh, dc, dn) = (final(4), final(5), final(8))
      for t in stride(from: x.tokens - 1, through: 0, by: -1) {
        let at = x.place(b, t) * H
        for u in 0..<H { dh[u] += dy[at + u] }
        let back = walk.retreat(steps[t], &dh, &dc, &dn)
        accumulate(back.gates, into: &a.outputs[0], at: at * x.gates)
        accumulate(steps[t].previous, into: &a.outputs[previousPlace], at: at)
        if forward.cell.isGRU {
          let second =
            forward.cell == .gru
            ? Array(back.recurrent[(2 * H)...])
            : zip(steps[t].gates, steps[t].previous).map { $0 * $1 }
          accumulate(second, into: &a.outputs[previousPlace + 1], at: at)
        }
        if walk.isReset(t) {
          dh = [Double](repeating: 0, count: H)
          (dc, dn) = (dh, dh)
        }
      }
      if let place = place(3) { accumulate(dh, into: &a.outputs[place], at: b * H) }
      if let place = place(4) { accumulate(dc, into: &a.outputs[place], at: b * H) }
      if let place = place(6) { accumulate(dn, into: &a.outputs[place], at: b * H) }
      if let place = place(7) {
        // Raising m₀ alone scales c₀ and n₀ as the cell sees them.
        let start = CellWalk(forward, x, inputs, row: b)
        let dm = (0..<H).map { start.c[$0] * dc[$0] + start.n[$0] * dn[$0] }
        accumulate(dm, into: &a.outputs[place], at: b * H)
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public static let cases: [OpCase] = []
}
