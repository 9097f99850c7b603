import GyreCheckpoints
import GyreModels

/// The table of a study: what its cells say, as JSON, Markdown and a drawing.
public struct StudyTable: Sendable {
  public let study: Study
  /// The best of the measured seeds by model and task: by accuracy at the trained length, then beyond.
  private var cells: [String: StudyCell] = [:]
  /// Every measured cell, in the study's order.
  public let all: [StudyCell]

  public init(_ study: Study, _ measured: [StudyCell]) {
    self.study = study
    all = measured
    for cell in measured {
      let key = cell.task + "\u{0}" + cell.model
      guard let other = cells[key] else {
        cells[key] = cell
        continue
      }
      if other.rank.lexicographicallyPrecedes(cell.rank) { cells[key] = cell }
    }
  }

  func cell(_ task: StudyTask, _ model: StudyModel) -> StudyCell? {
    cells[task.name + "\u{0}" + model.name]
  }

  /// Writes NAME.json, NAME.md and NAME.svg.
  public func write(to folder: String) throws {
    try AtomicFile.write(try ConfigurationFile.text(all), to: "\(folder)/\(study.name).json")
    try AtomicFile.write(markdown(), to: "\(folder)/\(study.name).md")
    try AtomicFile.write(svg(), to: "\(folder)/\(study.name).svg")
  }

  /// Percent of answers right at the trained length and at each longer one, 99.5 and more in bold.
  public func markdown() -> String {
    let multiples = study.multiples.map { $0 == 1 ? "L" : "\($0)L" }.joined(separator: " / ")
    let guesses: [String] = study.tasks.map { task in
      let measured = study.models.compactMap { cell(task, $0) }.first
      return measured.map { percent($0.curve.chance) } ?? ""
    }
    var lines: [String] = []
    lines.append(
      "Percent of answers right at \(multiples), L the longest rows of training; ✓ and the longest "
        + "multiple with 99 % or more.")
    lines.append("")
    lines.append("| model | state, bytes | \(study.tasks.map(\.name).joined(separator: " | ")) |")
    lines.append("| --- | ---: |" + String(repeating: " :--- |", count: study.tasks.count))
    lines.append("| *guessing* | | \(guesses.joined(separator: " | ")) |")
    var group = ""
    for model in study.models {
      let found: [StudyCell?] = study.tasks.map { cell($0, model) }
      guard found.contains(where: { $0 != nil }) else { continue }
      if model.group != group {
        group = model.group
        lines.append("| **\(group)** | |" + String(repeating: " |", count: study.tasks.count))
      }
      let sizes = found.compactMap { $0?.stateBytes }
      let size =
        sizes.min() == sizes.max()
        ? "\(sizes.first ?? 0)" : "\(sizes.min() ?? 0)–\(sizes.max() ?? 0)"
      let entries: [String] = found.map { $0.map(text) ?? "" }
      lines.append("| \(model.name) | \(size) | \(entries.joined(separator: " | ")) |")
    }
    return lines.joined(separator: "\n") + "\n"
  }

  private func text(_ cell: StudyCell) -> String {
    let numbers = cell.curve.scores.map { percent($0.accuracy) }.joined(separator: " / ")
    return cell.curve.solvedMultiple.map { "\(numbers) ✓\($0)" } ?? numbers
  }

  private func percent(_ part: Double) -> String { "\(Int((100 * part).rounded()))" }

  /// A row a model, a column a task, a block a length: from guessing (pale) to all right (blue).
  public func svg() -> String {
    let models = study.models.filter { m in study.tasks.contains { cell($0, m) != nil } }
    let tasks = study.tasks.filter { t in models.contains { cell(t, $0) != nil } }
    let (left, top, row) = (190.0, 64.0, 18.0)
    let column = max(88.0, 15.0 * Double(study.multiples.count) + 14)
    var out = SVG(
      width: Int(left + column * Double(tasks.count) + 20),
      height: Int(top + row * Double(models.count) + 34))
    out.text(study.title, x: 12, y: 20, size: 15)
    for (i, task) in tasks.enumerated() {
      let x = left + column * Double(i)
      out.text(task.name, x: x, y: 44, size: 11)
      for (j, multiple) in study.multiples.enumerated() {
        out.text("\(multiple)", x: x + 15 * Double(j) + 7, y: 57, size: 9, anchor: "middle")
      }
    }
    for (r, model) in models.enumerated() {
      let y = top + row * Double(r)
      out.text(model.name, x: left - 10, y: y + 12, size: 11, anchor: "end")
      for (i, task) in tasks.enumerated() {
        guard let cell = cell(task, model) else { continue }
        for (j, score) in cell.curve.scores.enumerated() {
          out.rectangle(
            left + column * Double(i) + 15 * Double(j), y, 14, row - 3,
            color(score.accuracy, cell.curve.chance),
            title:
              "\(model.name), \(task.name), \(score.length) tokens: \(percent(score.accuracy)) %")
        }
      }
    }
    out.text(
      "pale: no better than guessing; dark: 99 % of answers right; numbers: multiples of the trained length",
      x: 12, y: top + row * Double(models.count) + 22, size: 11)
    return out.closed()
  }

  private func color(_ accuracy: Double, _ chance: Double) -> String {
    if accuracy >= 0.99 { return "#0b3c78" }
    let part = max(0, min(1, (accuracy - chance) / max(1 - chance, 1e-9)))
    func mix(_ from: Double, _ to: Double) -> Int { Int(from + (to - from) * part) }
    return "rgb(\(mix(238, 74)),\(mix(240, 140)),\(mix(243, 208)))"
  }
}

extension StudyCell {
  /// Orders seeds.
  var rank: [Double] {
    [Double(curve.solvedMultiple ?? 0)] + curve.scores.map(\.accuracy)
  }
}
