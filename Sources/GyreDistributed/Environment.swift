#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// This process's place in a run of several, from what `gyre`, `mpirun` or `srun` put into the
/// environment.
public struct RankEnvironment: Sendable, Equatable {
  public var rank: Int
  public var count: Int
  /// Place among the ranks of this machine: which device to take.
  public var localRank: Int
  public var place: RankGroup.Place

  /// Where ranks of one run were told to meet: a file, or HOST:PORT of rank 0.
  public static let meetingVariable = "GYRE_RENDEZVOUS"
  static let names: [(rank: String, count: String, local: String, job: [String])] = [
    ("GYRE_RANK", "GYRE_RANKS", "GYRE_LOCAL_RANK", []),
    (
      "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
      ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"]
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", ["PMI_ID", "HYDI_CONTROL_FD"]),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ["SLURM_JOB_ID"]),
  ]

  /// Nil for a process on its own.
  ///
  /// - Throws: `configuration` naming the variable that cannot be.
  public static func current() throws(GroupError) -> RankEnvironment? {
    try read { name in getenv(name).map { String(cString: $0) } }
  }

  static func read(_ value: (String) -> String?) throws(GroupError) -> RankEnvironment? {
    func number(_ name: String) throws(GroupError) -> Int? {
      guard let text = value(name) else { return nil }
      guard let number = Int(text), number >= 0 else {
        throw .configuration("\(name): must be a whole number, is '\(text)'")
      }
      return number
    }
    for set in names {
      guard let count = try number(set.count), count > 1 else { continue }
      // Inside a batch job that was not started by srun, nobody else runs.
      guard let rank = try number(set.rank) else { continue }
      guard rank < count else {
        throw .configuration("\(set.rank): must be below \(set.count) = \(count), is \(rank)")
      }
      return RankEnvironment(
        rank: rank, count: count, localRank: try number(set.local) ?? rank,
        place: try place(value, job: set.job.compactMap(value).first))
    }
    return nil
  }

  private static func place(
    _ value: (String) -> String?, job: String?
  ) throws(GroupError) -> RankGroup.Place {
    guard let given = value(meetingVariable) else {
      let safe = (job ?? "\(getppid())").map { $0.isLetter || $0.isNumber ? $0 : "-" }
      return .file("/tmp/gyre-\(getuid())-\(String(safe))")
    }
    if given.contains("/") { return .file(given) }
    let parts = given.split(separator: ":")
    guard parts.count == 2, let port = UInt16(parts[1]), port > 0 else {
      throw .configuration(
        "\(meetingVariable): must be HOST:PORT or a file's path, is '\(given)'")
    }
    return .address(host: String(parts[0]), port: port)
  }
}
