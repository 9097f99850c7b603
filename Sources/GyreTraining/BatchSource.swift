import GyreTensors

/// Tokens, the tokens that follow them, and where documents begin: `[B, T]` each.
public struct Batch: Sendable {
  public var tokens: [Int32]
  public var targets: [Int32]
  /// Nonzero at the first token of a document; nil where there is none.
  public var reset: [Int32]?
  /// Whether the carried state must be dropped before this batch.
  public var startsAfresh: Bool

  /// - Precondition: as many targets as tokens.
  public init(
    tokens: [Int32], targets: [Int32], reset: [Int32]? = nil, startsAfresh: Bool
  ) {
    precondition(tokens.count == targets.count, "\(tokens.count) tokens, \(targets.count) targets")
    (self.tokens, self.targets) = (tokens, targets)
    (self.reset, self.startsAfresh) = (reset, startsAfresh)
  }
}

/// Batches as a pure function of their number, so that a position is one integer.
public protocol BatchSource: Sendable {
  var batch: Int { get }
  var length: Int { get }
  /// Whether rows go on where they ended: the state is carried over.
  var carriesState: Bool { get }
  func batch(_ number: Int) -> Batch
}

extension BatchSource {
  /// Cuts rows out of a shard at the given first tokens.
  func cut(_ shard: TokenShard, _ starts: [Int], startsAfresh: Bool) -> Batch {
    var batch = Batch(tokens: [], targets: [], reset: nil, startsAfresh: startsAfresh)
    var reset: [Int32] = []
    let first = Set(shard.documents)
    for start in starts {
      let row = shard.tokens(start..<start + length + 1)
      batch.tokens += row.dropLast()
      var targets = Array(row.dropFirst())
      for i in 0..<length {
        let begins = shard.documents.count > 1 && first.contains(start + i)
        reset.append(begins || (i == 0 && !carriesState) ? 1 : 0)
        // The first token of the next document is nothing to predict.
        if shard.documents.count > 1, first.contains(start + i + 1) { targets[i] = -1 }
      }
      batch.targets += targets
    }
    if reset.contains(1) { batch.reset = reset }
    return batch
  }
}

/// Each row reads its own contiguous part of the text, window after window; an epoch begins at a
/// random offset. For truncated backpropagation with carried state.
public struct StreamBatches: BatchSource {
  public let batch, length: Int
  public let carriesState = true
  private let shard: TokenShard
  private let seed: UInt64
  private let stride: Int
  private let windows: Int

  /// - Throws: when the text is too short for one batch.
  public init(_ shard: TokenShard, batch: Int, length: Int, seed: UInt64) throws(TrainingError) {
    (self.shard, self.batch, self.length, self.seed) = (shard, batch, length, seed)
    stride = (shard.count - 1) / batch
    windows = (stride - 1) / length
    guard windows >= 1 else {
      throw .data(
        path: shard.path,
        reason: "\(shard.count) tokens are too few for \(batch) rows of \(length); use a smaller "
          + "--batch or --length")
    }
  }

  public func batch(_ number: Int) -> Batch {
    let (epoch, window) = (number / windows, number % windows)
    let generator = CounterGenerator(seed: seed, name: "stream offset")
    let slack = stride - windows * length
    let offset = slack > 0 ? generator.integer(UInt64(epoch), below: slack) : 0
    return cut(
      shard, (0..<batch).map { $0 * stride + offset + window * length },
      startsAfresh: window == 0)
  }
}

/// Windows of the packed documents in a random order that is new in every epoch.
public struct PackedBatches: BatchSource {
  public let batch, length: Int
  public let carriesState = false
  private let shard: TokenShard
  private let seed: UInt64
  private let windows: Int

  /// - Throws: when the text is too short for one row.
  public init(_ shard: TokenShard, batch: Int, length: Int, seed: UInt64) throws(TrainingError) {
    (self.shard, self.batch, self.length, self.seed) = (shard, batch, length, seed)
    windows = (shard.count - 1) / length
    guard windows >= 1 else {
      throw .data(
        path: shard.path, reason: "\(shard.count) tokens are too few for a row of \(length)")
    }
  }

  public func batch(_ number: Int) -> Batch {
    cut(
      shard,
      (0..<batch).map { row in
        let index = number * batch + row
        return place(index % windows, epoch: index / windows) * length
      }, startsAfresh: true)
  }

  /// A permutation of the windows without a table: a four-round Feistel network on the smallest
  /// even-width square that holds them, walked until it lands inside.
  private func place(_ index: Int, epoch: Int) -> Int {
    var bits = 1
    while 1 << (2 * bits) < windows { bits += 1 }
    let mask = (1 << bits) - 1
    var value = index
    repeat {
      var (left, right) = (value >> bits, value & mask)
      for round in 0..<4 {
        let generator = CounterGenerator(seed: seed, stream: UInt64(epoch * 4 + round))
        (left, right) = (right, left ^ (Int(generator.word(UInt64(right))) & mask))
      }
      value = left << bits | right
    } while value >= windows
    return value
  }
}
