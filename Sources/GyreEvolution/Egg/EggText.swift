import GyreTensors
import GyreTraining

/// The bytes that a population reads: every document after a byte 0, cut into equal streams.
///
/// Window u of a stream goes on where window u − 1 ended; an epoch begins at a random offset.
struct EggText: Sendable {
  private let bytes: [UInt8]
  let streams: Int
  private let tokens: Int
  private let seed: UInt64
  private let stride: Int
  /// Windows of an epoch.
  private let windows: Int

  /// - Throws: `data` when the text is too short for one window of every stream.
  init(
    _ shard: TokenShard, streams: Int, tokens: Int, seed: UInt64
  ) throws(TrainingError) {
    bytes = EggText.bytes(shard)
    self.streams = streams
    self.tokens = tokens
    self.seed = seed
    stride = bytes.count / streams
    windows = stride / tokens
    guard windows >= 1 else {
      throw .data(
        path: shard.path,
        reason: "\(bytes.count) bytes are too few for \(streams) streams of \(tokens); use fewer "
          + "--streams or --tokens")
    }
  }

  static func bytes(_ shard: TokenShard) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(shard.count + shard.documents.count)
    let tokens = shard.tokens(0..<shard.count)
    var next = shard.documents[...]
    for (i, token) in tokens.enumerated() {
      while next.first == i {
        bytes.append(0)
        next.removeFirst()
      }
      bytes.append(UInt8(truncatingIfNeeded: token))
    }
    return bytes
  }

  /// Row after row of `tokens` + 1 bytes, and whether states begin anew.
  func window(_ number: Int) -> (bytes: [UInt8], startsAfresh: Bool) {
    let (epoch, window) = (number / windows, number % windows)
    let offset =
      epoch == 0
      ? 0
      : CounterGenerator(seed: seed, name: "stream offset").integer(
        UInt64(epoch), below: bytes.count)
    var rows: [UInt8] = []
    rows.reserveCapacity(streams * (tokens + 1))
    for row in 0..<streams {
      var at = (row * stride + offset + window * tokens) % bytes.count
      for _ in 0...tokens {
        rows.append(bytes[at])
        at = at + 1 == bytes.count ? 0 : at + 1
      }
    }
    return (rows, window == 0)
  }
}
