/// The noise of a matrix's factors for the members of a population, made where it is used:
///
///     B_l: numbers l K + k of `EvolutionNoise`, A_l: numbers 2³¹ + l N + j, times `scale`
///
/// negated in A for odd members, 0 for negative ones.
public struct LowRankNoise: Sendable, Hashable {
  public var seed: UInt64
  public var epoch: UInt32
  /// Number of the parameter.
  public var leaf: UInt32
  public var rank: Int
  public var scale: Double

  /// - Precondition: `rank` ≥ 1.
  public init(seed: UInt64, epoch: UInt32, leaf: UInt32, rank: Int, scale: Double) {
    precondition(rank >= 1, "low-rank noise of rank \(rank)")
    (self.seed, self.epoch, self.leaf, self.rank, self.scale) = (seed, epoch, leaf, rank, scale)
  }

  /// B and A of K inputs and N outputs, as ops on the list of members.
  public func factors(_ inputs: Int, _ outputs: Int) -> (down: EvolutionNoise, up: EvolutionNoise) {
    (
      EvolutionNoise(seed: seed, epoch: epoch, leaf: leaf, count: rank * inputs),
      EvolutionNoise(
        seed: seed, epoch: epoch, leaf: leaf, first: 1 << 31, count: rank * outputs, scale: scale,
        isSigned: true)
    )
  }

  /// Σ_l (x · down_l) up_l, or with tokens down_l[token] for x · down_l, added to rows of `y`.
  fileprivate func add(
    to y: inout [Double], outputs: Int, x: [Double], inputs: Int, isTokens: Bool,
    _ down: [Double], _ up: [Double], members: Int
  ) {
    let rows = y.count / max(outputs, 1)
    let each = rows / max(members, 1)
    for i in 0..<rows {
      for l in 0..<rank {
        let (first, second) = ((i / each * rank + l) * inputs, (i / each * rank + l) * outputs)
        var z = 0.0
        if isTokens {
          z = down[first + Int(x[i])]
        } else {
          for k in 0..<inputs { z += x[i * inputs + k] * down[first + k] }
        }
        for j in 0..<outputs { y[i * outputs + j] += z * up[second + j] }
      }
    }
  }

  /// Members of tests: pairs, one without noise and its neighbour.
  fileprivate static func testMembers(_ count: Int) -> TestInput {
    var input = TestInput(
      [count], .elements((0..<count).map { $0 == 4 ? -1 : Double($0) }), differentiable: false)
    input.spec.dtype = .int32
    return input
  }

  /// Numbers of an op for a list of members.
  fileprivate static func made(_ op: EvolutionNoise, _ members: [Double]) -> [Double] {
    let spec = TensorSpec([members.count], .int32)
    var a = HostArguments(
      inputs: [members], inputSpecs: [spec], outputSpecs: op.infer([spec]))
    op.reference(&a)
    return a.outputs[0]
  }
}

/// A linear map as the members of a population see it, without anything stored:
///
///     y = x Wᵀ + Σ_l (x · B_l) A_l
///
/// with B and A of `LowRankNoise`. Inputs: x `[R, …, K]`, W `[N, K]`, members int32 `[M]`, each with R·…/M
/// rows in a row. Output `[R, …, N]`. For inference: it has no derivative.
public struct MemberLinear: Op {
  public static let name = "member_linear"
  public var noise: LowRankNoise
  public var map: LinearMap

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[2].dtype == .int32 && i[2].shape.rank == 1
        && i[0].shape.rowCount % max(i[2].shape[0], 1) == 0,
      "member_linear: x \(i[0].shape), members \(i[2])")
    return map.infer(Array(i[..<2]))
  }

  public func reference(_ a: inout HostArguments) {
    var plain = HostArguments(
      inputs: Array(a.inputs[..<2]), inputSpecs: Array(a.inputSpecs[..<2]),
      outputSpecs: a.outputSpecs)
    map.reference(&plain)
    a.outputs = plain.outputs
    let (n, k) = (a.inputSpecs[1].shape[0], a.inputSpecs[1].shape[1])
    let (down, up) = noise.factors(k, n)
    noise.add(
      to: &a.outputs[0], outputs: n, x: a.inputs[0], inputs: k, isTokens: false,
      LowRankNoise.made(down, a.inputs[2]), LowRankNoise.made(up, a.inputs[2]),
      members: a.inputs[2].count)
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public var saved: SavedValues { .none }

  public static let cases: [OpCase] = [
    item("pairs", [6, 5, 40], 24, rank: 1), item("rank 3", [5, 9, 16], 32, rank: 3),
    item("odd sizes", [4, 3, 33], 19, rank: 2), item("one token", [7, 64], 128, rank: 1),
    item("several rows a member", [12, 64], 136, members: 4, rank: 1),
    item("many ranks", [3, 70], 17, rank: 70),
    item("bfloat16", [6, 20, 64], 2056, rank: 1, precision: .bfloat16),
    item("bfloat16, few inputs", [6, 32, 64], 288, rank: 1, precision: .bfloat16),
    item("bfloat16, tiles", [6, 32, 200], 328, rank: 1, precision: .bfloat16),
    item("bfloat16, tiles, few outputs", [5, 48, 136], 72, rank: 1, precision: .bfloat16),
    item("bfloat16, many tiles", [1024, 16, 16], 264, rank: 1, precision: .bfloat16),
    item("bfloat16, many parts", [1060, 16, 16], 264, rank: 1, precision: .bfloat16),
    item("bfloat16 rank 5", [6, 64], 80, rank: 5, precision: .bfloat16),
    item("bfloat16 to float32", [5, 64], 80, rank: 2, precision: .bfloat16, output: .float32),
  ]
  private static func item(
    _ label: String, _ x: Shape, _ outputs: Int, members: Int? = nil, rank: Int,
    precision: ComputePrecision = .float32, output: DType? = nil
  ) -> OpCase {
    let isHalf = precision == .bfloat16
    let input = TestInput(x, differentiable: false)
    return OpCase(
      label,
      MemberLinear(
        noise: .init(seed: 0x1234_5678_9ABC, epoch: 3, leaf: 2, rank: rank, scale: 0.25),
        map: LinearMap(precision: precision, output: output ?? (isHalf ? .bfloat16 : .float32))),
      [
        isHalf ? input.stored(as: .bfloat16) : input,
        TestInput([outputs, x.last], differentiable: false),
        LowRankNoise.testMembers(members ?? x[0]),
      ], tolerance: isHalf ? 9e-3 : 4e-6)
  }
}

/// Rows of a table as the members of a population see them:
///
///     y = E[token] + Σ_l A_l[token] B_l
///
/// with B and A of `LowRankNoise` for a matrix `[V, D]`. Inputs: table `[V, D]`, tokens int32 `[R, …]`, members
/// int32 `[M]`, each with R·…/M tokens in a row. Output `[R, …, D]`.
public struct MemberRows: Op {
  public static let name = "member_rows"
  public var noise: LowRankNoise
  public var output: DType = .float32

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i[2].dtype == .int32 && i[2].shape.rank == 1
        && i[1].shape.elementCount % max(i[2].shape[0], 1) == 0,
      "member_rows: tokens \(i[1].shape), members \(i[2])")
    return EmbeddingLookup(output: output).infer(Array(i[..<2]))
  }

  public func reference(_ a: inout HostArguments) {
    EmbeddingLookup(output: output).reference(&a)
    let (v, d) = (a.inputSpecs[0].shape[0], a.inputSpecs[0].shape[1])
    let (down, up) = noise.factors(d, v)
    noise.add(
      to: &a.outputs[0], outputs: d, x: a.inputs[1], inputs: v, isTokens: true,
      LowRankNoise.made(up, a.inputs[2]), LowRankNoise.made(down, a.inputs[2]),
      members: a.inputs[2].count)
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public var saved: SavedValues { .none }
  public static let cases: [OpCase] = [
    item("rank 1", [11, 24], [6, 9], rank: 1), item("rank 3", [70, 33], [4, 5], rank: 3),
    item("bfloat16", [30, 64], [5, 17], rank: 2, output: .bfloat16),
  ]
  private static func item(
    _ label: String, _ table: Shape, _ tokens: Shape, rank: Int, output: DType = .float32
  ) -> OpCase {
    OpCase(
      label,
      MemberRows(
        noise: .init(seed: 0x1234_5678_9ABC, epoch: 3, leaf: 2, rank: rank, scale: 0.25),
        output: output),
      [
        TestInput(table, differentiable: false), .integers(tokens, 0, table[0]),
        LowRankNoise.testMembers(tokens[0]),
      ], tolerance: output == .bfloat16 ? 4e-3 : 2e-6)
  }
}

/// Parameters as the members of a population have them, one launch for many: p + s σ z, and for a matrix
/// p + Σ_l A_l B_lᵀ where `rank` is given.
///
/// Inputs: members int32 `[M]`, then parameters. Outputs: `[M] + shape` of each.
public struct MemberParameters: Op {
  public static let name = "member_parameters"
  /// Most parameters of one call.
  public static let limit = 48
  public var seed: UInt64
  public var epoch: UInt32
  /// Numbers of the parameters.
  public var leaves: [UInt32]
  /// Of matrices' noise; nil: full.
  public var rank: Int?
  /// Of single elements' noise, and of A.
  public var sigma, scale: Double

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    precondition(
      i.count == leaves.count + 1 && leaves.count <= Self.limit && i[0].dtype == .int32,
      "member_parameters: \(i.count - 1) parameters, \(leaves.count) numbers")
    return i.dropFirst().map { TensorSpec(Shape([i[0].shape[0]] + $0.shape.dimensions)) }
  }

  /// Whether a parameter's noise is of low rank.
  public func isLowRank(_ shape: Shape) -> Bool { rank != nil && shape.rank == 2 }

  /// The noise of a matrix.
  public func noise(_ leaf: UInt32) -> LowRankNoise {
    LowRankNoise(seed: seed, epoch: epoch, leaf: leaf, rank: rank ?? 1, scale: scale)
  }

  public func reference(_ a: inout HostArguments) {
    let members = a.inputs[0]
    for (p, leaf) in leaves.enumerated() {
      let (values, shape) = (a.inputs[p + 1], a.inputSpecs[p + 1].shape)
      if isLowRank(shape) {
        let (m, n) = (shape[0], shape[1])
        let (down, up) = noise(leaf).factors(n, m)
        let (b, c) = (LowRankNoise.made(down, members), LowRankNoise.made(up, members))
        let rank = rank ?? 1
        for i in a.outputs[p].indices {
          let (member, row, column) = (i / values.count, i / n % m, i % n)
          a.outputs[p][i] = values[i % values.count]
          for l in 0..<rank {
            let at = member * rank + l
            a.outputs[p][i] += c[at * m + row] * b[at * n + column]
          }
        }
      } else {
        let op = EvolutionNoise(
          seed: seed, epoch: epoch, leaf: leaf, count: values.count, scale: sigma, isSigned: true)
        for (i, z) in LowRankNoise.made(op, members).enumerated() {
          a.outputs[p][i] = values[i % values.count] + z
        }
      }
    }
  }

  public func vjp(_ c: VJPContext) -> [Tensor?] { c.inputs.map { _ in nil } }
  public var saved: SavedValues { .none }
  public static let cases: [OpCase] = [1, nil, 3].map { rank in
    OpCase(
      rank.map { "rank \($0)" } ?? "full",
      MemberParameters(
        seed: 0x1234_5678_9ABC, epoch: 3, leaves: [2, 7, 4], rank: rank, sigma: 0.25, scale: 0.5),
      [LowRankNoise.testMembers(6)]
        + [[72], [3, 10], [35]].map { TestInput(Shape($0), differentiable: false) })
  }
}
