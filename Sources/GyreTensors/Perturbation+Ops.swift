// Parameters that reach an op other than through the products, sums and norms that know of members: the
// recurrent matrix of a cell, taps of a convolution, a decay inside an exponential. The op runs once a
// member, on the member's rows and with the member's own parameters.

import Synchronization

/// An op some of whose inputs are parameters: each may be one for all, or `[B] + shape` with a value of
/// each sequence's own, B the first extent of the first input. Such calls have no derivative.
package protocol TakesOwnParameters: Op {
  /// Places of the parameters among `count` inputs.
  func parameters(of count: Int) -> Range<Int>
  /// The op for parameters that are sequences' own.
  var withOwnParameters: Self { get }
  /// Whether some may be sequences' own and others one for all.
  var mixesOwnAndShared: Bool { get }
}

extension TakesOwnParameters {
  package var withOwnParameters: Self { self }
  package var mixesOwnAndShared: Bool { true }
  /// Where a reference finds the parameter of `width` elements for element `i` of `count` in `batch`
  /// sequences.
  func place(_ values: [Double], _ width: Int, _ i: Int, of count: Int, _ batch: Int) -> Int {
    i % width + (values.count > width ? i / max(count / max(batch, 1), 1) * width : 0)
  }
}

extension Perturbation {
  /// A value that depends on parameters and constants alone, such as exp(a): each member has its own.
  struct Derived: Sendable {
    var op: any Op
    var inputs: [Tensor]
    /// Identities of all outputs of the op, this value among them.
    var outputs: [TensorID]
  }

  /// What an op gives that reads parameters, or values derived from them; nil where it reads none, or where
  /// its outputs do not keep the members apart.
  ///
  /// Inputs made since the population whose first axis is a multiple of the rows belong to the members row by
  /// row; others are the same for all.
  func run(_ op: some Op, _ inputs: [Tensor]) -> [Tensor]? {
    let sources = inputs.map(isSource)
    guard sources.contains(true) else { return nil }
    let belongs = zip(inputs, sources).map { t, isSource in
      !isSource && t.rank >= 1 && t.shape[0] > 0 && t.shape[0] % rows == 0
        && t.id.value > born.value
    }
    if let y = heads(op, inputs, sources) { return [y] }
    guard belongs.contains(true) else {
      // A matrix of activations whose rows are elsewhere: nothing is known of members.
      if zip(inputs, sources).contains(where: { !$1 && isActivation($0) }) { return nil }
      let outputs = applyUnperturbed(op, inputs)
      note(Derived(op: op, inputs: inputs, outputs: outputs.map(\.id)))
      return outputs
    }
    if inputs[0].shape[0] == rows, belongs[0],
      inputs[0].device.storesBFloat16 || op is TokenShift,
      let taker = op as? any TakesOwnParameters, let y = withOwn(taker, inputs, sources)
    {
      return y
    }
    if let binary = op as? Binary, let y = broadcast(binary, inputs, sources) { return [y] }
    return eachMember(op, inputs, sources, belongs)
  }

  /// One launch with members' own parameters; nil where what they own is no parameter of the op.
  private func withOwn<Taker: TakesOwnParameters>(
    _ op: Taker, _ inputs: [Tensor], _ sources: [Bool]
  ) -> [Tensor]? {
    let places = op.parameters(of: inputs.count)
    guard sources.indices.allSatisfy({ !sources[$0] || places.contains($0) }),
      op.mixesOwnAndShared || places.allSatisfy({ sources[$0] })
    else { return nil }
    return applyUnperturbed(
      op.withOwnParameters, zip(inputs, sources).map { $1 ? rowsOfStack($0) : $0 })
  }

  /// Lets the population know of the same elements under another shape.
  func noteReshape(_ t: Tensor, as result: Tensor) {
    guard isSource(t) else { return }
    note(Derived(op: Reshape(shape: result.shape), inputs: [t], outputs: [result.id]))
  }

  private func note(_ value: Derived) {
    made.withLock { made in
      for id in value.outputs { made.derived[id] = value }
    }
  }

  /// Whether members have their own values of a tensor.
  func isSource(_ t: Tensor) -> Bool {
    if leaves[t.id] != nil { return t.rank >= 2 || noise.strategy.includesVectors }
    return made.withLock { $0.derived[t.id] != nil }
  }

  // MARK: - Members' own values

  /// `[members] + shape`: the value as each member has it.
  private func stack(_ t: Tensor) -> Tensor {
    let present = made.withLock { made in
      if let leaf = leaves[t.id] { made.used.insert(leaf) }
      return made.stacks[t.id]
    }
    if let present { return present }
    if let leaf = leaves[t.id] {
      if let stack = stacks(from: leaf) { return stack }
      let stack = applyUnperturbed(Binary(.add), [change(leaf, t), t])[0]
      made.withLock { $0.stacks[t.id] = stack }
      return stack
    }
    guard let value = made.withLock({ $0.derived[t.id] }) else { return t }
    let stacks = stacked(value)
    made.withLock { made in
      for (id, stack) in zip(value.outputs, stacks) { made.stacks[id] = stack }
    }
    return zip(value.outputs, stacks).first { $0.0 == t.id }?.1 ?? t
  }

  /// The stack of a parameter where the device makes many in one launch: those of the vectors after it,
  /// which a layer is about to use, come with it.
  private func stacks(from leaf: Int) -> Tensor? {
    var op = MemberParameters(
      seed: noise.strategy.seed, epoch: noise.epoch, leaves: [], rank: noise.strategy.rank,
      sigma: noise.strategy.sigma, scale: noise.strategy.matrixScale)
    guard parameters[leaf].device.hasKernel(for: op), parameters[leaf].dtype == .float32 else {
      return nil
    }
    var (places, room) = ([leaf], Perturbation.stackedElements)
    let present = made.withLock { $0.stacks }
    for next in parameters.indices.dropFirst(leaf + 1) where noise.strategy.includesVectors {
      let p = parameters[next]
      guard p.rank == 1, p.dtype == .float32, present[p.id] == nil else { continue }
      room -= p.elementCount * members
      if room < 0 || places.count == MemberParameters.limit { break }
      places.append(next)
    }
    op.leaves = places.map { UInt32($0) }
    let stacks = applyUnperturbed(op, [distinct.members] + places.map { parameters[$0] })
    made.withLock { made in
      for (place, stack) in zip(places, stacks) { made.stacks[parameters[place].id] = stack }
    }
    return stacks[0]
  }
  /// Numbers that are made ahead: 256 MB.
  private static let stackedElements = 1 << 26

  /// s σ/√r A Bᵀ of a matrix, s σ z of others.
  private func change(_ leaf: Int, _ t: Tensor) -> Tensor {
    guard t.rank == 2, noise.strategy.rank != nil else {
      return distinct.full(leaf, t.shape, scale: noise.strategy.sigma, signed: true)
    }
    let (down, up) = distinct.factors(
      leaf, t.shape, scale: noise.strategy.matrixScale, signed: true)
    return up.matmul(down, transposingLeft: true, precision: .float32)
  }

  private func stacked(_ value: Derived) -> [Tensor] {
    let whole = value.inputs.map { isSource($0) ? stack($0) : $0 }
    func elementwise(_ op: some Op) -> [Tensor] { applyUnperturbed(op, whole) }
    switch value.op {
    case let op as Reshape:
      return [whole[0].aliased(as: Shape([members] + op.shape.dimensions))]
    case let op as Unary: return elementwise(op)
    case let op as Affine: return elementwise(op)
    default: break
    }
    let specs = value.op.infer(value.inputs.map(\.spec))
    let outputs = specs.map {
      Tensor(
        emptyWith: TensorSpec(Shape([members] + $0.shape.dimensions), $0.dtype),
        on: value.inputs[0].device)
    }
    for member in 0..<members {
      value.inputs[0].device.launch(
        KernelCall(
          op: value.op,
          inputs: zip(value.inputs, whole).map { own, all in
            isSource(own) ? all.part(member, of: members, as: own.shape) : own
          },
          outputs: zip(outputs, specs).map { $0.part(member, of: members, as: $1.shape) }))
    }
    return outputs
  }

  /// The stack with a member's value for each of its rows.
  func rowsOfStack(_ t: Tensor) -> Tensor {
    let all = stack(t)
    if members == rows { return all }
    let width = t.elementCount
    return applyUnperturbed(
      EmbeddingLookup(), [all.aliased(as: [members, width]), memberOfRow])[0]
      .aliased(as: Shape([rows] + t.shape.dimensions))
  }

  // MARK: - Ops

  /// x ∘ p with one launch, where p is broadcast along the axes after the members.
  private func broadcast(_ op: Binary, _ inputs: [Tensor], _ sources: [Bool]) -> Tensor? {
    guard sources.count == 2, sources[0] != sources[1] else { return nil }
    let (p, x) = sources[0] ? (inputs[0], inputs[1]) : (inputs[1], inputs[0])
    guard x.rank >= 2, x.shape[0] == rows else { return nil }
    var own = p.shape.dimensions
    while own.count >= x.rank, own.first == 1 { own.removeFirst() }
    guard own.count < x.rank,
      zip(own.reversed(), x.shape.dimensions.reversed()).allSatisfy({ $0 == $1 || $0 == 1 })
    else { return nil }
    let ones = [Int](repeating: 1, count: x.rank - 1 - own.count)
    let each = rowsOfStack(p).aliased(as: Shape([rows] + ones + own))
    return applyUnperturbed(op, sources[0] ? [each, x] : [x, each])[0]
  }

  /// Whether a value made since the population holds numbers of all rows along an axis after the first.
  private func isActivation(_ t: Tensor) -> Bool {
    t.id.value > born.value && t.rank >= 3
      && t.shape.dimensions[1...].contains { extent in
        extent > 0 && extent % rows == 0 && extent / rows > 1
      }
  }

  /// Block-diagonal maps: x `[H, rows · T, N]` with a matrix `[H, N, M]` or a bias `[H, 1, N]` of each head.
  private func heads(_ op: some Op, _ inputs: [Tensor], _ sources: [Bool]) -> Tensor? {
    guard op is MatMul || op is Binary, sources == [false, true] else { return nil }
    let (x, p) = (inputs[0], inputs[1])
    guard x.rank == 3, p.rank == 3, x.id.value > born.value, x.shape[0] == p.shape[0],
      x.shape[1] > 0, x.shape[1] % rows == 0, op is MatMul || p.shape[1] == 1
    else { return nil }
    let (all, each) = (stack(p), x.shape[1] / members)
    let parts = (0..<members).map { member in
      let range = member * each..<(member + 1) * each
      let own = applyUnperturbed(Slice(axis: 1, ranges: [range]), [x])[0]
      return applyUnperturbed(op, [own, all.part(member, of: members, as: p.shape)])[0]
    }
    return concatenated(parts, axis: 1)
  }

  private func eachMember(
    _ op: some Op, _ inputs: [Tensor], _ sources: [Bool], _ belongs: [Bool]
  ) -> [Tensor]? {
    let whole = inputs.enumerated().map { i, t in sources[i] ? stack(t) : t }
    func own(_ i: Int, _ member: Int) -> Tensor {
      if sources[i] { return whole[i].part(member, of: members, as: inputs[i].shape) }
      guard belongs[i] else { return inputs[i] }
      var shape = inputs[i].shape
      shape[0] /= members
      return inputs[i].part(member, of: members, as: shape)
    }
    let specs = op.infer(inputs.map(\.spec))
    let parts = op.infer(inputs.indices.map { own($0, 0).spec })
    // The axis of each output along which the members lie.
    var axes: [Int] = []
    for (all, part) in zip(specs, parts) {
      let differing = all.shape.dimensions.indices.filter { all.shape[$0] != part.shape[$0] }
      guard members > 1 else {
        axes.append(0)
        continue
      }
      if differing.isEmpty {
        // A kernel's notes, not the members': the last launch's stand for all.
        axes.append(-1)
        continue
      }
      guard differing.count == 1, all.shape[differing[0]] == part.shape[differing[0]] * members
      else { return nil }
      axes.append(differing[0])
    }
    let device = inputs[0].device
    // Where members come first each writes into its part; other outputs are joined afterwards.
    let outputs = zip(specs, axes).map { $1 == 0 ? Tensor(emptyWith: $0, on: device) : nil }
    var loose = [[Tensor]](repeating: [], count: specs.count)
    for member in 0..<members {
      let targets = outputs.indices.map { o in
        outputs[o]?.part(member, of: members, as: parts[o].shape)
          ?? Tensor(emptyWith: parts[o], on: device)
      }
      device.launch(
        KernelCall(op: op, inputs: inputs.indices.map { own($0, member) }, outputs: targets))
      for o in targets.indices where outputs[o] == nil { loose[o].append(targets[o]) }
    }
    return outputs.indices.map { o in
      outputs[o] ?? (axes[o] < 0 ? loose[o][members - 1] : concatenated(loose[o], axis: axes[o]))
    }
  }
}

extension Tensor {
  /// Piece `i` of `count` equal ones along the first axis, of the same storage.
  fileprivate func part(_ i: Int, of count: Int, as shape: Shape) -> Tensor {
    aliased(as: shape, byteOffset: byteOffset + i * (byteCount / count))
  }
}
