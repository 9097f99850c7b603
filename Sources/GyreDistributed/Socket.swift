// POSIX sockets with typed errors. Nothing here knows ranks.

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// A TCP connection or listener; closed when nothing refers to it.
final class Socket: Sendable {
  let raw: Int32
  init(raw: Int32) { self.raw = raw }
  deinit { _ = close(raw) }

  /// What the last failed call said.
  static var reason: String { String(cString: strerror(errno)) }

  private static func make() -> Int32 {
    #if canImport(Glibc)
      socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    #else
      socket(AF_INET, SOCK_STREAM, 0)
    #endif
  }

  /// Two ends of one connection inside this process.
  static func pair() -> (Socket, Socket)? {
    var ends: [Int32] = [0, 0]
    #if canImport(Glibc)
      let code = socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends)
    #else
      let code = socketpair(AF_UNIX, SOCK_STREAM, 0, &ends)
    #endif
    guard code == 0 else { return nil }
    let pair = (Socket(raw: ends[0]), Socket(raw: ends[1]))
    pair.0.prepare()
    pair.1.prepare()
    return pair
  }

  /// Options of a connection: no delay for short messages, probes that notice a dead machine, and no
  /// waiting in reads and writes.
  private func prepare() {
    var on: Int32 = 1
    let size = socklen_t(MemoryLayout<Int32>.size)
    _ = setsockopt(raw, Int32(IPPROTO_TCP), TCP_NODELAY, &on, size)
    _ = setsockopt(raw, SOL_SOCKET, SO_KEEPALIVE, &on, size)
    #if !canImport(Darwin)
      for (option, value) in [(TCP_KEEPIDLE, 10), (TCP_KEEPINTVL, 5), (TCP_KEEPCNT, 4)] {
        var value = Int32(value)
        _ = setsockopt(raw, Int32(IPPROTO_TCP), Int32(option), &value, size)
      }
    #endif
    _ = fcntl(raw, F_SETFL, fcntl(raw, F_GETFL) | O_NONBLOCK)
    _ = fcntl(raw, F_SETFD, FD_CLOEXEC)
  }

  /// Listens on a port, 0 for a free one; on this machine only unless `isOpen`.
  static func listen(port: UInt16, isOpen: Bool) -> (socket: Socket, port: UInt16)? {
    let raw = make()
    guard raw >= 0 else { return nil }
    let socket = Socket(raw: raw)
    _ = fcntl(raw, F_SETFD, FD_CLOEXEC)
    var on: Int32 = 1
    _ = setsockopt(raw, SOL_SOCKET, SO_REUSEADDR, &on, socklen_t(MemoryLayout<Int32>.size))
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = (isOpen ? INADDR_ANY : UInt32(0x7f00_0001)).bigEndian
    var size = socklen_t(MemoryLayout<sockaddr_in>.size)
    let isBound = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(raw, $0, size) == 0 }
    }
    #if canImport(Glibc)
      guard isBound, Glibc.listen(raw, 128) == 0 else { return nil }
    #elseif canImport(Musl)
      guard isBound, Musl.listen(raw, 128) == 0 else { return nil }
    #else
      guard isBound, Darwin.listen(raw, 128) == 0 else { return nil }
    #endif
    _ = withUnsafeMutablePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(raw, $0, &size) }
    }
    return (socket, UInt16(bigEndian: address.sin_port))
  }

  /// The next connection and the caller's IPv4 address; nil after `seconds`.
  func accept(seconds: Double) -> (socket: Socket, host: UInt32)? {
    var wait = pollfd(fd: raw, events: Int16(POLLIN), revents: 0)
    guard poll(&wait, 1, Int32(max(0, seconds) * 1000)) > 0 else { return nil }
    var address = sockaddr_in()
    var size = socklen_t(MemoryLayout<sockaddr_in>.size)
    let accepted = withUnsafeMutablePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { pointer in
        #if canImport(Glibc)
          Glibc.accept(raw, pointer, &size)
        #elseif canImport(Musl)
          Musl.accept(raw, pointer, &size)
        #else
          Darwin.accept(raw, pointer, &size)
        #endif
      }
    }
    guard accepted >= 0 else { return nil }
    let socket = Socket(raw: accepted)
    socket.prepare()
    return (socket, UInt32(bigEndian: address.sin_addr.s_addr))
  }

  /// Connects once; nil when nobody listens.
  static func connect(host: UInt32, port: UInt16) -> Socket? {
    let raw = make()
    guard raw >= 0 else { return nil }
    let socket = Socket(raw: raw)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = host.bigEndian
    let code = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { pointer in
        let size = socklen_t(MemoryLayout<sockaddr_in>.size)
        #if canImport(Glibc)
          return Glibc.connect(raw, pointer, size)
        #elseif canImport(Musl)
          return Musl.connect(raw, pointer, size)
        #else
          return Darwin.connect(raw, pointer, size)
        #endif
      }
    }
    guard code == 0 else { return nil }
    socket.prepare()
    return socket
  }

  /// The IPv4 address of a host's name.
  static func resolve(_ host: String) -> UInt32? {
    var hints = addrinfo()
    hints.ai_family = AF_INET
    var list: UnsafeMutablePointer<addrinfo>?
    guard getaddrinfo(host, nil, &hints, &list) == 0, let found = list else { return nil }
    defer { freeaddrinfo(list) }
    guard let address = found.pointee.ai_addr else { return nil }
    return address.withMemoryRebound(to: sockaddr_in.self, capacity: 1) {
      UInt32(bigEndian: $0.pointee.sin_addr.s_addr)
    }
  }

  /// Whether the other side has closed and everything that it sent was read.
  var isClosed: Bool {
    var byte: UInt8 = 0
    let n = recv(raw, &byte, 1, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT))
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
  }
}

/// Bytes on their way through a socket.
struct Transfer {
  let socket: Socket
  let peer: Int
  let isSend: Bool
  var rest: UnsafeMutableRawBufferPointer

  /// Moves what can be moved now; false when the other side is gone.
  mutating func advance() -> Bool {
    while rest.count > 0 {
      let n =
        isSend
        ? Int(send(socket.raw, rest.baseAddress, rest.count, Transfer.noSignal))
        : Int(recv(socket.raw, rest.baseAddress, rest.count, 0))
      if n > 0 {
        rest = UnsafeMutableRawBufferPointer(rebasing: rest[n...])
        continue
      }
      if n < 0, errno == EINTR { continue }
      return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)
    }
    return true
  }

  #if canImport(Darwin)
    private static let noSignal: Int32 = 0
  #else
    private static let noSignal = Int32(MSG_NOSIGNAL)
  #endif

  /// Moves all transfers at the same time, so that nobody waits for a full buffer.
  ///
  /// - Parameter seconds: how long nothing may move; nil for ever.
  /// - Throws: `lost` with the rank whose side ended or was silent.
  static func run(_ transfers: [Transfer], seconds: Double? = nil) throws(GroupError) {
    var open = transfers.filter { $0.rest.count > 0 }
    while !open.isEmpty {
      for i in open.indices {
        guard open[i].advance() else {
          throw .lost(rank: open[i].peer, reason: "its connection closed")
        }
      }
      open.removeAll { $0.rest.count == 0 }
      if open.isEmpty { return }
      var waits = open.map {
        pollfd(fd: $0.socket.raw, events: Int16($0.isSend ? POLLOUT : POLLIN), revents: 0)
      }
      let ready = poll(&waits, nfds_t(waits.count), seconds.map { Int32($0 * 1000) } ?? -1)
      if ready == 0, let first = open.first {
        throw .lost(rank: first.peer, reason: "it was silent for \(seconds ?? 0) s")
      }
    }
  }
}
