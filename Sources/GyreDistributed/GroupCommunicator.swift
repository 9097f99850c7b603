import GyreTensors

/// A communicator whose short messages go through a group's sockets.
public protocol GroupCommunicator: Communicator {
  var group: RankGroup { get }
  var device: any Device { get }
}

extension GroupCommunicator {
  public var rank: Int { group.rank }
  public var count: Int { group.count }

  /// Keeps a failure where the device's next wait throws it.
  public func fail(_ reason: String) {
    device.fail(.kernelFailed(kernel: "communication", device: device.id.name, reason: reason))
  }

  /// The same for what the group throws.
  public func attempt(_ body: () throws(GroupError) -> Void) {
    do throws(GroupError) { try body() } catch { fail("\(error)") }
  }

  public func send(message: [UInt8], to rank: Int) {
    attempt { () throws(GroupError) in try group.send(message, to: rank) }
  }

  public func message(from rank: Int) -> [UInt8] {
    var message: [UInt8] = []
    attempt { () throws(GroupError) in message = try group.receive(from: rank) }
    return message
  }

  public func barrier() { attempt { () throws(GroupError) in try group.barrier() } }
}
