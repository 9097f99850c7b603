/// Processes that evolve one model together: each scores a slice of the population, only scores are
/// exchanged, and all take the same step. The result is that of one process, bit for bit.
public protocol WorkerGroup: AnyObject {
  /// This process, from 0; rank 0 leads: it evaluates, writes and reports.
  var rank: Int { get }
  /// The ranks that take part, in order.
  var ranks: [Int] { get }
  /// What each of `ranks` gave, in their order. All call it at the same time.
  ///
  /// - Throws: `worker` naming ranks that are lost; `ranks` then lacks them, alike in all that are left.
  func gather(_ bytes: [UInt8]) throws(EvolutionError) -> [[UInt8]]
}

extension WorkerGroup {
  public var isLeader: Bool { rank == 0 }

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
