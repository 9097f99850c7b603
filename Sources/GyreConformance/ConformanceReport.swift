import FoundationEssentials
import GyreTensors

/// What came of one case.
public struct ConformanceResult: Sendable, Codable, Hashable {
  public var name: String
  public var tags: Set<ConformanceCase.Tag>
  public var measurements: [Measurement]
  /// The error that ended the case early.
  public var failure: String?
  public var seconds: Double

  public var passes: Bool { failure == nil && measurements.allSatisfy(\.passes) }

  /// The measurement closest to, or furthest over, its tolerance.
  public var worst: Measurement? {
    func excess(_ m: Measurement) -> Double {
      m.tolerance > 0 ? m.error / m.tolerance : m.error > 0 ? .infinity : 0
    }
    return measurements.max { excess($0) < excess($1) }
  }

  /// What is wrong, one line a failure; empty for a case that passes.
  public var problems: [String] {
    (failure.map { ["\(name): \($0)"] } ?? [])
      + measurements.filter { !$0.passes }.map {
        $0.tolerance == 0 && $0.error == .greatestFiniteMagnitude
          ? "\(name): \($0.what): does not hold"
          : "\(name): \($0.what): error \(brief($0.error)), tolerance \(brief($0.tolerance))"
      }
  }
}

/// All results of one device.
public struct ConformanceReport: Sendable, Codable, Hashable {
  public var device: String
  public var date: Date
  /// Seed of all inputs.
  public var seed: UInt64
  public var results: [ConformanceResult]

  public var passes: Bool { results.allSatisfy(\.passes) }
  public var seconds: Double { results.reduce(0) { $0 + $1.seconds } }

  /// Runs the cases in order, telling `progress` about each as it ends.
  public init(
    of device: any Device, cases: [ConformanceCase], seed: UInt64 = 1,
    progress: (ConformanceResult) -> Void = { _ in }
  ) {
    self.device = device.id.name
    self.seed = seed
    date = Date()
    results = []
    for item in cases {
      let result = item.run(on: device, seed: seed)
      progress(result)
      results.append(result)
    }
  }

  /// The report as text: one row a case, then the failures in words and a summary.
  public func table() -> String {
    let width = results.map(\.name.count).max() ?? 4
    var lines = [pad("case", width) + "  status     error  tolerance  seconds"]
    for r in results {
      let (error, tolerance) = r.worst.map { (brief($0.error), brief($0.tolerance)) } ?? ("-", "-")
      lines.append(
        pad(r.name, width) + "  " + pad(r.passes ? "ok" : "FAILED", 6) + "  "
          + pad(error, 8, left: true) + "   " + pad(tolerance, 8, left: true) + "  "
          + pad(fixed(r.seconds), 7, left: true))
    }
    lines += results.flatMap(\.problems)
    let passed = results.count(where: \.passes)
    lines.append(
      "\(device): \(passed) of \(results.count) cases pass, seed \(seed), \(fixed(seconds)) s")
    return lines.joined(separator: "\n")
  }
}

private func pad(_ s: String, _ width: Int, left: Bool = false) -> String {
  let space = String(repeating: " ", count: max(width - s.count, 0))
  return left ? space + s : s + space
}

/// Two decimals.
private func fixed(_ x: Double) -> String {
  let hundredths = Int((x * 100).rounded())
  let rest = hundredths % 100
  return "\(hundredths / 100).\(rest < 10 ? "0" : "")\(rest)"
}

/// Two digits and an exponent: 3.1e-7.
private func brief(_ x: Double) -> String {
  if x == 0 { return "0" }
  if x == .greatestFiniteMagnitude || !x.isFinite { return "none" }
  var exponent = 0
  var m = abs(x)
  while m >= 9.95 { (m, exponent) = (m / 10, exponent + 1) }
  while m < 0.995 { (m, exponent) = (m * 10, exponent - 1) }
  let tenths = Int((m * 10).rounded())
  return "\(x < 0 ? "-" : "")\(tenths / 10).\(tenths % 10)e\(exponent)"
}
