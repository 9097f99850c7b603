import GyreTensors

/// Who computes a generation's estimate where processes evolve one model together. The bits are the same.
public enum UpdateWork: String, Sendable, CaseIterable {
  /// Shared where that is faster.
  case auto
  /// Every rank all of it.
  case whole
  /// Every rank that of some parameters, which they then exchange.
  case shared
}

/// What the leader knows of the cost of either way. The first generations compute the estimate whole; where a
/// share of that time and the moving of the estimate should take less, sharing is tried, and kept if it did.
/// The first time of each is not counted: it prepares kernels and connections.
struct UpdateTrial {
  private let work: UpdateWork
  private var tries = 0
  private var whole = 0.0
  private var shared = Double.infinity

  init(_ work: UpdateWork) { self.work = work }

  /// Whether the next estimate is shared among `ranks`, which receive `bytes` at `rate` bytes a second.
  func shares(ranks: Int, bytes: Int, rate: Double) -> Bool {
    switch work {
    case .whole: return false
    case .shared: return ranks > 1
    case .auto:
      let expected = whole / Double(max(ranks, 1)) + Double(bytes) / rate
      return tries >= 2 && ranks > 1 && (tries < 4 ? expected < whole : shared < whole)
    }
  }

  /// Notes the seconds of an estimate.
  mutating func took(_ seconds: Double, shared isShared: Bool) {
    tries += 1
    if tries == 2 { whole = seconds }
    if tries == 4, isShared { shared = seconds }
  }

  /// Other ranks than before: all is open again.
  mutating func forget() { self = UpdateTrial(work) }
}

/// An estimate whose parameters are shared out among the ranks of a group. Whole parameters, so that every
/// product has the sizes that it has in one process, and thereby its bits.
struct SharedEstimate {
  /// The parameters of each rank.
  let leaves: [[Int]]
  private let shapes: [Int: Shape]
  /// Numbers of the rank with the most.
  let length: Int

  /// The largest parameters first, each to the rank with the least so far.
  init(_ used: Set<Int>, _ parameters: [Parameter], ranks: Int) {
    var (leaves, loads) = ([[Int]](repeating: [], count: ranks), [Int](repeating: 0, count: ranks))
    shapes = Dictionary(uniqueKeysWithValues: used.map { ($0, parameters[$0].shape) })
    let sizes = shapes.mapValues(\.elementCount)
    for leaf in used.sorted(by: { ((sizes[$1] ?? 0), $0) < ((sizes[$0] ?? 0), $1) }) {
      let rank = loads.indices.min { loads[$0] < loads[$1] } ?? 0
      leaves[rank].append(leaf)
      loads[rank] += sizes[leaf] ?? 0
    }
    self.leaves = leaves
    length = loads.max() ?? 0
  }

  /// Fills in what other ranks computed.
  func exchange(
    _ own: [Tensor?], in group: any WorkerGroup, on device: any Device
  ) throws(EvolutionError) -> [Tensor?] {
    guard length > 0 else { return own }
    let place = group.ranks.firstIndex(of: group.rank) ?? 0
    var parts = leaves[place].compactMap { own[$0].map { $0.reshaped([$0.elementCount]) } }
    let rest = length - parts.reduce(0) { $0 + $1.elementCount }
    if rest > 0 { parts.append(.zeros([rest], on: device)) }
    let all = try group.gather(concatenated(parts, axis: 0)).reshaped([leaves.count * length])
    var result = own
    for (rank, leaves) in leaves.enumerated() where rank != place {
      var at = rank * length
      for leaf in leaves {
        guard let shape = shapes[leaf] else { continue }
        result[leaf] = all.sliced(at..<at + shape.elementCount, axis: 0).reshaped(shape)
        at += shape.elementCount
      }
    }
    return result
  }
}
