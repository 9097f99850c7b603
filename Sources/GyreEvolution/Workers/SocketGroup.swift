#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// Processes of one machine, joined by a socket in the file system. The leader reads what each rank sends
/// and sends all of it to each; a rank whose connection ends is lost.
public final class SocketGroup: WorkerGroup {
  public let rank: Int
  public private(set) var ranks: [Int]
  /// Of the leader: the connection of each rank; of others: that to the leader.
  private var connections: [Int: Int32] = [:]
  private let path: String

  /// Waits for the other ranks.
  ///
  /// - Throws: `worker` naming the ranks that do not come within `timeout` seconds.
  public static func lead(
    count: Int, path: String, timeout: Double = 60
  ) throws(EvolutionError) -> SocketGroup {
    let group = SocketGroup(rank: 0, count: count, path: path)
    let listener = try group.open { socket, address, size in
      unlink(path)
      return bind(socket, address, size) == 0 && listen(socket, Int32(count)) == 0
    }
    defer {
      close(listener)
      unlink(path)
    }
    while group.connections.count < count - 1 {
      var descriptor = [pollfd(fd: listener, events: Int16(POLLIN), revents: 0)]
      let ready = poll(&descriptor, 1, Int32(timeout * 1000))
      if ready < 0, errno == EINTR { continue }
      guard ready > 0 else {
        let absent = (1..<count).filter { group.connections[$0] == nil }
        throw .worker(ranks: absent, reason: "did not start within \(Int(timeout)) s")
      }
      let connection = accept(listener, nil, nil)
      guard connection >= 0, let name = receive(connection), name.count == 8 else { continue }
      var message = WorkerMessage(name)
      group.connections[try message.readInteger()] = connection
    }
    return group
  }

  /// Joins the leader at `path`.
  public static func follow(
    rank: Int, count: Int, path: String, timeout: Double = 60
  ) throws(EvolutionError) -> SocketGroup {
    let group = SocketGroup(rank: rank, count: count, path: path)
    var left = Int(timeout * 50)
    while true {
      do {
        group.connections[0] = try group.open { connect($0, $1, $2) == 0 }
        break
      } catch {
        left -= 1
        guard left > 0 else { throw error }
        usleep(20_000)
      }
    }
    var name = WorkerMessage()
    name.write(rank)
    _ = send(group.connections[0] ?? -1, name.bytes)
    return group
  }

  private init(rank: Int, count: Int, path: String) {
    self.rank = rank
    self.path = path
    ranks = Array(0..<count)
    // A worker that ends must be an error of a write, not a signal.
    signal(SIGPIPE, SIG_IGN)
  }

  deinit { for connection in connections.values { close(connection) } }

  public func gather(_ bytes: [UInt8]) throws(EvolutionError) -> [[UInt8]] {
    rank == 0 ? try lead(bytes) : try follow(bytes)
  }

  private func lead(_ bytes: [UInt8]) throws(EvolutionError) -> [[UInt8]] {
    var all: [[UInt8]] = []
    var lost: [Int] = []
    for other in ranks {
      if other == 0 {
        all.append(bytes)
      } else if let connection = connections[other], let sent = SocketGroup.receive(connection) {
        all.append(sent)
      } else {
        lost.append(other)
      }
    }
    ranks.removeAll { lost.contains($0) }
    for other in lost { connections.removeValue(forKey: other).map { _ = close($0) } }
    var answer = WorkerMessage()
    answer.write(lost.count)
    for other in lost { answer.write(other) }
    if lost.isEmpty { for part in all { answer.write(part) } }
    // One that does not take the answer is found missing the next time.
    for connection in connections.values { _ = SocketGroup.send(connection, answer.bytes) }
    guard lost.isEmpty else { throw .worker(ranks: lost, reason: "ended") }
    return all
  }

  private func follow(_ bytes: [UInt8]) throws(EvolutionError) -> [[UInt8]] {
    guard let leader = connections[0], SocketGroup.send(leader, bytes),
      let received = SocketGroup.receive(leader)
    else { throw .worker(ranks: [0], reason: "ended") }
    var answer = WorkerMessage(received)
    let count = try answer.readInteger()
    guard count == 0 else {
      var lost: [Int] = []
      for _ in 0..<count { lost.append(try answer.readInteger()) }
      ranks.removeAll { lost.contains($0) }
      throw .worker(ranks: lost, reason: "ended")
    }
    var all: [[UInt8]] = []
    for _ in ranks { all.append(try answer.readBytes()) }
    return all
  }

  // MARK: - Sockets

  private func open(
    _ use: (Int32, UnsafePointer<sockaddr>, socklen_t) -> Bool
  ) throws(EvolutionError) -> Int32 {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let room = MemoryLayout.size(ofValue: address.sun_path)
    guard path.utf8.count < room else {
      throw .file(path: path, reason: "is longer than a socket's name may be, \(room - 1) bytes")
    }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
    #if canImport(Glibc)
      let kind = Int32(SOCK_STREAM.rawValue)
    #else
      let kind = Int32(SOCK_STREAM)
    #endif
    let descriptor = socket(AF_UNIX, kind, 0)
    guard descriptor >= 0 else { throw .file(path: path, reason: "no socket: error \(errno)") }
    _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
    let done = withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        use(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard done else {
      let code = errno
      close(descriptor)
      throw .file(path: path, reason: "the workers' socket cannot be used: error \(code)")
    }
    return descriptor
  }

  private static func send(_ connection: Int32, _ bytes: [UInt8]) -> Bool {
    var framed = WorkerMessage()
    framed.write(bytes)
    return framed.bytes.withUnsafeBytes { all in
      var sent = 0
      while sent < all.count {
        let n = write(connection, all.baseAddress.map { $0 + sent }, all.count - sent)
        if n < 0, errno == EINTR { continue }
        if n <= 0 { return false }
        sent += n
      }
      return true
    }
  }

  private static func receive(_ connection: Int32) -> [UInt8]? {
    func some(_ count: Int) -> [UInt8]? {
      var bytes = [UInt8](repeating: 0, count: count)
      let isWhole = bytes.withUnsafeMutableBytes { all in
        var got = 0
        while got < count {
          let n = read(connection, all.baseAddress.map { $0 + got }, count - got)
          if n < 0, errno == EINTR { continue }
          if n <= 0 { return false }
          got += n
        }
        return true
      }
      return isWhole ? bytes : nil
    }
    guard let head = some(8) else { return nil }
    var message = WorkerMessage(head)
    guard let count = try? message.readInteger(), count >= 0, count < 1 << 40 else { return nil }
    return some(count)
  }
}
