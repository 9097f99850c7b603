import GyreCUDA
import GyreDistributed
import GyreTensors

/// How the ranks of a run exchange tensors.
public enum Communicators {
  /// NCCL between NVIDIA's cards, sockets between processors.
  ///
  /// - Throws: `unavailable` when NCCL is missing or the cards cannot reach each other.
  public static func make(
    _ group: RankGroup, device: any Device
  ) throws(DeviceError) -> any Communicator {
    if let card = device as? CUDADevice { return try NCCLCommunicator(group, device: card) }
    return HostCommunicator(group, device: device)
  }

  /// The same for ranks that only meet to gather, and of which one may end: NCCL between cards, nil
  /// between processors, whose sockets gather by themselves.
  ///
  /// - Throws: `unavailable` when NCCL is missing or the cards cannot reach each other.
  public static func gathering(
    _ group: RankGroup, device: any Device
  ) throws(DeviceError) -> (any Communicator)? {
    guard let card = device as? CUDADevice else { return nil }
    return try NCCLCommunicator(group, device: card, watchesAlways: false)
  }
}
