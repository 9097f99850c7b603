/// Numbers as people read them.
enum Format {
  /// With so many digits behind the point.
  static func fixed(_ x: Double, _ digits: Int) -> String {
    guard x.isFinite else { return x.isNaN ? "nan" : x < 0 ? "-inf" : "inf" }
    var scale = 1.0
    for _ in 0..<digits { scale *= 10 }
    let scaled = (abs(x) * scale).rounded()
    guard scaled < 9e18 else { return "\(x)" }
    let whole = Int(scaled) / Int(scale)
    let sign = x < 0 && scaled > 0 ? "-" : ""
    if digits == 0 { return sign + "\(whole)" }
    let rest = String(Int(scaled) % Int(scale))
    return sign + "\(whole)." + String(repeating: "0", count: digits - rest.count) + rest
  }

  /// Three significant digits with a unit prefix: 1.23 M.
  static func count(_ x: Double, _ unit: String = "") -> String {
    scaled(x, 1000, ["", "k", "M", "G", "T", "P"], unit)
  }

  /// Bytes with binary prefixes: 1.50 MiB.
  static func bytes(_ count: Int) -> String {
    count < 1024
      ? "\(count) B" : scaled(Double(count), 1024, ["", "Ki", "Mi", "Gi", "Ti", "Pi"], "B")
  }

  private static func scaled(
    _ x: Double, _ base: Double, _ prefixes: [String], _ unit: String
  ) -> String {
    var (value, index) = (x, 0)
    while abs(value) >= base * 0.9995, index < prefixes.count - 1 {
      (value, index) = (value / base, index + 1)
    }
    let digits =
      index == 0 && value == value.rounded()
      ? 0 : abs(value) < 9.995 ? 2 : abs(value) < 99.95 ? 1 : 0
    let suffix = prefixes[index] + unit
    return fixed(value, digits) + (suffix.isEmpty ? "" : " " + suffix)
  }

  /// 1234567 as 1,234,567.
  static func grouped(_ n: Int) -> String {
    var digits = Array(String(n.magnitude))
    var i = digits.count - 3
    while i > 0 {
      digits.insert(",", at: i)
      i -= 3
    }
    return (n < 0 ? "-" : "") + String(digits)
  }

  /// Seconds with a fitting unit: 12.3 µs, 4.56 ms, 1.2 s.
  static func time(_ seconds: Double) -> String {
    for (unit, factor) in [("s", 1.0), ("ms", 1e3), ("µs", 1e6)] where seconds * factor >= 1 {
      let value = seconds * factor
      return fixed(value, value < 10 ? 2 : value < 100 ? 1 : 0) + " " + unit
    }
    return fixed(seconds * 1e9, 0) + " ns"
  }

  /// Time left: 2:05, 1:02:03.
  static func clock(_ seconds: Double) -> String {
    guard seconds.isFinite, seconds < 1e9 else { return "-:--" }
    let total = Int(seconds.rounded())
    func two(_ n: Int) -> String { n < 10 ? "0\(n)" : "\(n)" }
    let (hours, minutes) = (total / 3600, total / 60 % 60)
    return hours > 0
      ? "\(hours):\(two(minutes)):\(two(total % 60))" : "\(minutes):\(two(total % 60))"
  }
}

extension Duration {
  var seconds: Double { self / .seconds(1) }
}

extension Format {
  /// A relative error: 3.1e-07.
  static func error(_ x: Double) -> String {
    guard x.isFinite, x != 0 else { return x == 0 ? "0" : "\(x)" }
    var (m, exponent) = (abs(x), 0)
    while m >= 9.95 { (m, exponent) = (m / 10, exponent + 1) }
    while m < 0.995 { (m, exponent) = (m * 10, exponent - 1) }
    return (x < 0 ? "-" : "") + fixed(m, 1) + "e\(exponent)"
  }
}
