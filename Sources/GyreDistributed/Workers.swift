#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// Starts this program several times, as the ranks of one run on this machine, and waits for them.
public enum Workers {
  /// Runs the program `count` times with the same arguments. When one rank fails the others notice by
  /// themselves.
  ///
  /// - Parameter shouldStop: asked all the time; a yes asks every rank to end (SIGTERM).
  /// - Throws: `configuration` when a process cannot be started.
  /// - Returns: exit statuses that are not 0 and the ranks that they came from, as they ended.
  public static func run(
    program: String, arguments: [String], count: Int, shouldStop: () -> Bool
  ) throws(GroupError) -> [(status: Int32, rank: Int)] {
    let place = "/tmp/gyre-\(getuid())-\(getpid())"
    defer { _ = unlink(place) }
    var all: [pid_t] = []
    for rank in 0..<count {
      let variables = [
        "GYRE_RANK=\(rank)", "GYRE_RANKS=\(count)", "GYRE_LOCAL_RANK=\(rank)",
        "\(RankEnvironment.meetingVariable)=\(place)",
      ]
      do throws(GroupError) { all.append(try start(program, arguments, variables)) } catch {
        for pid in all { kill(pid, SIGTERM) }
        throw error
      }
    }
    var isStopping = false
    var failures: [(status: Int32, rank: Int)] = []
    var left = Set(all)
    while !left.isEmpty {
      var status: Int32 = 0
      let pid = waitpid(-1, &status, WNOHANG)
      if pid < 0, errno != EINTR { break }
      if pid <= 0 {
        if !isStopping, shouldStop() {
          isStopping = true
          for pid in left { kill(pid, SIGTERM) }
        }
        usleep(20_000)
        continue
      }
      left.remove(pid)
      // As the shell has it: the exit code, or 128 and the signal.
      let code = status & 0x7f == 0 ? (status >> 8) & 0xff : 128 + (status & 0x7f)
      if code != 0 { failures.append((code, all.firstIndex(of: pid) ?? 0)) }
    }
    return failures
  }

  private static func start(
    _ program: String, _ arguments: [String], _ variables: [String]
  ) throws(GroupError) -> pid_t {
    let names = variables.map { $0.prefix { $0 != "=" } + "=" }
    var environment: [UnsafeMutablePointer<CChar>?] = variables.map { strdup($0) }
    var entry = environ
    while let text = entry.pointee {
      if !names.contains(where: { String(cString: text).hasPrefix($0) }) {
        environment.append(strdup(text))
      }
      entry += 1
    }
    environment.append(nil)
    var list: [UnsafeMutablePointer<CChar>?] = ([program] + arguments).map { strdup($0) } + [nil]
    defer { for text in environment + list { free(text) } }
    var pid: pid_t = 0
    // A group of its own: the terminal's interrupt goes to the starter alone, which passes it on once.
    var attributes = posix_spawnattr_t()
    _ = posix_spawnattr_init(&attributes)
    defer { _ = posix_spawnattr_destroy(&attributes) }
    _ = posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETPGROUP))
    let code = posix_spawn(&pid, program, nil, &attributes, &list, &environment)
    guard code == 0 else {
      throw .configuration("'\(program)' cannot be started: \(String(cString: strerror(code)))")
    }
    return pid
  }
}
