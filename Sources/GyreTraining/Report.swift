import FoundationEssentials
import GyreCheckpoints
import GyreModels

/// The page of a run, `report.html`: curves as SVG, settings, throughput, samples. Self-contained.
public struct Report {
  public var title: String
  public var metrics: [Metrics]
  /// Rows of two columns.
  public var settings: [(String, String)]
  public var samples: [String]
  /// Bits a byte of n-gram models of order 1, 2, … on the held-out text.
  public var baseline: [Double] = []
  /// Held against the run in the chart.
  public struct Curve {
    public var name: String
    public var points: [(step: Int, bits: Double)]
    public init(name: String, points: [(step: Int, bits: Double)]) {
      self.name = name
      self.points = points
    }
  }
  public var curves: [Curve] = []
  private static let colors = ["#3f8f5f", "#a9c7a0", "#8a5fb0", "#b0a15f"]

  public init(
    title: String, metrics: [Metrics], settings: [(String, String)], samples: [String]
  ) {
    self.title = title
    self.metrics = metrics
    self.settings = settings
    self.samples = samples
  }

  public func write(to path: String) throws(CheckpointError) {
    try AtomicFile.write(html(), to: path)
  }

  public func html() -> String {
    let speeds = metrics.map(\.tokensPerSecond).sorted()
    let median = speeds.isEmpty ? 0 : speeds[speeds.count / 2]
    let last = metrics.last
    let best = metrics.compactMap(\.validationBitsPerByte).last
    var rows = settings
    rows.append(("steps", "\(last?.step ?? 0)"))
    rows.append(("tokens", "\(last?.tokens ?? 0)"))
    rows.append(("median tokens/s", "\(Int(median))"))
    if let best { rows.append(("held-out bits/byte", fixed(best, 3))) }
    for (i, bits) in baseline.enumerated() {
      rows.append(("\(i + 1)-gram model, bits/byte", fixed(bits, 3)))
    }
    let table = rows.map { "<tr><th>\(escape($0.0))</th><td>\(escape($0.1))</td></tr>" }.joined()
    let texts = samples.map { "<pre>\(escape($0))</pre>" }.joined()
    return """
      <!doctype html><html lang="en"><head><meta charset="utf-8"><title>\(escape(title))</title>
      <style>body{font:15px/1.5 system-ui,sans-serif;max-width:860px;margin:2rem auto;padding:0 1rem;\
      color:#222}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}\
      th{text-align:left;font-weight:500;padding:.15rem 1.5rem .15rem 0;color:#555}\
      pre{background:#f6f6f4;padding:1rem;white-space:pre-wrap;border-radius:4px}\
      svg{width:100%;height:auto}text{font:12px system-ui,sans-serif;fill:#555}</style></head><body>
      <h1>\(escape(title))</h1>
      <h2>Loss</h2>\(chart())<h2>Settings and results</h2><table>\(table)</table>
      <h2>Samples</h2>\(texts)</body></html>

      """
  }

  /// Loss in bits a byte over steps: training smoothed over about a hundredth of the run.
  private func chart() -> String {
    let (width, height, left, bottom, top) = (820.0, 360.0, 48.0, 36.0, 12.0)
    var smooth: [(Double, Double)] = []
    var mean: Double?
    let keep = 1 - 1 / max(Double(metrics.count) / 100, 1)
    for m in metrics where m.trainBitsPerByte.isFinite {
      mean = mean.map { keep * $0 + (1 - keep) * m.trainBitsPerByte } ?? m.trainBitsPerByte
      smooth.append((Double(m.step), mean ?? 0))
    }
    let held = metrics.compactMap { m in
      m.validationBitsPerByte.map { (Double(m.step), $0) }
    }
    guard let lastStep = smooth.last?.0, lastStep > 0 else { return "<p>No steps yet.</p>" }
    let others = curves.map { curve in
      curve.points.filter { $0.bits.isFinite }.map { (Double($0.step), $0.bits) }
    }
    let all = smooth.map(\.1) + held.map(\.1) + baseline.suffix(1) + others.joined().map(\.1)
    let low = (all.min() ?? 0) * 0.95
    let high = max(all.max() ?? 1, low + 0.1)
    func x(_ step: Double) -> Double { left + step / lastStep * (width - left - 12) }
    func y(_ bits: Double) -> Double {
      top + (high - bits) / (high - low) * (height - bottom - top)
    }
    func path(_ points: [(Double, Double)]) -> String {
      points.enumerated().map { i, p in
        "\(i == 0 ? "M" : "L")\(fixed(x(p.0), 1)) \(fixed(y(p.1), 1))"
      }.joined(separator: " ")
    }
    var svg = "<svg viewBox=\"0 0 \(Int(width)) \(Int(height))\" role=\"img\">"
    for i in 0...5 {
      let bits = low + (high - low) * Double(i) / 5
      svg +=
        "<line x1=\"\(left)\" x2=\"\(width - 12)\" y1=\"\(fixed(y(bits), 1))\" y2=\"\(fixed(y(bits), 1))\" stroke=\"#e4e4e0\"/>"
        + "<text x=\"\(left - 8)\" y=\"\(fixed(y(bits) + 4, 1))\" text-anchor=\"end\">\(fixed(bits, 2))</text>"
      let step = lastStep * Double(i) / 5
      svg +=
        "<text x=\"\(fixed(x(step), 1))\" y=\"\(height - 14)\" text-anchor=\"middle\">\(Int(step))</text>"
    }
    svg += "<path d=\"\(path(smooth))\" fill=\"none\" stroke=\"#4a78b5\" stroke-width=\"1.5\"/>"
    svg += "<path d=\"\(path(held))\" fill=\"none\" stroke=\"#c2542d\" stroke-width=\"2\"/>"
    for (i, points) in others.enumerated().reversed() {
      let color = Report.colors[i % Report.colors.count]
      svg += "<path d=\"\(path(points))\" fill=\"none\" stroke=\"\(color)\" stroke-width=\"1.5\"/>"
      svg +=
        "<text x=\"\(width - 150)\" y=\"\(64 + 18 * i)\" style=\"fill:\(color)\">\(escape(curves[i].name))</text>"
    }
    for p in held {
      svg +=
        "<circle cx=\"\(fixed(x(p.0), 1))\" cy=\"\(fixed(y(p.1), 1))\" r=\"3\" fill=\"#c2542d\"/>"
    }
    if let bits = baseline.last {
      svg +=
        "<line x1=\"\(left)\" x2=\"\(width - 12)\" y1=\"\(fixed(y(bits), 1))\" y2=\"\(fixed(y(bits), 1))\" stroke=\"#777\" stroke-dasharray=\"5 4\"/>"
        + "<text x=\"\(width - 16)\" y=\"\(fixed(y(bits) - 5, 1))\" text-anchor=\"end\">\(baseline.count)-gram</text>"
    }
    svg +=
      "<text x=\"\(width - 150)\" y=\"28\" style=\"fill:#4a78b5\">training</text>"
      + "<text x=\"\(width - 150)\" y=\"46\" style=\"fill:#c2542d\">held-out</text>"
      + "<text x=\"\(left)\" y=\"\(height - 1)\">step</text><text x=\"4\" y=\"11\">bits/byte</text></svg>"
    return svg
  }

  private func fixed(_ x: Double, _ digits: Int) -> String {
    guard x.isFinite, abs(x) < 1e12 else { return "–" }
    let scale = (0..<digits).reduce(1.0) { s, _ in s * 10 }
    let whole = Int((abs(x) * scale).rounded())
    let text = String(whole)
    let padded = String(repeating: "0", count: max(0, digits + 1 - text.count)) + text
    let sign = x < 0 && whole != 0 ? "-" : ""
    return digits == 0
      ? sign + padded : sign + padded.dropLast(digits) + "." + padded.suffix(digits)
  }

  private func escape(_ text: String) -> String {
    var out = ""
    for c in text {
      switch c {
      case "&": out += "&amp;"
      case "<": out += "&lt;"
      case ">": out += "&gt;"
      case "\"": out += "&quot;"
      default: out.append(c)
      }
    }
    return out
  }
}
