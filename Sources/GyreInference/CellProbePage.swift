/// What cells follow, as a page of its own: a table, and the text coloured by the best cell of each
/// feature (after Karpathy, Johnson and Fei-Fei, "Visualizing and understanding recurrent networks",
/// 2015, https://arxiv.org/abs/1506.02078).
public struct CellProbePage: Sendable {
  public var title: String
  public var cells: RecordedCells
  public var probes: [CellProbe]
  /// Tokens of the second half that are shown.
  public var shown = 1500

  public init(title: String, cells: RecordedCells, probes: [CellProbe]) {
    (self.title, self.cells, self.probes) = (title, cells, probes)
  }

  public func html() -> String {
    let rows = probes.map { p in
      "<tr><th>\(p.feature.rawValue)</th><td>\(number(p.frequency))</td><td>\(p.unit)</td>"
        + "<td>\(number(p.unitScore))</td><td>\(number(p.linearScore))</td></tr>"
    }
    let maps = probes.map { p in
      "<h2>\(p.feature.rawValue): \(p.unit)</h2><pre>\(map(p.unit))</pre>"
    }
    let shades = (0...14).map { i in
      let strength = Double(abs(i - 7)) / 7
      return
        ".s\(i){background:rgba(\(i < 7 ? "66,110,180" : "205,80,40"),\(number(0.75 * strength)))}"
    }
    return """
      <!doctype html><html lang="en"><head><meta charset="utf-8"><title>\(escape(title))</title>
      <style>body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2rem auto;padding:0 1rem;\
      color:#222}h1{font-size:1.4rem}h2{font-size:1.05rem;margin-top:2rem}th,td{text-align:left;\
      padding:.15rem 1.2rem .15rem 0;font-weight:400}pre{white-space:pre-wrap;line-height:1.35}\
      \(shades.joined())</style></head><body><h1>\(escape(title))</h1>
      <p>Cells and linear maps are chosen on the first half of the text and scored on the second. The
      score is the mean of the accuracies on tokens with and without the feature (0.5: chance); for line
      length, the correlation. Orange: the cell is high, blue: low.</p>
      <table><tr><th>feature</th><td>frequency</td><td>best cell</td><td>its score</td>\
      <td>all cells, linear</td></tr>\(rows.joined())</table>
      \(maps.joined())</body></html>

      """
  }

  /// The second half of the text, each token on the shade of the cell's value.
  private func map(_ unit: RecordedCells.Unit) -> String {
    let values = cells.values(of: unit)
    let first = cells.text.count / 2
    let range = first..<min(cells.text.count, first + shown)
    let sorted = range.map { values[$0] }.sorted()
    guard let middle = sorted.isEmpty ? nil : sorted[sorted.count / 2], let low = sorted.first,
      let high = sorted.last
    else { return "" }
    let spread = max(high - middle, middle - low, 1e-6)
    var page = ""
    var pending: [UInt8] = []
    for i in range {
      pending += cells.text[i]
      // Bytes of one character stay together.
      if i + 1 < range.upperBound, let next = cells.text[i + 1].first, next & 0xC0 == 0x80 {
        continue
      }
      let shade = 7 + Int((7 * min(max((values[i] - middle) / spread, -1), 1)).rounded())
      page += "<span class=\"s\(shade)\">\(escape(String(decoding: pending, as: UTF8.self)))</span>"
      pending = []
    }
    return page
  }

  private func number(_ x: Double) -> String {
    guard x.isFinite, abs(x) < 1e9 else { return "–" }
    let whole = Int((abs(x) * 1000).rounded())
    let digits = String(whole % 1000)
    return (x < 0 && whole > 0 ? "−" : "") + "\(whole / 1000)."
      + String(repeating: "0", count: 3 - digits.count) + digits
  }

  private func escape(_ text: String) -> String {
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
}
