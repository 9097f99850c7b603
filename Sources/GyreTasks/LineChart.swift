import GyreTensors

/// Lines over a logarithmic axis, from 0 to 1 upwards, as a self-contained SVG.
public struct LineChart: Sendable {
  public struct Line: Sendable {
    public var name: String
    public var points: [(Double, Double)]
    public init(_ name: String, _ points: [(Double, Double)]) {
      (self.name, self.points) = (name, points)
    }
  }
  public var title, horizontal, vertical: String
  public var lines: [Line]
  /// A dashed line at a height.
  public var reference: (String, Double)?

  public init(
    title: String, horizontal: String, vertical: String, lines: [Line],
    reference: (String, Double)? = nil
  ) {
    (self.title, self.horizontal, self.vertical) = (title, horizontal, vertical)
    (self.lines, self.reference) = (lines, reference)
  }

  private static let colors = [
    "#1f5fa8", "#c2542d", "#3a8a4d", "#8a5aa8", "#b58a1f", "#3a8a8f", "#a83a5f", "#555555",
  ]

  public func svg() -> String {
    let (width, height, left, right, top, bottom) = (640.0, 360.0, 52.0, 150.0, 36.0, 44.0)
    let places = Set(lines.flatMap { $0.points.map(\.0) }).filter { $0 > 0 }.sorted()
    let low = Functions.log(places.first ?? 1)
    let span = max(Functions.log(places.last ?? 2) - low, 1e-9)
    func x(_ value: Double) -> Double {
      left + (Functions.log(value) - low) / span * (width - left - right)
    }
    func y(_ value: Double) -> Double { top + (1 - value) * (height - top - bottom) }
    var out = SVG(width: Int(width), height: Int(height))
    out.text(title, x: left, y: 20, size: 14)
    for i in 0...4 {
      let value = Double(i) / 4
      out.line(left, y(value), width - right, y(value), "#e4e4e0")
      out.text("\(25 * i)%", x: left - 6, y: y(value) + 4, anchor: "end")
    }
    for place in places {
      out.text(
        place == place.rounded() ? "\(Int(place))" : "\(place)", x: x(place),
        y: height - bottom + 18,
        anchor: "middle")
    }
    out.text(horizontal, x: (left + width - right) / 2, y: height - 8, anchor: "middle")
    if let (name, value) = reference {
      out.line(left, y(value), width - right, y(value), "#888888", dashed: true)
      out.text(name, x: width - right + 8, y: y(value) + 4, color: "#888888")
    }
    for (i, line) in lines.enumerated() {
      let color = Self.colors[i % Self.colors.count]
      let points = line.points.filter { $0.0 > 0 && $0.1.isFinite }
      out.path(points.map { (x($0.0), y($0.1)) }, color)
      for p in points { out.circle(x(p.0), y(p.1), color) }
      out.text(line.name, x: width - right + 8, y: top + 14 + 16 * Double(i), color: color)
    }
    return out.closed()
  }
}

/// An SVG as it is written.
struct SVG {
  private var body: String

  init(width: Int, height: Int) {
    body =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 \(width) \(height)\" width=\"\(width)\" "
      + "height=\"\(height)\" font-family=\"system-ui,sans-serif\">\n"
      + "<rect width=\"\(width)\" height=\"\(height)\" fill=\"white\"/>\n"
  }

  /// Tenths are enough for a drawing.
  static func number(_ x: Double) -> String {
    let tenths = Int((max(-1e6, min(x, 1e6)) * 10).rounded())
    let sign = tenths < 0 ? "-" : ""
    return tenths % 10 == 0
      ? "\(tenths / 10)" : "\(sign)\(abs(tenths) / 10).\(abs(tenths) % 10)"
  }
  private static func escaped(_ text: String) -> String {
    var out = ""
    for c in text {
      switch c {
      case "&": out += "&amp;"
      case "<": out += "&lt;"
      case ">": out += "&gt;"
      default: out.append(c)
      }
    }
    return out
  }

  mutating func text(
    _ text: String, x: Double, y: Double, size: Int = 12, anchor: String = "start",
    color: String = "#444444"
  ) {
    body +=
      "<text x=\"\(Self.number(x))\" y=\"\(Self.number(y))\" font-size=\"\(size)\" "
      + "text-anchor=\"\(anchor)\" fill=\"\(color)\">\(Self.escaped(text))</text>\n"
  }
  mutating func line(
    _ x1: Double, _ y1: Double, _ x2: Double, _ y2: Double, _ color: String, dashed: Bool = false
  ) {
    body +=
      "<line x1=\"\(Self.number(x1))\" y1=\"\(Self.number(y1))\" x2=\"\(Self.number(x2))\" "
      + "y2=\"\(Self.number(y2))\" stroke=\"\(color)\"\(dashed ? " stroke-dasharray=\"5 4\"" : "")/>\n"
  }
  mutating func path(_ points: [(Double, Double)], _ color: String) {
    let steps = points.enumerated().map { i, p in
      (i == 0 ? "M" : "L") + Self.number(p.0) + " " + Self.number(p.1)
    }
    body += "<path d=\"\(steps.joined())\" fill=\"none\" stroke=\"\(color)\" stroke-width=\"2\"/>\n"
  }
  mutating func circle(_ x: Double, _ y: Double, _ color: String) {
    body +=
      "<circle cx=\"\(Self.number(x))\" cy=\"\(Self.number(y))\" r=\"3\" fill=\"\(color)\"/>\n"
  }
  mutating func rectangle(
    _ x: Double, _ y: Double, _ width: Double, _ height: Double, _ color: String, title: String
  ) {
    body +=
      "<rect x=\"\(Self.number(x))\" y=\"\(Self.number(y))\" width=\"\(Self.number(width))\" "
      + "height=\"\(Self.number(height))\" fill=\"\(color)\"><title>\(Self.escaped(title))</title></rect>\n"
  }
  func closed() -> String { body + "</svg>\n" }
}
