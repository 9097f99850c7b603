import FoundationEssentials

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// A program that scores texts, one JSON object a line on its standard input and output:
///
///     {"id": 7, "generation": 3, "member": 1, "prompt": "2+2=", "completion": "4"}
///     {"id": 7, "score": 1.0}
///
/// Answers may come in any order; every request gets one. A program that ends, writes something else or
/// is silent for longer than the timeout is started anew and asked again for what it owes; when that
/// fails `retries` times, the batch fails and nothing more.
public final class RewardProgram {
  public struct Request: Codable, Sendable {
    public var id: Int
    public var generation: Int
    public var member: Int
    public var prompt: String
    public var completion: String
  }
  private struct Answer: Decodable {
    var id: Int
    var score: Double
  }

  private let command: String
  private let timeout: Double
  private let retries: Int
  private var process: pid_t = 0
  private var input: Int32 = -1
  private var output: Int32 = -1
  private var unread: [UInt8] = []

  /// - Parameters:
  ///   - command: run by the shell.
  ///   - timeout: seconds without an answer.
  public init(command: String, timeout: Double = 60, retries: Int = 2) {
    self.command = command
    self.timeout = timeout
    self.retries = retries
    // A scorer that dies must be an error of a write, not a signal.
    signal(SIGPIPE, SIG_IGN)
  }

  deinit { stop() }

  /// The score of every request, in their order.
  ///
  /// - Throws: `reward` when the program fails more often than it may.
  public func scores(_ requests: [Request]) throws(EvolutionError) -> [Double] {
    var found: [Int: Double] = [:]
    var reason = ""
    for _ in 0...retries {
      let open = requests.filter { found[$0.id] == nil }
      if open.isEmpty { break }
      do throws(EvolutionError) {
        if process == 0 { try start() }
        try exchange(open, &found)
      } catch {
        reason = "\(error)"
        stop()
      }
    }
    return try requests.map { (request) throws(EvolutionError) in
      guard let score = found[request.id] else {
        throw .reward("the program '\(command)' gave no score: \(reason)")
      }
      return score
    }
  }

  /// Writes and reads at the same time, so that neither side waits for a full pipe.
  private func exchange(
    _ requests: [Request], _ found: inout [Int: Double]
  ) throws(EvolutionError) {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    var pending: [UInt8] = []
    for request in requests {
      guard let line = try? encoder.encode(request) else {
        throw .reward("request \(request.id) cannot be written as JSON")
      }
      pending += Array(line) + [10]
    }
    var sent = 0
    var owed = Set(requests.map(\.id))
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    while !owed.isEmpty {
      var descriptors = [pollfd(fd: output, events: Int16(POLLIN), revents: 0)]
      if sent < pending.count {
        descriptors.append(pollfd(fd: input, events: Int16(POLLOUT), revents: 0))
      }
      let ready = poll(&descriptors, nfds_t(descriptors.count), Int32(timeout * 1000))
      if ready < 0, errno == EINTR { continue }
      guard ready > 0 else { throw .reward("it was silent for \(timeout) s") }
      if descriptors.count > 1, descriptors[1].revents != 0 {
        let n = pending[sent...].withUnsafeBytes { write(input, $0.baseAddress, $0.count) }
        if n > 0 {
          sent += n
        } else if errno != EAGAIN && errno != EINTR {
          throw .reward("it stopped reading")
        }
      }
      guard descriptors[0].revents != 0 else { continue }
      let n = buffer.withUnsafeMutableBytes { read(output, $0.baseAddress, $0.count) }
      if n < 0, errno == EAGAIN || errno == EINTR { continue }
      guard n > 0 else { throw .reward("it ended") }
      unread += buffer[..<n]
      while let end = unread.firstIndex(of: 10) {
        let line = Data(unread[..<end])
        unread.removeSubrange(...end)
        if line.isEmpty { continue }
        guard let answer = try? JSONDecoder().decode(Answer.self, from: line) else {
          throw .reward(
            "it wrote '\(String(decoding: line.prefix(80), as: UTF8.self))' instead of "
              + "{\"id\": …, \"score\": …}")
        }
        guard owed.remove(answer.id) != nil else {
          throw .reward("it answered request \(answer.id), which was not asked")
        }
        guard answer.score.isFinite else { throw .reward("its score is not finite") }
        found[answer.id] = answer.score
      }
    }
  }

  private func start() throws(EvolutionError) {
    var toChild: [Int32] = [0, 0]
    var fromChild: [Int32] = [0, 0]
    guard pipe(&toChild) == 0, pipe(&fromChild) == 0 else {
      throw .reward("no pipe to '\(command)'")
    }
    for descriptor in toChild + fromChild { _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC) }
    #if canImport(Darwin)
      var actions: posix_spawn_file_actions_t?
    #else
      var actions = posix_spawn_file_actions_t()
    #endif
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_adddup2(&actions, toChild[0], 0)
    posix_spawn_file_actions_adddup2(&actions, fromChild[1], 1)
    var arguments: [UnsafeMutablePointer<CChar>?] = [
      strdup("/bin/sh"), strdup("-c"), strdup(command), nil,
    ]
    defer { for argument in arguments { free(argument) } }
    // A group of its own, so that what the shell started ends with it.
    #if canImport(Darwin)
      var attributes: posix_spawnattr_t?
    #else
      var attributes = posix_spawnattr_t()
    #endif
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETPGROUP))
    posix_spawnattr_setpgroup(&attributes, 0)
    let code = posix_spawn(&process, "/bin/sh", &actions, &attributes, &arguments, environ)
    close(toChild[0])
    close(fromChild[1])
    (input, output) = (toChild[1], fromChild[0])
    unread = []
    guard code == 0 else {
      process = 0
      stop()
      throw .reward("'\(command)' cannot be started: error \(code)")
    }
    _ = fcntl(input, F_SETFL, fcntl(input, F_GETFL) | O_NONBLOCK)
    _ = fcntl(output, F_SETFL, fcntl(output, F_GETFL) | O_NONBLOCK)
  }

  private func stop() {
    if input >= 0 { close(input) }
    if output >= 0 { close(output) }
    (input, output) = (-1, -1)
    if process > 0 {
      kill(-process, SIGKILL)
      var status: Int32 = 0
      while waitpid(process, &status, 0) < 0, errno == EINTR {}
      process = 0
    }
  }
}
