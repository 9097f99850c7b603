import Synchronization

/// The population that a forward pass runs for: each row of a batch is one member, whose parameters are
/// perturbed (EGGROLL, Sarkar et al., https://arxiv.org/abs/2511.16652):
///
///     a matrix W is W + s σ/√r Σ_l A_l B_lᵀ, so that x Wᵀ becomes x Wᵀ + s σ/√r Σ_l (x·B_l) A_l
///     a vector p is p + s σ z
///
/// with s = 1 for even members and −1 for odd ones, and the noise of `EvolutionNoise`: of a matrix `[m, n]`
/// numbers l n + k of B and 2³¹ + l m + k of A, of a vector numbers k. `rank` nil takes a full matrix E of
/// such numbers in place of A Bᵀ/√r, the classical evolution strategy.
///
/// `Perturbation.current` is task-local: linear maps, embeddings, norms and element-wise arithmetic of
/// tensors look at it, so that models know nothing of it. A parameter that reaches another op, or through
/// others, is written out for each member and the op runs once a member. It applies where the batch is
/// the first axis of what is computed. `used` tells which parameters were perturbed. Nothing of it is
/// recorded on a tape.
public final class Perturbation: Sendable {
  @TaskLocal public static var current: Perturbation?

  /// What all generations of a run share.
  public struct Strategy: Sendable, Hashable {
    public var seed: UInt64
    public var sigma: Double
    /// r; nil: full rank.
    public var rank: Int?
    /// Whether vectors are perturbed.
    public var includesVectors: Bool

    public init(seed: UInt64, sigma: Double, rank: Int? = 1, includesVectors: Bool = true) {
      self.seed = seed
      self.sigma = sigma
      self.rank = rank
      self.includesVectors = includesVectors
    }

    /// What multiplies A Bᵀ or a full matrix.
    public var matrixScale: Double { sigma / Double(rank ?? 1).squareRoot() }
  }

  /// The noise of some members for one parameter.
  public struct Noise: Sendable {
    public var strategy: Strategy
    public var epoch: UInt32
    /// int32 `[R]`.
    public var members: Tensor
    private let rows: Int

    public init(_ strategy: Strategy, epoch: UInt32, members: Tensor) {
      self.strategy = strategy
      self.epoch = epoch
      self.members = members
      rows = members.shape[0]
    }

    private func make(_ leaf: Int, _ first: UInt32, _ count: Int, _ scale: Double, _ signed: Bool)
      -> Tensor
    {
      apply(
        EvolutionNoise(
          seed: strategy.seed, epoch: epoch, leaf: UInt32(leaf), first: first, count: count,
          scale: scale, isSigned: signed), [members])[0]
    }

    /// B `[R, r, n]` and `scale` A `[R, r, m]`, A with the members' signs where asked.
    public func factors(_ leaf: Int, _ shape: Shape, scale: Double, signed: Bool) -> (
      down: Tensor, up: Tensor
    ) {
      let r = strategy.rank ?? 1
      return (
        make(leaf, 0, r * shape[1], 1, false).aliased(as: [rows, r, shape[1]]),
        make(leaf, 1 << 31, r * shape[0], scale, signed).aliased(as: [rows, r, shape[0]])
      )
    }

    /// `scale` z of every element, `[R] + shape`.
    public func full(_ leaf: Int, _ shape: Shape, scale: Double, signed: Bool) -> Tensor {
      make(leaf, 0, shape.elementCount, scale, signed)
        .aliased(as: Shape([rows] + shape.dimensions))
    }
  }

  public let noise: Noise
  let rows: Int
  /// Members whose rows follow each other, and their noise; each has rows / members rows.
  let members: Int
  let distinct: Noise
  /// The member of each row, counted among `distinct`.
  let memberOfRow: Tensor
  /// Tensors made before are the same for all members.
  let born: TensorID
  /// Values of parameters, and their places by identity.
  let parameters: [Tensor]
  let leaves: [TensorID: Int]
  struct Made {
    var factors: [Int: (down: Tensor, up: Tensor)] = [:]
    var full: [Int: Tensor] = [:]
    var derived: [TensorID: Derived] = [:]
    /// Values of parameters and of what is derived from them, `[members] + shape`.
    var stacks: [TensorID: Tensor] = [:]
    var used: Set<Int> = []
  }
  let made = Mutex(Made())

  /// - Parameters:
  ///   - members: one a row of the batch; negative: the model itself.
  ///   - parameters: those that may be perturbed; their places here number their noise.
  public init(
    _ strategy: Strategy, epoch: UInt32, members: [Int32], parameters: [Parameter],
    on device: any Device
  ) {
    func noise(_ members: [Int32]) -> Noise {
      Noise(strategy, epoch: epoch, members: Tensor(members, shape: [members.count], on: device))
    }
    self.noise = noise(members)
    rows = members.count
    let each = Perturbation.rowsEach(members)
    self.members = rows / each
    distinct =
      each == 1 ? self.noise : noise(stride(from: 0, to: rows, by: each).map { members[$0] })
    memberOfRow = Tensor((0..<rows).map { Int32($0 / each) }, shape: [rows], on: device)
    born = .make()
    var leaves: [TensorID: Int] = [:]
    for (i, p) in parameters.enumerated() { leaves[p.value.id] = i }
    self.leaves = leaves
    self.parameters = parameters.map(\.value)
  }

  /// Places of the parameters that took part so far.
  public var used: Set<Int> { made.withLock { $0.used } }

  /// Rows in a row of one member, where that is the same number for all; otherwise 1.
  private static func rowsEach(_ members: [Int32]) -> Int {
    let each = members.firstIndex { $0 != members[0] } ?? members.count
    guard each > 1, members.count % each == 0,
      members.indices.allSatisfy({ members[$0] == members[$0 / each * each] })
    else { return 1 }
    return each
  }

  /// The place of a matrix that is perturbed for a batch of this shape.
  private func matrix(_ weight: Tensor, _ batch: Shape) -> Int? {
    guard weight.rank == 2, batch.rank >= 1, batch[0] > 0, batch[0] % rows == 0 else { return nil }
    return leaves[weight.id]
  }

  private func factors(_ leaf: Int, _ weight: Tensor) -> (down: Tensor, up: Tensor) {
    if let present = made.withLock({ $0.factors[leaf] }) { return present }
    let fresh = noise.factors(
      leaf, weight.shape, scale: noise.strategy.matrixScale, signed: true)
    made.withLock {
      $0.factors[leaf] = fresh
      $0.used.insert(leaf)
    }
    return fresh
  }

  private func full(_ leaf: Int, _ p: Tensor) -> Tensor {
    if let present = made.withLock({ $0.full[leaf] }) { return present }
    let fresh = noise.full(leaf, p.shape, scale: noise.strategy.sigma, signed: true)
    made.withLock {
      $0.full[leaf] = fresh
      $0.used.insert(leaf)
    }
    return fresh
  }

  /// The noise of a matrix, where it is of low rank.
  private func lowRank(_ leaf: Int) -> LowRankNoise? {
    noise.strategy.rank.map {
      LowRankNoise(
        seed: noise.strategy.seed, epoch: noise.epoch, leaf: UInt32(leaf), rank: $0,
        scale: noise.strategy.matrixScale)
    }
  }

  private func note(_ leaf: Int) { made.withLock { _ = $0.used.insert(leaf) } }

  /// Whether a table or a head is perturbed for rows of this shape.
  func perturbs(_ weight: Tensor, _ batch: Shape) -> Bool { matrix(weight, batch) != nil }

  /// x Wᵀ + b with each row's perturbation added.
  func linear(_ op: LinearMap, _ x: Tensor, _ weight: Tensor, _ bias: Tensor?) -> Tensor {
    if let bias, leaves[bias.id] == nil, isSource(bias) { return linear(op, x, weight, nil) + bias }
    let inputs = [x, weight] + (bias.map { [$0] } ?? [])
    guard let leaf = matrix(weight, x.shape) else { return apply(op, inputs)[0] }
    if let noise = lowRank(leaf), weight.dtype.isFloat {
      let fused = MemberLinear(noise: noise, map: op)
      if x.device.hasKernel(for: fused) {
        note(leaf)
        let y = applyUnperturbed(fused, [x, weight, distinct.members])[0]
        return bias.map { y + $0 } ?? y
      }
    }
    let (tokens, n) = (x.shape.rowCount / rows, weight.shape[1])
    var y = applyUnperturbed(op, inputs)[0]
    let (wide, narrow) = (
      y.aliased(as: [rows, tokens, weight.shape[0]]), x.aliased(as: [rows, tokens, n])
    )
    if noise.strategy.rank != nil {
      let (down, up) = factors(leaf, weight)
      y.device.launch(
        KernelCall(op: LowRankAdd(), inputs: [wide, narrow, down, up], outputs: [wide]))
    } else {
      let added = narrow.matmul(full(leaf, weight), transposingRight: true)
      y = y + added.aliased(as: y.shape)
    }
    if let bias, let shift = vectorNoise(bias, wide) {
      y = applyUnperturbed(Binary(.add), [y.aliased(as: wide.shape), shift])[0].aliased(as: y.shape)
    }
    return y
  }

  /// Rows of a table with each member's perturbation added.
  func rows(_ table: Tensor, _ tokens: Tensor, output: DType = .float32) -> Tensor {
    let lookup = EmbeddingLookup(output: output)
    guard let leaf = matrix(table, tokens.shape), tokens.shape[0] == rows else {
      return apply(lookup, [table, tokens])[0]
    }
    if let noise = lowRank(leaf) {
      let fused = MemberRows(noise: noise, output: output)
      if table.device.hasKernel(for: fused) {
        note(leaf)
        return applyUnperturbed(fused, [table, tokens, distinct.members])[0]
      }
    }
    let y = applyUnperturbed(lookup, [table, tokens])[0]
    if noise.strategy.rank != nil {
      let (down, up) = factors(leaf, table)
      // Row t of A Bᵀ is A[t] B: A plays the part of down.
      y.device.launch(
        KernelCall(op: LowRankAdd(), inputs: [y, tokens, up, down], outputs: [y]))
      return y
    }
    // One table of all members' rows: member i's row t is row i V + t.
    let vocabulary = table.shape[0]
    let all = full(leaf, table).aliased(as: [rows * vocabulary, table.shape[1]])
    let length = tokens.elementCount / rows
    do throws(DeviceError) {
      let ids = try tokens.elements(Int32.self).enumerated().map { i, id in
        Int32(i / length * vocabulary) + id
      }
      let places = Tensor(ids, shape: tokens.shape, on: tokens.device)
      return y + apply(EmbeddingLookup(), [all, places])[0]
    } catch {
      tokens.device.fail(error)
      return y
    }
  }

  /// The shape in which rows' own values of a vector are broadcast with `x`; nil where they have none.
  private func vectorShape(_ p: Tensor, _ x: Tensor) -> Shape? {
    guard noise.strategy.includesVectors, p.rank == 1, x.rank >= 2, x.shape[0] == rows,
      x.shape.last == p.shape[0], leaves[p.id] != nil
    else { return nil }
    return Shape([rows] + [Int](repeating: 1, count: x.rank - 2) + [p.shape[0]])
  }

  /// s σ z of a vector, shaped to be added to what `x` is broadcast with.
  private func vectorNoise(_ p: Tensor, _ x: Tensor) -> Tensor? {
    guard let shape = vectorShape(p, x), let leaf = leaves[p.id] else { return nil }
    return full(leaf, p).aliased(as: shape)
  }

  /// A vector as each row of `x` sees it; nil where it is not perturbed.
  func vector(_ p: Tensor, like x: Tensor) -> Tensor? {
    if x.device.storesBFloat16 { return vectorShape(p, x).map { rowsOfStack(p).aliased(as: $0) } }
    return vectorNoise(p, x).map { applyUnperturbed(Binary(.add), [$0, p])[0] }
  }
}
