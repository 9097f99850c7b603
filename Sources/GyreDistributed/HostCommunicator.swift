import GyreTensors

/// Moves tensors of processors through the group's sockets.
///
/// A sum cuts the numbers into one slice a rank: each rank collects its slice from all, adds in the
/// order of the ranks and sends the result back, so that all ranks hold the same bits. 2(n−1)/n of the
/// bytes leave each rank.
public final class HostCommunicator: GroupCommunicator {
  public let group: RankGroup
  public let device: any Device

  /// - Parameter device: one whose memory the host can read.
  public init(_ group: RankGroup, device: any Device) {
    (self.group, self.device) = (group, device)
  }

  public func sum(_ tensors: [Tensor]) {
    guard count > 1 else { return }
    let parts = distinct(tensors)
    let total = parts.reduce(0) { $0 + $1.elementCount }
    var values = [Float]()
    values.reserveCapacity(total)
    for tensor in parts { values += floats(tensor) }
    attempt { () throws(GroupError) in try reduce(&values) }
    var at = 0
    for tensor in parts {
      let target = floats(tensor)
      values.withUnsafeBufferPointer { source in
        _ = target.update(fromContentsOf: source[at..<at + target.count])
      }
      at += target.count
    }
  }

  private func reduce(_ values: inout [Float]) throws(GroupError) {
    let n = values.count
    func slice(_ rank: Int) -> Range<Int> { n * rank / count..<n * (rank + 1) / count }
    let own = slice(rank)
    let peers = (0..<count).filter { $0 != rank }
    var incoming = [Float](repeating: 0, count: own.count * count)
    try exchange(&values, &incoming) { values, incoming in
      (
        peers.map { ($0, UnsafeRawBufferPointer(bytes(values, slice($0)))) },
        peers.map { ($0, bytes(incoming, $0 * own.count..<($0 + 1) * own.count)) }
      )
    }
    for i in 0..<own.count {
      var sum: Float = 0
      for peer in 0..<count {
        sum += peer == rank ? values[own.lowerBound + i] : incoming[peer * own.count + i]
      }
      incoming[rank * own.count + i] = sum
    }
    values.replaceSubrange(own, with: incoming[rank * own.count..<(rank + 1) * own.count])
    var sums = Array(values[own])
    try exchange(&sums, &values) { sums, values in
      (
        peers.map { ($0, UnsafeRawBufferPointer(sums)) },
        peers.map { ($0, bytes(values, slice($0))) }
      )
    }
  }

  private typealias Transfers = (
    sends: [(peer: Int, bytes: UnsafeRawBufferPointer)],
    receives: [(peer: Int, bytes: UnsafeMutableRawBufferPointer)]
  )

  private func exchange(
    _ source: inout [Float], _ target: inout [Float],
    _ transfers: (UnsafeMutableBufferPointer<Float>, UnsafeMutableBufferPointer<Float>) -> Transfers
  ) throws(GroupError) {
    let result: Result<Void, GroupError> = source.withUnsafeMutableBufferPointer { source in
      target.withUnsafeMutableBufferPointer { target in
        let (sends, receives) = transfers(source, target)
        do throws(GroupError) {
          return .success(try group.exchange(sends: sends, receives: receives))
        } catch { return .failure(error) }
      }
    }
    try result.get()
  }

  private func bytes(
    _ values: UnsafeMutableBufferPointer<Float>, _ range: Range<Int>
  ) -> UnsafeMutableRawBufferPointer {
    UnsafeMutableRawBufferPointer(UnsafeMutableBufferPointer(rebasing: values[range]))
  }

  private func storage(_ tensor: Tensor) -> UnsafeMutableRawBufferPointer {
    UnsafeMutableRawBufferPointer(start: tensor.hostAddress, count: tensor.byteCount)
  }

  private func floats(_ tensor: Tensor) -> UnsafeMutableBufferPointer<Float> {
    UnsafeMutableBufferPointer(
      start: tensor.hostAddress?.assumingMemoryBound(to: Float.self), count: tensor.elementCount)
  }

  public func gather(_ tensor: Tensor) -> Tensor {
    let all = Tensor(
      emptyWith: TensorSpec(Shape([count] + tensor.shape.dimensions), tensor.dtype), on: device)
    let (own, target) = (storage(tensor), storage(all))
    func part(_ rank: Int) -> UnsafeMutableRawBufferPointer {
      let size = own.count
      return UnsafeMutableRawBufferPointer(rebasing: target[rank * size..<(rank + 1) * size])
    }
    part(rank).copyMemory(from: UnsafeRawBufferPointer(own))
    let peers = (0..<count).filter { $0 != rank }
    attempt { () throws(GroupError) in
      try group.exchange(
        sends: peers.map { ($0, UnsafeRawBufferPointer(own)) },
        receives: peers.map { ($0, part($0)) })
    }
    return all
  }

  public func send(_ tensors: [Tensor], to rank: Int) {
    attempt { () throws(GroupError) in
      for tensor in tensors {
        try group.exchange(sends: [(rank, UnsafeRawBufferPointer(storage(tensor)))], receives: [])
      }
    }
  }

  public func receive(into tensors: [Tensor], from rank: Int) {
    attempt { () throws(GroupError) in
      for tensor in tensors {
        try group.exchange(sends: [], receives: [(rank, storage(tensor))])
      }
    }
  }
}
