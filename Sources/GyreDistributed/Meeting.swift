#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// How ranks find each other. Everybody listens on a port of its own and tells rank 0, which sends the
/// table of ports to all; then each rank calls those before it.
///
/// A greeting is 32 bytes: a magic word, the run's word (from the file of the meeting), rank, count, port.
struct Meeting {
  let rank, count: Int
  let place: RankGroup.Place
  let seconds: Double
  private let start = ContinuousClock.now

  init(rank: Int, count: Int, place: RankGroup.Place, seconds: Double) {
    (self.rank, self.count, self.place, self.seconds) = (rank, count, place, seconds)
  }

  private var left: Double { seconds - (ContinuousClock.now - start) / .seconds(1) }

  private func failure(_ reason: String) -> GroupError {
    .rendezvous(place: place.description, reason: reason)
  }

  /// A connection a rank; nil at this one's own place.
  mutating func sockets() throws(GroupError) -> [Socket?] {
    try rank == 0 ? lead() : follow()
  }

  private func lead() throws(GroupError) -> [Socket?] {
    var isOpen = false
    var wanted: UInt16 = 0
    if case .address(_, let port) = place { (isOpen, wanted) = (true, port) }
    guard let (listener, port) = Socket.listen(port: wanted, isOpen: isOpen) else {
      throw failure("rank 0 cannot listen: \(Socket.reason)")
    }
    var word: UInt64 = 0
    if case .file(let path) = place {
      word = .random(in: 1...UInt64.max)
      try write("\(port) \(word)\n", to: path)
    }
    defer { if case .file(let path) = place { _ = unlink(path) } }
    var sockets = [Socket?](repeating: nil, count: count)
    var table = [UInt64](repeating: 0, count: count)
    while sockets.dropFirst().contains(where: { $0 == nil }) {
      let missing = (1..<count).filter { sockets[$0] == nil }
      guard left > 0, let (socket, host) = listener.accept(seconds: left) else {
        throw failure("\(missing.count) of \(count) ranks did not come, rank \(missing[0]) first")
      }
      // A stranger, or a rank of another run: hang up.
      guard let greeting = try? read(socket, 4), greeting[0] == Meeting.magic ^ word,
        greeting[2] == UInt64(count), let peer = Int(exactly: greeting[1]), peer > 0, peer < count,
        sockets[peer] == nil
      else { continue }
      sockets[peer] = socket
      table[peer] = UInt64(host) << 16 | (greeting[3] & 0xffff)
    }
    for peer in 1..<count {
      if let socket = sockets[peer] { try send(socket, peer, table) }
    }
    return sockets
  }

  private func follow() throws(GroupError) -> [Socket?] {
    var isOpen = false
    if case .address = place { isOpen = true }
    guard let (listener, port) = Socket.listen(port: 0, isOpen: isOpen) else {
      throw failure("rank \(rank) cannot listen: \(Socket.reason)")
    }
    var sockets = [Socket?](repeating: nil, count: count)
    let (leader, word) = try call()
    try send(leader, 0, greeting(word, port: port))
    let table: [UInt64]
    do { table = try read(leader, count) } catch {
      throw failure("rank 0 hung up on rank \(rank) of \(count); do all ranks count the same?")
    }
    sockets[0] = leader
    for peer in 1..<rank {
      guard
        let socket = Socket.connect(
          host: UInt32(truncatingIfNeeded: table[peer] >> 16),
          port: UInt16(truncatingIfNeeded: table[peer]))
      else { throw failure("rank \(rank) cannot reach rank \(peer): \(Socket.reason)") }
      try send(socket, peer, greeting(word, port: port))
      sockets[peer] = socket
    }
    while let missing = (rank + 1..<count).first(where: { sockets[$0] == nil }) {
      guard left > 0, let (socket, _) = listener.accept(seconds: left) else {
        throw failure("rank \(missing) did not reach rank \(rank)")
      }
      guard let greeting = try? read(socket, 4), greeting[0] == Meeting.magic ^ word,
        let peer = Int(exactly: greeting[1]), peer > rank, peer < count
      else { continue }
      sockets[peer] = socket
    }
    return sockets
  }

  /// Rank 0's socket and the run's word, as soon as it listens.
  private func call() throws(GroupError) -> (Socket, UInt64) {
    while left > 0 {
      switch place {
      case .address(let host, let port):
        guard let address = Socket.resolve(host) else { throw failure("no such host") }
        if let socket = Socket.connect(host: address, port: port) { return (socket, 0) }
      case .file(let path):
        if let (port, word) = note(path),
          let socket = Socket.connect(host: 0x7f00_0001, port: port)
        {
          return (socket, word)
        }
      }
      usleep(20_000)
    }
    throw failure("rank 0 was not there within \(Int(seconds)) s")
  }

  // MARK: - Words

  private static let magic: UInt64 = 0x6779_7265_2072_6e6b

  private func greeting(_ word: UInt64, port: UInt16) -> [UInt64] {
    [Meeting.magic ^ word, UInt64(rank), UInt64(count), UInt64(port)]
  }

  private func send(_ socket: Socket, _ peer: Int, _ words: [UInt64]) throws(GroupError) {
    var words = words
    try move(socket, peer, true, &words)
  }

  private func read(_ socket: Socket, _ count: Int) throws(GroupError) -> [UInt64] {
    var words = [UInt64](repeating: 0, count: count)
    try move(socket, 0, false, &words)
    return words
  }

  private func move(
    _ socket: Socket, _ peer: Int, _ isSend: Bool, _ words: inout [UInt64]
  ) throws(GroupError) {
    let wait = max(left, 0.001)
    let result: Result<Void, GroupError> = words.withUnsafeMutableBytes { bytes in
      do throws(GroupError) {
        return .success(
          try Transfer.run(
            [Transfer(socket: socket, peer: peer, isSend: isSend, rest: bytes)], seconds: wait))
      } catch { return .failure(error) }
    }
    try result.get()
  }

  // MARK: - The file

  private func write(_ text: String, to path: String) throws(GroupError) {
    // Whole or not at all: readers poll the name.
    let temporary = path + ".\(getpid())"
    let file = openFile(temporary)
    guard file >= 0 else { throw failure("\(temporary): \(Socket.reason)") }
    let bytes = Array(text.utf8)
    #if canImport(Glibc)
      let isWritten = Glibc.write(file, bytes, bytes.count) == bytes.count
    #elseif canImport(Musl)
      let isWritten = Musl.write(file, bytes, bytes.count) == bytes.count
    #else
      let isWritten = Darwin.write(file, bytes, bytes.count) == bytes.count
    #endif
    _ = close(file)
    guard isWritten, rename(temporary, path) == 0 else {
      throw failure("\(path): \(Socket.reason)")
    }
  }

  private func openFile(_ path: String) -> Int32 {
    open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
  }

  /// Port and word in a file of the meeting.
  private func note(_ path: String) -> (UInt16, UInt64)? {
    guard let file = fopen(path, "r") else { return nil }
    defer { fclose(file) }
    var buffer = [CChar](repeating: 0, count: 64)
    guard fgets(&buffer, 64, file) != nil else { return nil }
    let text = String(
      decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    let parts = text.split(whereSeparator: \.isWhitespace)
    guard parts.count == 2, let port = UInt16(parts[0]), let word = UInt64(parts[1]) else {
      return nil
    }
    return (port, word)
  }
}
