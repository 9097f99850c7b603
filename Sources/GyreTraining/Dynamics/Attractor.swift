import GyreTensors

/// Points of an orbit in boxes of its space, for comparing attractors.
public struct Attractor: Sendable {
  private let counts: [Int: Int]
  private let total: Int
  /// Boxes a side over ±3.5 deviations.
  public static let boxes = 30

  /// - Parameter points: the observed coordinates; points outside belong to the outermost boxes.
  public init(_ points: [[Double]]) {
    var counts: [Int: Int] = [:]
    for point in points {
      let box = point.reduce(0) { index, x in
        let place = (x.isFinite ? max(-3.5, min(x, 3.5)) : 3.5) + 3.5
        return index * Attractor.boxes
          + min(Int(place / 7 * Double(Attractor.boxes)), Attractor.boxes - 1)
      }
      counts[box, default: 0] += 1
    }
    self.counts = counts
    total = points.count
  }

  /// Σ min(p, q): 1 for the same attractor, 0 for none in common.
  public func overlap(_ other: Attractor) -> Double {
    counts.reduce(0) { sum, box in
      let q = Double(other.counts[box.key] ?? 0) / Double(max(other.total, 1))
      return sum + min(Double(box.value) / Double(max(total, 1)), q)
    }
  }

  /// Σ p ln(p / q) over the boxes of this one, with empty boxes of the other at 10⁻⁵ of a point
  /// (D_stsp of Koppe et al., 2019).
  public func divergence(from other: Attractor) -> Double {
    counts.reduce(0) { sum, box in
      let p = Double(box.value) / Double(max(total, 1))
      let q = (Double(other.counts[box.key] ?? 0) + 1e-5) / Double(max(other.total, 1))
      return sum + p * Functions.log(p / q)
    }
  }

  /// The first and third coordinate of two orbits side by side.
  public static func svg(_ left: [[Double]], _ right: [[Double]], titles: (String, String))
    -> String
  {
    func path(_ points: [[Double]], _ x: Double) -> String {
      func number(_ v: Double) -> String { String(Int((v * 10).rounded())) }
      // Tenths of a unit, as whole numbers under a scale.
      return points.prefix(12000).filter { $0.allSatisfy(\.isFinite) }.enumerated().map { i, p in
        let (u, v) = (
          x + 180 + 48 * max(-3.5, min(p[0], 3.5)), 200 - 48 * max(-3.5, min(p[2], 3.5))
        )
        return (i == 0 ? "M" : "L") + number(u) + " " + number(v)
      }.joined()
    }
    func panel(_ points: [[Double]], _ x: Double, _ title: String, _ color: String) -> String {
      """
      <text x="\(Int(x) + 180)" y="24" text-anchor="middle" font-family="sans-serif" font-size="15">\(title)</text>
      <g transform="scale(0.1)"><path d="\(path(points, x))" fill="none" stroke="\(color)" stroke-width="5"/></g>

      """
    }
    return """
      <svg xmlns="http://www.w3.org/2000/svg" width="740" height="390" viewBox="0 0 740 390">
      <rect width="740" height="390" fill="white"/>
      \(panel(left, 0, titles.0, "#1f4e79"))\(panel(right, 370, titles.1, "#a23b2a"))</svg>

      """
  }
}
