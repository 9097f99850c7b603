import GyreCPU
import GyreTensors

/// The devices of this machine: the only place that knows which backends exist.
public enum Devices {
  /// Names that `open` takes on this machine, the default first.
  public static var available: [DeviceID] {
    ["cpu"]
      + CPUDevice.Level.allCases.filter(\.isAvailable).map { DeviceID("cpu:\($0.rawValue)") }
      + ["reference"]
  }

  /// The device of that name: `cpu` (the best level of the processor), `cpu:avx2` and the like, or
  /// `reference` (the definitions in double precision, slowly).
  ///
  /// - Throws: `unavailable`, with what there is.
  public static func open(_ name: String) throws(DeviceError) -> any Device {
    switch name {
    case "reference": return ReferenceDevice()
    case "cpu": return try CPUDevice()
    default:
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
    guard let cpu = device as? CPUDevice else { return device.id.name }
    return "cpu:\(cpu.level.rawValue), \(threadCount) thread\(threadCount == 1 ? "" : "s")"
  }

  /// Whether bfloat16 products are faster than float32 ones on a device.
  public static func hasFastBFloat16(_ device: any Device) -> Bool {
    (device as? CPUDevice)?.hasFastBFloat16 ?? false
  }

  /// Threads that the processor's kernels use, the caller's included.
  public static var threadCount: Int {
    get { CPUDevice.threadCount }
    set { CPUDevice.threadCount = newValue }
  }
}
