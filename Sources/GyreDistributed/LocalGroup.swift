import Dispatch
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

extension RankGroup {
  /// Runs `body` as every rank of a group, on threads of this process, and returns what they gave in the
  /// order of the ranks. A rank's connections close when its body returns.
  ///
  /// - Throws: what the first rank that failed threw.
  public static func local<R: Sendable>(
    count: Int, _ body: @escaping @Sendable (RankGroup) throws -> R
  ) throws -> [R] {
    try outcomes(count: count, body).map { try $0.get() }
  }

  /// The same with the failures of ranks as values.
  public static func outcomes<R: Sendable>(
    count: Int, _ body: @escaping @Sendable (RankGroup) throws -> R
  ) throws(GroupError) -> [Result<R, any Error>] {
    var sockets = [[Socket?]](repeating: [Socket?](repeating: nil, count: count), count: count)
    for a in 0..<count {
      for b in 0..<a {
        guard let pair = Socket.pair() else {
          throw .rendezvous(place: "this process", reason: Socket.reason)
        }
        (sockets[a][b], sockets[b][a]) = pair
      }
    }
    let results = Mutex([Result<R, any Error>?](repeating: nil, count: count))
    let done = DispatchGroup()
    for rank in 0..<count {
      let own = sockets[rank]
      // A queue of its own is a thread of its own: ranks wait for each other.
      DispatchQueue(label: "rank \(rank)").async(group: done) {
        let result = Result { try body(RankGroup(rank: rank, sockets: own)) }
        results.withLock { $0[rank] = result }
      }
    }
    sockets = []
    done.wait()
    return results.withLock { $0.compactMap(\.self) }
  }
}
