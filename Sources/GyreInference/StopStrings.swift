/// Ends a text at the first of several strings while it arrives in pieces, and never lets out a part
/// of a string that may still become one of them.
public struct StopStrings: Sendable {
  private let strings: [[UInt8]]
  private var held: [UInt8] = []
  /// Whether a string was found; nothing comes out after that.
  public private(set) var isStopped = false

  /// Empty strings are left out.
  public init(_ strings: [String]) {
    self.strings = strings.map { Array($0.utf8) }.filter { !$0.isEmpty }
  }

  /// Takes a piece; returns what is certain to come before any of the strings.
  public mutating func append(_ text: String) -> String {
    if isStopped { return "" }
    if strings.isEmpty { return text }
    held.append(contentsOf: text.utf8)
    if let end = firstMatch() {
      isStopped = true
      defer { held = [] }
      return String(decoding: held[..<end], as: UTF8.self)
    }
    let kept = longestOpenSuffix()
    let certain = held.count - kept
    defer { held.removeFirst(certain) }
    return String(decoding: held[..<certain], as: UTF8.self)
  }

  /// Ends the text: returns what was held back.
  public mutating func finish() -> String {
    defer { held = [] }
    return String(decoding: held, as: UTF8.self)
  }

  private func firstMatch() -> Int? {
    for start in held.indices {
      for string in strings where held[start...].starts(with: string) { return start }
    }
    return nil
  }

  /// Length of the longest end of the held bytes with which one of the strings begins.
  private func longestOpenSuffix() -> Int {
    let longest = strings.reduce(0) { max($0, $1.count - 1) }
    for length in stride(from: min(longest, held.count), to: 0, by: -1) {
      let suffix = held[(held.count - length)...]
      if strings.contains(where: { $0.starts(with: suffix) }) { return length }
    }
    return 0
  }
}
