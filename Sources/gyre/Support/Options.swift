import ArgumentParser
import GyreModels
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
}

/// How inference holds weights, as `--dtype` names it.
enum HeldWeights: String, ExpressibleByArgument, CaseIterable {
  case stored, f32, bf16
}

/// What to do as the original library's code does, although it is a fault there.
struct CompatibilityOptions: ParsableArguments {
  @Option(
    name: .customLong("compat"),
    help: ArgumentHelp(
      "Repeat a fault of the original library's code; may be given several times.",
      discussion: """
        fla_mom: flash-linear-attention's mixture of memories on a CPU, which sorts tokens unstably, so \
        that they see later ones. fla_mesa_net: MesaNet's solver of that library, which rounds to float16 \
        where it reads several tokens. By default models compute what their equations say.
        """))
  var faults: [Compatibility] = []
}

extension Compatibility: ExpressibleByArgument {}

/// How weights are held.
struct WeightOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "Matrices as they are stored, widened to f32, or in bf16.",
      discussion: """
        Stored matrices (bf16, f16, GGUF's quantised types) stay in the mapped file and are multiplied \
        as they are where the device can; quantised ones by activations rounded to int8 in runs of 32. \
        By default bf16, products too, on cuda, and as they are stored elsewhere.
        """))
  var dtype: HeldWeights?

  /// How matrices are held, and the precision of products.
  func choice(on device: any Device) -> (matrices: MatrixStorage, precision: ComputePrecision) {
    switch dtype ?? (device.storesBFloat16 ? .bf16 : .stored) {
    case .stored: (.stored, .float32)
    case .f32: (.float32, .float32)
    case .bf16: (.bfloat16, .bfloat16)
    }
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
