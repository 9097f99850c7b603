/// A bar on standard error with rate and time left; on anything but a terminal a plain line now and
/// then.
struct Progress {
  private let total: Int
  private let unit: String
  private let clock = ContinuousClock()
  private let start: ContinuousClock.Instant
  private var lastDrawn: ContinuousClock.Instant?
  private let isQuiet: Bool
  private let first: Int

  /// - Parameters:
  ///   - first: where a resumed run begins; it does not count for the rate.
  ///   - quiet: draws nothing.
  init(total: Int, first: Int = 0, unit: String = "step", quiet: Bool = false) {
    self.total = total
    self.first = first
    self.unit = unit
    isQuiet = quiet
    start = clock.now
  }

  /// Draws when enough time went by since the last drawing, and at the end.
  mutating func update(_ done: Int, _ detail: String) {
    if isQuiet { return }
    let now = clock.now
    let interval: Duration = Terminal.isErrorInteractive ? .milliseconds(100) : .seconds(10)
    if let lastDrawn, now - lastDrawn < interval, done < total { return }
    lastDrawn = now
    let elapsed = (now - start).seconds
    let left = done > first ? elapsed / Double(done - first) * Double(total - done) : .infinity
    let text = "\(unit) \(done)/\(total)  \(detail)  \(Format.clock(left)) left"
    if Terminal.isErrorInteractive {
      Terminal.writeError("\r\u{1B}[2K" + Progress.bar(done, total, text.count) + text)
    } else {
      Terminal.note(text)
    }
  }

  /// Leaves the line so that other text can follow.
  func end() {
    if !isQuiet, Terminal.isErrorInteractive, lastDrawn != nil { Terminal.writeError("\n") }
  }

  private static func bar(_ done: Int, _ total: Int, _ textWidth: Int) -> String {
    let width = min(30, Terminal.width - textWidth - 4)
    guard width >= 6, total > 0 else { return "" }
    let filled = min(width, done * width / total)
    return Terminal.styled(String(repeating: "━", count: filled), .cyan, onError: true)
      + Terminal.styled(String(repeating: "─", count: width - filled), .dim, onError: true) + "  "
  }
}
