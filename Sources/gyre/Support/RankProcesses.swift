import ArgumentParser
import GyreDistributed
import GyrePlatform
import GyreTensors

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// The processes of this program that work as one run.
enum RankProcesses {
  /// Starts `count` of them with this one's arguments and waits for them.
  ///
  /// - Parameter canLose: whether the run is good as long as rank 0 ends well.
  /// - Throws: the exit status of the first that failed.
  static func run(_ count: Int, canLose: Bool) throws {
    Interrupts.install()
    let failures = try Workers.run(
      program: program, arguments: Array(CommandLine.arguments.dropFirst()), count: count,
      shouldStop: { Interrupts.isRequested })
    guard let first = failures.first else { return }
    Terminal.note("rank \(first.rank) ended with status \(first.status)")
    if canLose, !failures.contains(where: { $0.rank == 0 }) { return }
    throw ExitCode(first.status)
  }

  private static var program: String {
    var path = [CChar](repeating: 0, count: 4096)
    let n = readlink("/proc/self/exe", &path, 4095)
    guard n > 0 else { return CommandLine.arguments[0] }
    return String(decoding: path[..<n].map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// A rank's device: its own card, or its part of the processors that `count` ranks share.
  static func open(
    _ options: DeviceOptions, as place: RankEnvironment, sharing count: Int
  ) throws -> any Device {
    var options = options
    if options.device == "cuda" || options.device == "cuda:0" {
      options.device = "cuda:\(place.localRank)"
    } else if options.threads == nil, options.device.hasPrefix("cpu") {
      options.threads = max(1, Devices.threadCount / max(count, 1))
    }
    return try options.open()
  }
}
