#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// The ranks of `mpirun`, through whichever MPI library the machine has. It is opened at run time; the two
/// families differ in what a communicator is: an address in Open MPI, a number in MPICH and its kin.
///
/// MPI ends all ranks when one dies, so that ranks are never dropped.
public final class MPIGroup: WorkerGroup {
  public let rank: Int
  public let ranks: [Int]
  private let library: Library

  /// What environments of MPI launchers say of the number of ranks.
  private static let launchers = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"]

  /// Whether `mpirun` or `mpiexec` started this process with others.
  public static var isLaunched: Bool {
    launchers.contains { name in
      guard let text = getenv(name), let count = Int(String(cString: text)) else { return false }
      return count > 1
    }
  }

  /// - Throws: `worker` where no MPI library can be opened or it fails.
  public init() throws(EvolutionError) {
    library = try Library()
    try library.check(library.initialize(nil, nil), "MPI_Init")
    var (rank, count): (Int32, Int32) = (0, 0)
    try library.check(library.rank(library.world, &rank), "MPI_Comm_rank")
    try library.check(library.size(library.world, &count), "MPI_Comm_size")
    self.rank = Int(rank)
    ranks = Array(0..<Int(count))
  }

  deinit { _ = library.finalize() }

  public var bytesPerSecond: Double { 3e9 }

  public func gather(_ bytes: [UInt8]) throws(EvolutionError) -> [[UInt8]] {
    let counts = try WorkerMessage.lengths(bytes.count) { part throws(EvolutionError) in
      try exchange(part)
    }
    // Parts of equal length, the longest's.
    let length = max(counts.max() ?? 0, 1)
    let all = try exchange(bytes + [UInt8](repeating: 0, count: length - bytes.count))
    return zip(all, counts).map { Array($0.prefix($1)) }
  }

  private func exchange(_ bytes: [UInt8]) throws(EvolutionError) -> [[UInt8]] {
    guard bytes.count <= Int(Int32.max) else {
      throw .worker(ranks: [rank], reason: "has \(bytes.count) bytes to send, more than MPI takes")
    }
    var all = [UInt8](repeating: 0, count: bytes.count * ranks.count)
    let length = Int32(bytes.count)
    let code = bytes.withUnsafeBytes { from in
      all.withUnsafeMutableBytes { to in
        library.allgather(
          from.baseAddress, length, library.byte, to.baseAddress, length, library.byte,
          library.world)
      }
    }
    try library.check(code, "MPI_Allgather")
    return ranks.map { Array(all[$0 * bytes.count..<($0 + 1) * bytes.count]) }
  }

  /// The functions of an MPI library. A handle is an address or a number of 32 bits: both are passed in
  /// the low part of a register.
  private struct Library {
    typealias Handle = UInt
    typealias Initialize =
      @convention(c) (UnsafeMutableRawPointer?, UnsafeMutableRawPointer?) ->
      Int32
    typealias Ask = @convention(c) (Handle, UnsafeMutablePointer<Int32>) -> Int32
    typealias Gather =
      @convention(c) (
        UnsafeRawPointer?, Int32, Handle, UnsafeMutableRawPointer?, Int32, Handle, Handle
      ) -> Int32
    typealias Finish = @convention(c) () -> Int32

    let initialize: Initialize
    let rank, size: Ask
    let allgather: Gather
    let finalize: Finish
    let world, byte: Handle

    static let names = [
      "libmpi.so.40", "libmpi.so.12", "libmpich.so.12", "libmpi.so", "libmpich.so", "libmpi.dylib",
    ]

    init() throws(EvolutionError) {
      var names = Library.names
      if let own = getenv("GYRE_MPI") { names.insert(String(cString: own), at: 0) }
      // Open MPI's components look for its symbols among those of all libraries.
      guard let handle = names.lazy.compactMap({ dlopen($0, RTLD_NOW | RTLD_GLOBAL) }).first else {
        throw .worker(
          ranks: [],
          reason:
            "no MPI library was found among \(names.joined(separator: ", ")): set GYRE_MPI to "
            + "its path, or use --workers")
      }
      func function<F>(_ name: String, _: F.Type) throws(EvolutionError) -> F {
        guard let address = dlsym(handle, name) else {
          throw .worker(ranks: [], reason: "the MPI library has no function \(name)")
        }
        return unsafeBitCast(address, to: F.self)
      }
      initialize = try function("MPI_Init", Initialize.self)
      rank = try function("MPI_Comm_rank", Ask.self)
      size = try function("MPI_Comm_size", Ask.self)
      allgather = try function("MPI_Allgather", Gather.self)
      finalize = try function("MPI_Finalize", Finish.self)
      if let world = dlsym(handle, "ompi_mpi_comm_world"), let byte = dlsym(handle, "ompi_mpi_byte")
      {
        (self.world, self.byte) = (UInt(bitPattern: world), UInt(bitPattern: byte))
      } else {
        // The common binary interface of MPICH: MPI_COMM_WORLD and MPI_BYTE.
        (world, byte) = (0x4400_0000, 0x4c00_010d)
      }
    }

    func check(_ code: Int32, _ name: String) throws(EvolutionError) {
      if code != 0 { throw .worker(ranks: [], reason: "\(name) failed with error \(code)") }
    }
  }
}
