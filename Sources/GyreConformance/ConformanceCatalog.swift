import GyreMixers
import GyreRecurrence
import GyreTensors

/// Everything that is checked on every device.
public enum ConformanceCatalog {
  /// - Parameter setThreadCount: sets how many threads the device's kernels use and returns the
  ///   count before; nil for devices without such a number.
  public static func all(
    setThreadCount: (@Sendable (Int) -> Int)? = nil
  ) -> [ConformanceCase] {
    CheckDevice.cases(setThreadCount: setThreadCount)
      + CheckProduct.cases(setThreadCount: setThreadCount)
      + OpCatalog.tensorOps.flatMap { CheckOp.cases($0, .op) }
      + EngineCatalog.ops.flatMap { CheckOp.cases($0, .engine) }
      + (MixerCatalog.mixers + MixerCatalog.feedForwards).flatMap { CheckMixer.cases($0) }
      + CheckModel.cases() + CheckTraining.cases()
  }

  /// Those that are fast enough for tests without optimisation.
  public static func small(
    setThreadCount: (@Sendable (Int) -> Int)? = nil
  ) -> [ConformanceCase] {
    all(setThreadCount: setThreadCount).filter { $0.tags.contains(.small) }
  }
}
