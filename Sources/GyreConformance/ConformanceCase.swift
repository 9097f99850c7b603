import GyreTensors

/// One property that a device must have, and how it is looked at.
public struct ConformanceCase: Sendable, CustomStringConvertible {
  public enum Tag: String, Sendable, Hashable, Codable, CaseIterable {
    case op, engine, mixer, model, device
    /// Fast enough for tests without optimisation.
    case small
  }
  public let name: String
  public let tags: Set<Tag>
  let body: @Sendable (inout Check) throws -> Void

  init(_ name: String, _ tags: Set<Tag>, _ body: @escaping @Sendable (inout Check) throws -> Void) {
    self.name = name
    self.tags = tags
    self.body = body
  }

  public var description: String { name }

  /// Checks `device`. All inputs are a pure function of `seed` and the case.
  public func run(on device: any Device, seed: UInt64 = 1) -> ConformanceResult {
    let before = device.memory.inUse
    var check = Check(device: device, seed: seed)
    let start = ContinuousClock.now
    do {
      try body(&check)
      try device.synchronize()
    } catch {
      check.failure = "\(error)"
      // What the case left behind must not fail the next.
      _ = try? device.synchronize()
    }
    let seconds = (ContinuousClock.now - start) / .seconds(1)
    check.require("all memory released", device.memory.inUse == before)
    return ConformanceResult(
      name: name, tags: tags, measurements: check.measurements, failure: check.failure,
      seconds: seconds)
  }
}

/// One comparison inside a case.
public struct Measurement: Sendable, Codable, Hashable {
  public var what: String
  /// ‖y − r‖/‖r‖; `greatestFiniteMagnitude` where there is no such number.
  public var error: Double
  public var tolerance: Double
  public var passes: Bool { error <= tolerance }
}

/// A case while it runs: the device, the inputs, what was measured.
struct Check {
  let device: any Device
  let seed: UInt64
  private(set) var measurements: [Measurement] = []
  var failure: String?

  init(device: any Device, seed: UInt64) {
    self.device = device
    self.seed = seed
  }

  /// Standard normals for a purpose.
  func normals(_ name: String, _ count: Int) -> [Float] {
    CounterGenerator(seed: seed, name: name).normals(count)
  }

  /// y is r within the tolerance.
  mutating func compare(_ what: String, _ y: [Double], _ r: [Double], _ tolerance: Double) {
    record(what, Tolerance.error(y, r), tolerance)
  }

  /// y is r, every bit.
  mutating func identical(_ what: String, _ y: [Double], _ r: [Double]) {
    let same = y.count == r.count && zip(y, r).allSatisfy { $0.bitPattern == $1.bitPattern }
    record(what, same ? 0 : max(Tolerance.error(y, r), .leastNormalMagnitude), 0)
  }

  mutating func finite(_ what: String, _ values: [Double]) {
    require(what + " finite", values.allSatisfy(\.isFinite))
  }

  mutating func require(_ what: String, _ condition: Bool) {
    record(what, condition ? 0 : .infinity, 0)
  }

  mutating func record(_ what: String, _ error: Double, _ tolerance: Double) {
    measurements.append(
      Measurement(
        what: what, error: error.isFinite ? error : .greatestFiniteMagnitude, tolerance: tolerance))
  }
}
