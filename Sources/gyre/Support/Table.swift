/// Rows of text in aligned columns.
struct Table {
  enum Alignment { case left, right }
  private let header: [String]
  private let alignments: [Alignment]
  private var rows: [[String]?] = []

  init(_ columns: [(String, Alignment)]) {
    header = columns.map(\.0)
    alignments = columns.map(\.1)
  }

  /// - Precondition: one cell a column.
  mutating func add(_ cells: [String]) {
    precondition(
      cells.count == header.count, "table: \(cells.count) cells, \(header.count) columns")
    rows.append(cells)
  }

  /// A line between what is above and what follows.
  mutating func addRule() { rows.append(nil) }

  /// The lines, the header in bold where a person reads them.
  func lines() -> [String] {
    let widths = header.indices.map { i in
      ([header] + rows.compactMap { $0 }).map { Table.width($0[i]) }.max() ?? 0
    }
    func line(_ cells: [String]) -> String {
      let padded = cells.indices.map { i in
        let space = String(repeating: " ", count: widths[i] - Table.width(cells[i]))
        return alignments[i] == .left ? cells[i] + space : space + cells[i]
      }
      var text = padded.joined(separator: "  ")
      while text.last == " " { text.removeLast() }
      return text
    }
    let rule = widths.map { String(repeating: "─", count: $0) }.joined(separator: "──")
    return [Terminal.styled(line(header), .bold), Terminal.styled(rule, .dim)]
      + rows.map { $0.map(line) ?? Terminal.styled(rule, .dim) }
  }

  /// Characters that show: styles take no room.
  private static func width(_ cell: String) -> Int {
    var (count, isStyle) = (0, false)
    for character in cell {
      if character == "\u{1B}" { isStyle = true }
      if !isStyle { count += 1 }
      if isStyle, character == "m" { isStyle = false }
    }
    return count
  }

  func print() { for line in lines() { Terminal.line(line) } }
}
