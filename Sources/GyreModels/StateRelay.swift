import GyreRecurrence
import GyreTensors

/// Carries states between the parts of a sequence that lie on several devices: a layer of one part begins
/// with the state in which the same layer of the part before it ended.
public protocol StateRelay: Sendable {
  /// The state that a layer begins with, in place of `own`.
  func before(_ layer: Int, _ own: State, on device: any Device) -> State
  /// Hands on the state that a layer ended with.
  func after(_ layer: Int, _ state: State)
}
