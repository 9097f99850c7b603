import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// The processes of a run, each connected with each by TCP: short messages, sums of host memory, and
/// the news that one of them ended.
public final class RankGroup: Sendable {
  public let rank: Int
  public let count: Int
  private let sockets: [Socket?]
  private let lock = Mutex(())

  init(rank: Int, sockets: [Socket?]) {
    self.rank = rank
    count = sockets.count
    self.sockets = sockets
  }

  /// Where ranks meet.
  public enum Place: Sendable, Equatable {
    /// All on this machine: rank 0 writes its port into a file.
    case file(String)
    /// Rank 0 listens on this port of its machine, which the others reach by this name.
    case address(host: String, port: UInt16)

    var description: String {
      switch self {
      case .file(let path): path
      case .address(let host, let port): "\(host):\(port)"
      }
    }
  }

  /// Meets the other ranks; returns when all are connected.
  ///
  /// - Parameter seconds: how long to wait for the others.
  /// - Throws: `rendezvous` when they do not come.
  public static func join(
    rank: Int, count: Int, at place: Place, seconds: Double = 120
  ) throws(GroupError) -> RankGroup {
    guard count >= 1, count <= 1 << 16, rank >= 0, rank < count else {
      throw .configuration("rank \(rank) of \(count): must be in 0..<count, count in 1...65536")
    }
    if count == 1 { return RankGroup(rank: 0, sockets: [nil]) }
    var meeting = Meeting(rank: rank, count: count, place: place, seconds: seconds)
    return RankGroup(rank: rank, sockets: try meeting.sockets())
  }

  private func socket(_ peer: Int) throws(GroupError) -> Socket {
    guard peer >= 0, peer < count, let socket = sockets[peer] else {
      throw .configuration("rank \(rank) of \(count) has no peer \(peer)")
    }
    return socket
  }

  /// Sends and receives at the same time.
  func exchange(
    sends: [(peer: Int, bytes: UnsafeRawBufferPointer)],
    receives: [(peer: Int, bytes: UnsafeMutableRawBufferPointer)]
  ) throws(GroupError) {
    var transfers: [Transfer] = []
    for (peer, bytes) in sends {
      transfers.append(
        Transfer(
          socket: try socket(peer), peer: peer, isSend: true,
          rest: UnsafeMutableRawBufferPointer(mutating: bytes)))
    }
    for (peer, bytes) in receives {
      transfers.append(Transfer(socket: try socket(peer), peer: peer, isSend: false, rest: bytes))
    }
    let result: Result<Void, GroupError> = lock.withLock { _ in
      do throws(GroupError) { return .success(try Transfer.run(transfers)) } catch {
        return .failure(error)
      }
    }
    try result.get()
  }

  /// Sends bytes with their number before them.
  public func send(_ message: [UInt8], to peer: Int) throws(GroupError) {
    let framed = RankGroup.frame(message)
    let result: Result<Void, GroupError> = framed.withUnsafeBytes { bytes in
      do throws(GroupError) {
        return .success(try exchange(sends: [(peer, bytes)], receives: []))
      } catch { return .failure(error) }
    }
    try result.get()
  }

  /// The next message of a rank.
  public func receive(from peer: Int) throws(GroupError) -> [UInt8] {
    let header = try read(8, from: peer)
    let size = RankGroup.size(header)
    guard size <= RankGroup.largest else {
      throw .lost(rank: peer, reason: "it announced a message of \(size) bytes")
    }
    return try read(size, from: peer)
  }

  /// Every rank's message, in their order, on every rank.
  public func gather(_ message: [UInt8]) throws(GroupError) -> [[UInt8]] {
    for peer in 0..<count where peer != rank { try send(message, to: peer) }
    var all: [[UInt8]] = []
    for peer in 0..<count { all.append(peer == rank ? message : try receive(from: peer)) }
    return all
  }

  /// Rank 0's message on every rank.
  public func broadcast(_ message: [UInt8]) throws(GroupError) -> [UInt8] {
    guard rank == 0 else { return try receive(from: 0) }
    for peer in 1..<count { try send(message, to: peer) }
    return message
  }

  /// Waits until every rank is here.
  public func barrier() throws(GroupError) { _ = try gather([]) }

  /// The first rank whose connection has closed; nil while all live. Cheap, from any thread.
  public func firstLost() -> Int? {
    sockets.indices.first { sockets[$0]?.isClosed ?? false }
  }

  private static let largest = 1 << 31

  private static func frame(_ message: [UInt8]) -> [UInt8] {
    (0..<8).map { UInt8(truncatingIfNeeded: message.count >> (8 * $0)) } + message
  }

  private static func size(_ header: [UInt8]) -> Int {
    header.enumerated().reduce(0) { $0 | Int(truncatingIfNeeded: UInt64($1.1) << (8 * $1.0)) }
      & Int.max
  }

  private func read(_ count: Int, from peer: Int) throws(GroupError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    let result: Result<Void, GroupError> = bytes.withUnsafeMutableBytes { buffer in
      do throws(GroupError) {
        return .success(try exchange(sends: [], receives: [(peer, buffer)]))
      } catch { return .failure(error) }
    }
    try result.get()
    return bytes
  }
}
