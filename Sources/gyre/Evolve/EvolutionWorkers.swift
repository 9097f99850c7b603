import GyreDistributed
import GyreEvolution
import GyrePlatform
import GyreTensors

/// The processes of `gyre evolve --workers N` and of `mpirun gyre evolve`.
enum EvolutionWorkers {
  /// Starts the processes of --workers and waits for them; false where this process is to do the work.
  static func launch(_ options: EvolveOptions) throws -> Bool {
    guard options.workers > 1, try RankEnvironment.current() == nil else { return false }
    try RankProcesses.run(options.workers, canLose: options.onFailure == .drop)
    return true
  }

  /// This process's device and the group that it belongs to; none for a process on its own.
  ///
  /// Cards exchange by NCCL, processors by MPI where `mpirun` started them and its library is found, else
  /// by sockets.
  static func join(
    _ options: DeviceOptions, workers: Int
  ) throws -> (device: any Device, group: (any WorkerGroup)?) {
    guard let place = try RankEnvironment.current() else { return (try options.open(), nil) }
    if workers > 1, workers != place.count {
      throw Failure(
        "--workers \(workers) among \(place.count) ranks: --workers and mpirun exclude each other")
    }
    let device = try RankProcesses.open(options, as: place, sharing: place.count)
    let isCard = device.id.name.hasPrefix("cuda")
    if !isCard, MPIGroup.isLaunched, let group = try? MPIGroup() { return (device, group) }
    let group = try RankGroup.join(rank: place.rank, count: place.count, at: place.place)
    do throws(DeviceError) {
      return (
        device,
        RankWorkers(
          group, communicator: try Communicators.gathering(group, device: device), device: device)
      )
    } catch {
      Terminal.note("rank \(place.rank): \(error); scores go through sockets")
      return (device, RankWorkers(group))
    }
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
}
