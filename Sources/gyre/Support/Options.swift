import ArgumentParser
import GyrePlatform
import GyreRecurrence
import GyreTensors

/// Where to compute.
struct DeviceOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Where to compute: cpu, cpu:avx2, …, cuda:0, reference.",
      discussion: "A name that does not exist lists those that do."))
  var device = "cpu"

  @Option(help: "Threads of the processor's kernels (default: all cores).")
  var threads: Int?

  func validate() throws {
    if let threads, threads < 1 { throw ValidationError("--threads must be positive") }
  }

  func open() throws(DeviceError) -> any Device {
    if let threads { Devices.threadCount = threads }
    CellTimes.current = CellTimesFile.read()
    return try Devices.open(device)
  }
}

/// The precision of matrix products, as `--dtype` names it.
enum Precision: String, ExpressibleByArgument, CaseIterable, Codable {
  case f32, bf16
  var compute: ComputePrecision { self == .f32 ? .float32 : .bfloat16 }

  /// What inference computes in where nothing is asked for: bf16 on devices that store it.
  static func inference(_ asked: Precision?, on device: any Device) -> Precision {
    asked ?? (device.storesBFloat16 ? .bf16 : .f32)
  }
}

/// The form of the recurrences, as `--form` names it.
enum FormName: String, ExpressibleByArgument, CaseIterable, Codable {
  case recurrent, chunkwise, parallel
  var form: SequenceForm {
    switch self {
    case .recurrent: .recurrent
    case .chunkwise: .chunkwise
    case .parallel: .parallel
    }
  }
}
