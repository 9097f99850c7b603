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
    try RankProcesses.run(devices, canLose: false)
    return true
  }

  /// Opens this process's device and meets the other ranks, where there are any.
  func open(_ options: DeviceOptions) throws -> (device: any Device, ranks: Ranks?) {
    guard let place = try RankEnvironment.current() else {
      if sequenceParts > 1 {
        throw ValidationError("--sequence-parts needs as many --devices, or mpirun or srun")
      }
      return (try options.open(), nil)
    }
    let device = try RankProcesses.open(options, as: place, sharing: devices ?? place.count)
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
