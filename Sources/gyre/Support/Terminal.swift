#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// What the commands know of the place that they write to.
enum Terminal {
  static let isErrorInteractive = isatty(STDERR_FILENO) == 1
  static let isOutputInteractive = isatty(STDOUT_FILENO) == 1
  static let isInputInteractive = isatty(STDIN_FILENO) == 1

  /// Whether `NO_COLOR` (https://no-color.org) or a dumb terminal asks for plain text.
  private static let refusesColor: Bool = {
    let noColor = getenv("NO_COLOR").map { strlen($0) > 0 } ?? false
    let dumb = getenv("TERM").map { strcmp($0, "dumb") == 0 } ?? true
    return noColor || dumb
  }()

  enum Style: String {
    case bold = "1"
    case dim = "2"
    case red = "31"
    case green = "32"
    case cyan = "36"
  }

  /// The text in a style where a person reads it.
  static func styled(_ text: String, _ style: Style, onError: Bool = false) -> String {
    let interactive = onError ? isErrorInteractive : isOutputInteractive
    return interactive && !refusesColor ? "\u{1B}[\(style.rawValue)m\(text)\u{1B}[0m" : text
  }

  /// Columns of the terminal behind standard error.
  static var width: Int {
    var size = winsize()
    guard ioctl(STDERR_FILENO, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 else { return 80 }
    return Int(size.ws_col)
  }

  /// Writes text to standard output at once; false when nobody reads it any more.
  @discardableResult
  static func write(_ text: String) -> Bool { write(text, STDOUT_FILENO) }
  static func line(_ text: String = "") { write(text + "\n", STDOUT_FILENO) }
  static func note(_ text: String) { write(text + "\n", STDERR_FILENO) }
  static func writeError(_ text: String) { write(text, STDERR_FILENO) }

  /// The one line that a failed command leaves.
  static func complain(_ error: any Error) {
    let text = "\(error)".split(separator: "\n").joined(separator: " ")
    note("gyre: " + styled("error:", .red, onError: true) + " " + text)
  }

  @discardableResult
  private static func write(_ text: String, _ descriptor: Int32) -> Bool {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      let written = bytes.withUnsafeBytes { platformWrite(descriptor, $0) }
      if written < 0, errno == EINTR { continue }
      guard written > 0 else { return false }
      bytes = bytes.dropFirst(written)
    }
    return true
  }
}

private func platformWrite(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) -> Int {
  #if canImport(Glibc)
    Glibc.write(descriptor, bytes.baseAddress, bytes.count)
  #elseif canImport(Musl)
    Musl.write(descriptor, bytes.baseAddress, bytes.count)
  #else
    Darwin.write(descriptor, bytes.baseAddress, bytes.count)
  #endif
}
