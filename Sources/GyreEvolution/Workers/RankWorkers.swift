import GyreDistributed
import GyreTensors

/// The ranks of a run, connected by sockets. The leader reads what each rank sends and sends all of it to
/// each; a rank whose connection ends is lost, and named to all others.
///
/// Where ranks have cards, contents go through those: the sockets carry the lengths before, and so notice a
/// rank that has ended while it scored. After a loss the sockets carry everything.
public final class RankWorkers: WorkerGroup {
  private let group: RankGroup
  private let communicator: (any Communicator)?
  private let device: (any Device)?
  public private(set) var ranks: [Int]
  public var rank: Int { group.rank }

  /// - Parameters:
  ///   - communicator: between the ranks' cards; nil: sockets alone.
  ///   - device: this rank's card.
  public init(
    _ group: RankGroup, communicator: (any Communicator)? = nil, device: (any Device)? = nil
  ) {
    (self.group, self.communicator, self.device) = (group, communicator, device)
    ranks = Array(0..<group.count)
  }

  public func gather(_ bytes: [UInt8]) throws(EvolutionError) -> [[UInt8]] {
    guard let communicator, let device, ranks.count == group.count else { return try star(bytes) }
    let counts = try WorkerMessage.lengths(bytes.count) { part throws(EvolutionError) in
      try star(part)
    }
    // Parts of equal length, the longest's.
    let length = max(counts.max() ?? 0, 1)
    let part = bytes + [UInt8](repeating: 0, count: length - bytes.count)
    let all = communicator.gather(Tensor(part, shape: [length], on: device))
    do throws(DeviceError) {
      let values = try all.elements(UInt8.self)
      return counts.enumerated().map { Array(values[$0 * length..<$0 * length + $1]) }
    } catch { throw lost(error) }
  }

  public func gather(_ values: Tensor) throws(EvolutionError) -> Tensor {
    guard let communicator, let device, ranks.count == group.count, values.device === device
    else { return try gatherThroughHost(values) }
    // A word over the sockets notices a rank that has ended.
    _ = try star([])
    let all = communicator.gather(values)
    do throws(DeviceError) { try device.synchronize() } catch { throw lost(error) }
    return all
  }

  /// Cards exchange directly; through sockets all passes through the leader.
  public var bytesPerSecond: Double {
    communicator != nil && device?.id.name.hasPrefix("cuda") == true
      ? 1e11 : 1e9 / Double(ranks.count)
  }

  private func lost(_ error: DeviceError) -> EvolutionError {
    .worker(ranks: group.firstLost().map { [$0] } ?? [], reason: "\(error)")
  }

  private func star(_ bytes: [UInt8]) throws(EvolutionError) -> [[UInt8]] {
    rank == 0 ? try lead(bytes) : try follow(bytes)
  }

  private func lead(_ bytes: [UInt8]) throws(EvolutionError) -> [[UInt8]] {
    var all: [[UInt8]] = []
    var lost: [Int] = []
    for other in ranks {
      do throws(GroupError) {
        all.append(other == 0 ? bytes : try group.receive(from: other))
      } catch { lost.append(other) }
    }
    ranks.removeAll { lost.contains($0) }
    var answer = WorkerMessage()
    answer.write(lost.count)
    for other in lost { answer.write(other) }
    if lost.isEmpty { for part in all { answer.write(part) } }
    // One that does not take the answer is found missing the next time.
    for other in ranks where other != 0 {
      do throws(GroupError) { try group.send(answer.bytes, to: other) } catch { continue }
    }
    guard lost.isEmpty else { throw .worker(ranks: lost, reason: "ended") }
    return all
  }

  private func follow(_ bytes: [UInt8]) throws(EvolutionError) -> [[UInt8]] {
    var answer: WorkerMessage
    do throws(GroupError) {
      try group.send(bytes, to: 0)
      answer = WorkerMessage(try group.receive(from: 0))
    } catch { throw .worker(ranks: [0], reason: "ended") }
    let count = try answer.readInteger()
    guard count == 0 else {
      var lost: [Int] = []
      for _ in 0..<count { lost.append(try answer.readInteger()) }
      ranks.removeAll { lost.contains($0) }
      throw .worker(ranks: lost, reason: "ended")
    }
    var all: [[UInt8]] = []
    for _ in ranks { all.append(try answer.readBytes()) }
    return all
  }
}
