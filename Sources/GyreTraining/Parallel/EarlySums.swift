import GyreTensors

/// Adds gradients up over ranks in pieces, as they are made, beside the rest of the backward pass.
final class EarlySums {
  private let communicator: any Communicator
  private var waiting: [Tensor] = []
  private var byteCount = 0
  /// Places of the gradients that are taken care of.
  private(set) var places: Set<Int> = []

  /// Bytes that are worth a call.
  private static let piece = 256 << 20

  init(_ communicator: any Communicator) { self.communicator = communicator }

  func add(_ place: Int, _ gradient: Tensor) {
    guard places.insert(place).inserted else { return }
    waiting.append(gradient)
    byteCount += gradient.byteCount
    if byteCount >= Self.piece { flush() }
  }

  private func flush() {
    communicator.sumAside(waiting)
    (waiting, byteCount) = ([], 0)
  }

  /// Queues what is left; work from now on waits for all sums.
  func finish() {
    flush()
    communicator.join()
  }
}
