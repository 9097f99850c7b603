/// Moves tensors between the ranks of a run: processes with one device each that do the same work on
/// different data.
///
/// Calls queue work on the ranks' devices as launches do and never throw: the first failure, such as a
/// rank that ended, is kept by the device for its next `synchronize()` or host read. All ranks make the
/// same calls in the same order. Tensors are on the communicator's device.
public protocol Communicator: AnyObject, Sendable {
  /// This process among them, from 0.
  var rank: Int { get }
  /// How many there are.
  var count: Int { get }
  /// Replaces each tensor, float32, by its sum over all ranks, in the same order of additions on every rank.
  func sum(_ tensors: [Tensor])
  /// `sum` beside work that is queued from now on and leaves the tensors alone until `join()`.
  func sumAside(_ tensors: [Tensor])
  /// Has what is queued from now on wait for the sums aside.
  func join()
  /// Every rank's tensor, in their order: `[count] + shape`. Shapes and types are alike on all ranks.
  func gather(_ tensor: Tensor) -> Tensor
  /// Sends tensors to a rank that calls `receive` with tensors of the same shapes and types.
  func send(_ tensors: [Tensor], to rank: Int)
  func receive(into tensors: [Tensor], from rank: Int)
  /// A short message of the host to another rank; it does not wait for queued work.
  func send(message: [UInt8], to rank: Int)
  /// The next message of a rank; empty after a failure.
  func message(from rank: Int) -> [UInt8]
  /// Waits until every rank is here, on the host.
  func barrier()
}

extension Communicator {
  public func sumAside(_ tensors: [Tensor]) { sum(tensors) }
  public func join() {}

  /// The tensors without those that share storage with an earlier one: what is changed in place must
  /// be changed once.
  package func distinct(_ tensors: [Tensor]) -> [Tensor] {
    // Where a tensor's storage begins: the buffer, then the offset.
    var seen: Set<[Int]> = []
    return tensors.filter { tensor in
      precondition(tensor.dtype == .float32, "communicator: \(tensor.spec), float32 belongs")
      guard let buffer = tensor.buffer else { return false }
      return seen.insert([Int(bitPattern: ObjectIdentifier(buffer)), tensor.byteOffset]).inserted
    }
  }
}
