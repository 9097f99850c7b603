import FoundationEssentials
import GyreCheckpoints
import GyreTokenizers

/// A document of a corpus: where its text lies. Texts are read when they are wanted, in pieces.
public struct CorpusText: Sendable {
  enum Place: Sendable {
    case memory([UInt8])
    case file(String)
    /// A line of JSON and the bytes of its text.
    case line(String, Range<Int>)
  }
  let place: Place
  /// The part of the text that is the document.
  private(set) var range: Range<Int>

  init(_ place: Place, byteCount: Int) {
    self.place = place
    range = 0..<byteCount
  }

  /// A text in memory.
  public init(_ bytes: [UInt8]) { self.init(.memory(bytes), byteCount: bytes.count) }

  /// A text file.
  ///
  /// - Throws: `data` where it cannot be read.
  public init(file path: String) throws(TrainingError) {
    do throws(CheckpointError) {
      self.init(.file(path), byteCount: try FileReader(path: path).byteCount)
    } catch { throw .data(path: path, reason: "\(error)") }
  }

  /// Bytes of UTF-8.
  public var byteCount: Int { range.count }

  /// The first `count` bytes and the rest.
  func split(at count: Int) -> (CorpusText, CorpusText) {
    var (first, second) = (self, self)
    first.range = range.lowerBound..<range.lowerBound + count
    second.range = range.lowerBound + count..<range.upperBound
    return (first, second)
  }

  /// The whole text.
  ///
  /// - Throws: `data` where the file has changed.
  public func bytes() throws(TrainingError) -> [UInt8] {
    var all: [UInt8] = []
    var reader = CorpusReader()
    try reader.read(self) { (piece) throws(TrainingError) in all += piece }
    return all
  }
}

/// Reads documents, those of one file after each other without opening it anew.
struct CorpusReader {
  /// Bytes of a file that are in memory at once.
  var pieceSize = 1 << 20
  private var file: FileReader?

  init() {}
  init(pieceSize: Int) { self.pieceSize = pieceSize }

  private mutating func open(_ path: String) throws(TrainingError) -> FileReader {
    if let file, file.path == path { return file }
    do throws(CheckpointError) {
      let opened = try FileReader(path: path)
      file = opened
      return opened
    } catch { throw .data(path: path, reason: "\(error)") }
  }

  private mutating func bytes(_ path: String, _ range: Range<Int>) throws(TrainingError) -> [UInt8]
  {
    let file = try open(path)
    do throws(CheckpointError) { return try file.read(range) } catch {
      throw .data(path: path, reason: "\(error)")
    }
  }

  /// Hands out a document's text in pieces, none of them empty.
  mutating func read(
    _ text: CorpusText, _ body: ([UInt8]) throws(TrainingError) -> Void
  ) throws(TrainingError) {
    guard text.byteCount > 0 else { return }
    switch text.place {
    case .memory(let bytes): try body(Array(bytes[text.range]))
    case .line(let path, let line):
      let decoded = try Self.text(ofLine: try bytes(path, line), path, line.lowerBound)
      guard decoded.count >= text.range.upperBound else {
        throw .data(path: path, reason: "the line at byte \(line.lowerBound) changed")
      }
      try body(Array(decoded[text.range]))
    case .file(let path):
      var start = text.range.lowerBound
      while start < text.range.upperBound {
        let end = min(start + pieceSize, text.range.upperBound)
        try body(try bytes(path, start..<end))
        start = end
      }
    }
  }

  /// The documents of a file: the file, or each line of JSON lines.
  mutating func documents(_ path: String) throws(TrainingError) -> [CorpusText] {
    let file = try open(path)
    guard path.hasSuffix(".jsonl") else {
      return [CorpusText(.file(path), byteCount: file.byteCount)]
    }
    var documents: [CorpusText] = []
    // A line that is not at its end yet, and where it begins.
    var (rest, begin) = ([UInt8](), 0)
    func take(_ line: [UInt8]) throws(TrainingError) {
      if !line.isEmpty {
        let text = try Self.text(ofLine: line, path, begin)
        documents.append(
          CorpusText(.line(path, begin..<begin + line.count), byteCount: text.count))
      }
      begin += line.count + 1
    }
    var start = 0
    while start < file.byteCount {
      let end = min(start + pieceSize, file.byteCount)
      var piece = try bytes(path, start..<end)[...]
      while let line = piece.firstIndex(of: UInt8(ascii: "\n")) {
        rest += piece[..<line]
        try take(rest)
        rest.removeAll(keepingCapacity: true)
        piece = piece[(line + 1)...]
      }
      rest += piece
      start = end
    }
    try take(rest)
    return documents
  }

  private static func text(
    ofLine line: [UInt8], _ path: String, _ place: Int
  ) throws(TrainingError) -> [UInt8] {
    struct Line: Decodable { var text: String }
    do { return Array(try JSONDecoder().decode(Line.self, from: Data(line)).text.utf8) } catch {
      throw .data(
        path: path, reason: "the line at byte \(place) is not an object with a string \"text\"")
    }
  }
}
