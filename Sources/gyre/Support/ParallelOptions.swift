import ArgumentParser
import GyreDistributed
import GyrePlatform
import GyreTensors
import GyreTraining

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// How many devices work together, and this process's place among them.
struct ParallelOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Devices of this machine that train together.",
      discussion: """
        One process each, started by this one; mpirun and srun do the same over several machines. Rows \
        of the batch are shared out.
        """))
  var devices: Int?

  @Option(
    help: ArgumentHelp(
      "Parts that a row is cut into, a device each.",
      discussion: "For rows longer than one device's memory; must divide --devices."))
  var sequenceParts = 1

  func validate() throws {
    if let devices, !(1...1024).contains(devices) {
      throw ValidationError("--devices must be in 1...1024")
    }
    if sequenceParts < 1 { throw ValidationError("--sequence-parts must be positive") }
  }

  /// Starts the processes of a run and waits for them; false where this process is to do the work.
  func launch() throws -> Bool {
    guard let devices, devices > 1, try RankEnvironment.current() == nil else { return false }
    Interrupts.install()
    let ended = try Workers.run(
      program: ParallelOptions.program, arguments: Array(CommandLine.arguments.dropFirst()),
      count: devices, shouldStop: { Interrupts.isRequested })
    if let ended {
      Terminal.note("rank \(ended.rank) ended with status \(ended.status)")
      throw ExitCode(ended.status)
    }
    return true
  }

  private static var program: String {
    var path = [CChar](repeating: 0, count: 4096)
    let n = readlink("/proc/self/exe", &path, 4095)
    guard n > 0 else { return CommandLine.arguments[0] }
    return String(decoding: path[..<n].map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// Opens this process's device and meets the other ranks, where there are any.
  func open(_ options: DeviceOptions) throws -> (device: any Device, ranks: Ranks?) {
    guard let place = try RankEnvironment.current() else {
      if sequenceParts > 1 {
        throw ValidationError("--sequence-parts needs as many --devices, or mpirun or srun")
      }
      return (try options.open(), nil)
    }
    var options = options
    if options.device == "cuda" || options.device == "cuda:0" {
      options.device = "cuda:\(place.localRank)"
    } else if options.threads == nil, options.device.hasPrefix("cpu") {
      options.threads = max(1, Devices.threadCount / (devices ?? place.count))
    }
    let device = try options.open()
    let group = try RankGroup.join(rank: place.rank, count: place.count, at: place.place)
    let communicator = try Communicators.make(group, device: device)
    return (
      device, Ranks(group: group, parallel: try Parallelism(communicator, parts: sequenceParts))
    )
  }
}

/// This process among the ranks of a run.
struct Ranks {
  let group: RankGroup
  let parallel: Parallelism
}
