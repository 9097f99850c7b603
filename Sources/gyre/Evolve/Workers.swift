import GyreEvolution
import GyrePlatform
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// The processes of `gyre evolve --workers N`: this one starts the others with its own arguments.
enum Workers {
  /// "rank/count/path of the socket", for a process that another one started.
  private static let variable = "GYRE_WORKER"
  private static let children = Mutex<[pid_t]>([])

  /// The group that this process belongs to: MPI's, that of --workers, or none.
  static func join(_ count: Int) throws -> (any WorkerGroup)? {
    if let text = getenv(variable) {
      let parts = String(cString: text).split(separator: "/", maxSplits: 2)
      guard parts.count == 3, let rank = Int(parts[0]), let count = Int(parts[1]) else {
        throw Failure("\(variable) is not of a worker")
      }
      return try SocketGroup.follow(rank: rank, count: count, path: String(parts[2]))
    }
    if MPIGroup.isLaunched {
      if count > 1 { throw Failure("--workers and mpirun exclude each other") }
      return try MPIGroup()
    }
    guard count > 1 else { return nil }
    // Each gets its part of the processors, this process too.
    let threads = max(1, Devices.threadCount / count)
    Devices.threadCount = threads
    let path = "/tmp/gyre-\(getpid()).socket"
    for rank in 1..<count { try start(rank, count, path, threads: threads) }
    return try SocketGroup.lead(count: count, path: path)
  }

  /// What the leader names, in every process.
  static func shared(
    _ group: (any WorkerGroup)?, _ name: () throws -> String
  ) throws -> String {
    guard let group else { return try name() }
    return try group.share(group.isLeader ? try name() : "")
  }

  /// What the leader makes ready in files, which the others read afterwards.
  static func prepared<Value>(
    _ group: (any WorkerGroup)?, _ make: () throws -> Value, _ read: () throws -> Value
  ) throws -> Value {
    guard let group else { return try make() }
    if group.isLeader {
      let value = try make()
      _ = try group.share("")
      return value
    }
    _ = try group.share("")
    return try read()
  }

  /// Waits for the processes that this one started; where the run failed they are ended.
  static func finish(failed: Bool) {
    for child in children.withLock({ $0 }) {
      if failed { kill(child, SIGKILL) }
      var status: Int32 = 0
      while waitpid(child, &status, 0) < 0, errno == EINTR {}
    }
    children.withLock { $0 = [] }
  }

  private static func start(_ rank: Int, _ count: Int, _ path: String, threads: Int) throws {
    var words = CommandLine.arguments
    if !words.contains("--threads") { words += ["--threads", "\(threads)"] }
    var arguments = words.map { strdup($0) } + [nil]
    var environment: [UnsafeMutablePointer<CChar>?] = []
    var at = environ
    while let entry = at.pointee {
      environment.append(strdup(entry))
      at += 1
    }
    environment += [strdup("\(variable)=\(rank)/\(count)/\(path)"), nil]
    defer { for text in arguments + environment { free(text) } }
    var child: pid_t = 0
    #if canImport(Darwin)
      let program = words[0]
    #else
      let program = "/proc/self/exe"
    #endif
    let code = posix_spawn(&child, program, nil, nil, &arguments, environment)
    guard code == 0 else { throw Failure("worker \(rank) cannot be started: error \(code)") }
    children.withLock { $0.append(child) }
  }
}
