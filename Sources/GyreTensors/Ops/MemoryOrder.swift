/// The order in which flash-linear-attention's mixture of memories gives tokens to a memory on a CPU:
/// all choices of a batch, sorted by row and memory with `UnstableSort`, so that a memory's tokens are
/// shuffled and a token may see later ones.
///
/// Input: router probabilities p `[B, T, M]`. Each token's `count` largest, from the largest on, are
/// its choices. Outputs over M lanes and, with `hasShared`, one more that keeps every token in place:
/// taken `[B, T, lanes]`, 1 at the first places of a lane that its tokens fill; order int32 of the same
/// shape, the row of a flattened `[B, T, lanes]` table that belongs at a place; inverse int32, the row
/// at which a token's lane lies then. No gradient.
public struct MemoryOrder: Op {
  public static let name = "memory_order"
  public let count: Int
  public let hasShared: Bool
  /// From so many choices on PyTorch sorts by radix, which is stable.
  static let radixCount = 32_768

  public init(count: Int, hasShared: Bool) {
    self.count = count
    self.hasShared = hasShared
  }

  /// Partitions of `UnstableSort` until a piece of that many choices is sorted by heap; nil where the
  /// sort is stable or there is nothing to sort.
  package func sortDepth(choices: Int) -> Int? {
    (2..<MemoryOrder.radixCount).contains(choices) ? UnstableSort.depth(choices) : nil
  }

  public func infer(_ i: [TensorSpec]) -> [TensorSpec] {
    let s = i[0].shape
    precondition(
      s.rank == 3 && (1...max(s[2], 1)).contains(count), "memory_order: \(count) of \(s)")
    let shape: Shape = [s[0], s[1], s[2] + (hasShared ? 1 : 0)]
    return [TensorSpec(shape), TensorSpec(shape, .int32), TensorSpec(shape, .int32)]
  }

  public func reference(_ a: inout HostArguments) {
    let s = a.inputSpecs[0].shape
    let (batch, tokens, memories) = (s[0], s[1], s[2])
    let lanes = memories + (hasShared ? 1 : 0)
    func row(_ b: Int, _ t: Int, _ lane: Int) -> Int { (b * tokens + t) * lanes + lane }
    var keys: [Int] = []
    keys.reserveCapacity(batch * tokens * count)
    for r in 0..<batch * tokens {
      let p = a.inputs[0][r * memories..<(r + 1) * memories]
      let chosen = p.indices.sorted { p[$0] != p[$1] ? p[$0] > p[$1] : $0 < $1 }.prefix(count)
      keys += chosen.map { (r / max(tokens, 1)) * memories + $0 - r * memories }
    }
    let sorted =
      keys.count < MemoryOrder.radixCount
      ? UnstableSort.order(keys)
      : keys.indices.sorted { keys[$0] != keys[$1] ? keys[$0] < keys[$1] : $0 < $1 }
    var queues = [[Int]](repeating: [], count: batch * memories)
    for choice in sorted { queues[keys[choice]].append(choice / count % max(tokens, 1)) }
    for b in 0..<batch {
      for lane in 0..<lanes {
        var queue = lane < memories ? queues[b * memories + lane] : Array(0..<tokens)
        for place in 0..<queue.count { a.outputs[0][row(b, place, lane)] = 1 }
        var isTaken = [Bool](repeating: false, count: tokens)
        for t in queue { isTaken[t] = true }
        queue += (0..<tokens).filter { !isTaken[$0] }
        for (place, t) in queue.enumerated() {
          a.outputs[1][row(b, place, lane)] = Double(row(b, t, lane))
          a.outputs[2][row(b, t, lane)] = Double(row(b, place, lane))
        }
      }
    }
  }
  public func vjp(_ c: VJPContext) -> [Tensor?] { [nil] }
  public var saved: SavedValues { .none }
  public static let cases = [
    OpCase(
      "two of four", MemoryOrder(count: 2, hasShared: true),
      [TestInput([2, 19, 4], differentiable: false)]),
    OpCase(
      "one of three", MemoryOrder(count: 1, hasShared: false),
      [TestInput([1, 40, 3], differentiable: false)]),
    OpCase(
      "many pieces", MemoryOrder(count: 2, hasShared: true),
      [TestInput([3, 700, 5], differentiable: false)]),
    OpCase(
      "bad medians", MemoryOrder(count: 1, hasShared: false),
      [TestInput([1, 100, 100], .elements(badMedians), differentiable: false)]),
    OpCase(
      "stable", MemoryOrder(count: 2, hasShared: true),
      [TestInput([2, 8200, 4], differentiable: false)]),
  ]

  /// Choices whose medians of three part off two at a time, until pieces are sorted by heap. Musser 1997.
  private static let badMedians: [Double] = (0..<100).flatMap { t -> [Double] in
    let chosen = t >= 50 ? 2 * (t - 50) + 1 : t % 2 == 0 ? t : t + 49
    return (0..<100).map { $0 == chosen ? 1 : 0 }
  }
}
