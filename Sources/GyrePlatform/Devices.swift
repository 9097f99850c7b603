import GyreCPU
import GyreCUDA
import GyreTensors

/// The devices of this machine: the only place that knows which backends exist.
public enum Devices {
  /// Names that `open` takes on this machine, the default first.
  public static var available: [DeviceID] {
    ["cpu"]
      + CPUDevice.Level.allCases.filter(\.isAvailable).map { DeviceID("cpu:\($0.rawValue)") }
      + (0..<CUDADevice.count).map { DeviceID("cuda:\($0)") } + ["reference"]
  }

  /// The device of that name: `cpu` (the best level of the processor), `cpu:avx2` and the like,
  /// `cuda:0` and the like (NVIDIA's cards; `cuda` is the first), or `reference` (the definitions in
  /// double precision, slowly).
  ///
  /// - Throws: `unavailable`, with what there is or what is missing.
  public static func open(_ name: String) throws(DeviceError) -> any Device {
    switch name {
    case "reference": return ReferenceDevice()
    case "cpu": return try CPUDevice()
    case "cuda": return try CUDADevice(index: 0)
    default:
      if name.hasPrefix("cuda:"), let index = Int(name.dropFirst(5)) {
        return try CUDADevice(index: index)
      }
      guard name.hasPrefix("cpu:"),
        let level = CPUDevice.Level(rawValue: String(name.dropFirst(4))), level.isAvailable
      else {
        let known = available.map(\.name).joined(separator: ", ")
        throw .unavailable(device: name, reason: "this machine has \(known)")
      }
      return try CPUDevice(level: level)
    }
  }

  /// What runs behind a device name, for reports: `cpu` gives its level.
  public static func detail(of device: any Device) -> String {
    if let card = device as? CUDADevice { return "\(card.id), \(card.name), \(card.versions)" }
    guard let cpu = device as? CPUDevice else { return device.id.name }
    return "cpu:\(cpu.level.rawValue), \(threadCount) thread\(threadCount == 1 ? "" : "s")"
  }

  /// Whether bfloat16 products are faster than float32 ones on a device.
  public static func hasFastBFloat16(_ device: any Device) -> Bool {
    device is CUDADevice || (device as? CPUDevice)?.hasFastBFloat16 ?? false
  }

  /// Launches that ran the definition on the host for want of a kernel, by op and shapes: what was
  /// slow.
  public static func referenceLaunches(of device: any Device) -> [String: Int] {
    (device as? CPUDevice)?.referenceLaunches ?? (device as? CUDADevice)?.referenceLaunches ?? [:]
  }

  /// Milliseconds and launches of each kernel while `body` runs, after all work before it; nil for
  /// devices that do not measure kernels. Events between kernels keep them from overlapping.
  public static func profile(
    _ device: any Device, _ body: () throws -> Void
  ) throws -> [String: (milliseconds: Double, launches: Int)]? {
    guard let card = device as? CUDADevice else { return nil }
    try card.synchronize()
    card.times.clear()
    card.times.isOn = true
    defer { card.times.isOn = false }
    try body()
    try card.synchronize()
    return card.times.entries.mapValues { ($0.milliseconds, $0.launches) }
  }

  /// Kernels that a device has queued so far; nil where it does not count them.
  public static func launchCount(of device: any Device) -> Int? {
    (device as? CUDADevice)?.times.launchCount
  }

  /// Compiles every kernel that a device compiles when it is first used, into its cache.
  ///
  /// - Parameter progress: called with the name of each before it is compiled.
  /// - Throws: what did not compile.
  /// - Returns: whether the device has such kernels.
  public static func prepare(
    _ device: any Device, _ progress: (String) -> Void
  ) throws(DeviceError) -> Bool {
    guard let card = device as? CUDADevice else { return false }
    try card.prepare(progress)
    return true
  }

  /// Where the library keeps what it made or measured for this machine; nil without a home.
  public static var cacheFolder: String? { CUDADevice.defaultCacheFolder }

  /// Threads that the processor's kernels use, the caller's included.
  public static var threadCount: Int {
    get { CPUDevice.threadCount }
    set { CPUDevice.threadCount = newValue }
  }
}
