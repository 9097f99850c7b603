import GyreTensors

/// Processes that evolve one model together: each scores a slice of the population, scores are exchanged (and
/// parts of the update, where those are shared out), and all take the same step. The result is that of one process, bit for bit.
public protocol WorkerGroup: AnyObject {
  /// This process, from 0; rank 0 leads: it evaluates, writes and reports.
  var rank: Int { get }
  /// The ranks that take part, in order.
  var ranks: [Int] { get }
  /// What each of `ranks` gave, in their order. All call it at the same time.
  ///
  /// - Throws: `worker` naming ranks that are lost; `ranks` then lacks them, alike in all that are left.
  func gather(_ bytes: [UInt8]) throws(EvolutionError) -> [[UInt8]]
  /// Every rank's float32 `[n]`, n alike in all: `[ranks, n]`. Throws as above.
  func gather(_ values: Tensor) throws(EvolutionError) -> Tensor
  /// About what a rank receives a second when all exchange much.
  var bytesPerSecond: Double { get }
}

extension WorkerGroup {
  public var isLeader: Bool { rank == 0 }

  public func gather(_ values: Tensor) throws(EvolutionError) -> Tensor {
    try gatherThroughHost(values)
  }
  public var bytesPerSecond: Double { 1e9 }

  /// Values as bytes of the host.
  func gatherThroughHost(_ values: Tensor) throws(EvolutionError) -> Tensor {
    let own: [Float]
    do throws(DeviceError) { own = try values.elements(Float.self) } catch {
      throw .worker(ranks: [rank], reason: "cannot read its part of the update: \(error)")
    }
    var all: [Float] = []
    all.reserveCapacity(own.count * ranks.count)
    for part in try gather(own.withUnsafeBytes { Array($0) }) {
      guard part.count == 4 * own.count else {
        throw .worker(ranks: [], reason: "sent \(part.count) bytes of \(4 * own.count)")
      }
      part.withUnsafeBytes { all += $0.bindMemory(to: Float.self) }
    }
    return Tensor(all, shape: [ranks.count, own.count], on: values.device)
  }

  /// This rank's part of `count` things, nearly equal parts in the order of ranks.
  func slice(of count: Int) -> Range<Int> {
    let place = ranks.firstIndex(of: rank) ?? 0
    return count * place / ranks.count..<count * (place + 1) / ranks.count
  }

  /// The leader's text, in every rank.
  public func share(_ text: String) throws(EvolutionError) -> String {
    let all = try gather(isLeader ? Array(text.utf8) : [])
    return String(decoding: all[0], as: UTF8.self)
  }
}

/// What happens to a run when a worker ends.
public enum WorkerFailure: String, Sendable, CaseIterable {
  /// The run saves a checkpoint and ends with the worker's name.
  case stop
  /// The others take over what it had to do.
  case drop
}

/// Whole numbers and real ones in a row of bytes, as ranks send them.
struct WorkerMessage {
  private(set) var bytes: [UInt8] = []
  private var next = 0

  init() {}
  init(_ bytes: [UInt8]) { self.bytes = bytes }

  /// The lengths of all ranks' messages, this rank's among them.
  static func lengths(
    _ own: Int, _ gather: ([UInt8]) throws(EvolutionError) -> [[UInt8]]
  ) throws(EvolutionError) -> [Int] {
    var message = WorkerMessage()
    message.write(own)
    var all: [Int] = []
    for part in try gather(message.bytes) {
      var message = WorkerMessage(part)
      all.append(try message.readInteger())
    }
    return all
  }

  mutating func write(_ value: Int) {
    withUnsafeBytes(of: Int64(value).littleEndian) { bytes += $0 }
  }
  mutating func write(_ value: Double) { write(Int(Int64(bitPattern: value.bitPattern))) }
  mutating func write(_ values: [UInt8]) {
    write(values.count)
    bytes += values
  }

  mutating func readInteger() throws(EvolutionError) -> Int {
    guard next + 8 <= bytes.count else { throw .worker(ranks: [], reason: "a message is cut off") }
    defer { next += 8 }
    return (0..<8).reduce(0) { $0 | Int(bytes[next + $1]) << (8 * $1) }
  }
  mutating func readReal() throws(EvolutionError) -> Double {
    Double(bitPattern: UInt64(bitPattern: Int64(try readInteger())))
  }
  mutating func readBytes() throws(EvolutionError) -> [UInt8] {
    let count = try readInteger()
    guard count >= 0, count <= bytes.count - next else {
      throw .worker(ranks: [], reason: "a message is cut off")
    }
    defer { next += count }
    return Array(bytes[next..<next + count])
  }
}
