import CGyreCorpus
import FoundationEssentials
import GyreCheckpoints

/// What goes wrong with data and training.
public enum TrainingError: Error, CustomStringConvertible {
  case data(path: String, reason: String)
  case checkpoint(CheckpointError)
  case diverged(step: Int, reason: String)
  case configuration(String)

  public var description: String {
    switch self {
    case .data(let path, let reason): "\(path): \(reason)"
    case .checkpoint(let error): "\(error)"
    case .diverged(let step, let reason):
      "training stopped at step \(step): \(reason); the last checkpoint is intact; try a lower "
        + "--lr or a longer warm-up"
    case .configuration(let reason): reason
    }
  }
}

/// Texts to train on and to score, as documents. Files are read when their text is wanted, a piece at a
/// time.
public struct Corpus: Sendable {
  public var train: [CorpusText]
  public var validation: [CorpusText]
  /// Where the text came from, for run folders.
  public var source: String

  /// The embedded text: the first 1.2 MB of Shakespeare to train on, the next 100 kB to score.
  public static func embedded() -> Corpus {
    let bytes = UnsafeBufferPointer(start: gyre_corpus_bytes(), count: gyre_corpus_count())
    return Corpus(
      train: [Array(bytes[..<1_200_000])], validation: [Array(bytes[1_200_000..<1_300_000])],
      source: "embedded (Shakespeare, public domain)")
  }

  /// Text files, folders (walked in order of names) and JSON lines (`.jsonl`, field "text").
  ///
  /// The last twentieth of the bytes, 100 kB at most, is held out.
  /// - Throws: `data` with the file and what is wrong.
  public init(paths: [String]) throws(TrainingError) {
    try self.init(paths: paths, CorpusReader())
  }

  init(paths: [String], _ reader: CorpusReader) throws(TrainingError) {
    var reader = reader
    var documents: [CorpusText] = []
    for path in paths {
      for file in try Corpus.files(path) { documents += try reader.documents(file) }
    }
    documents.removeAll { $0.byteCount == 0 }
    let total = documents.reduce(0) { $0 + $1.byteCount }
    guard total >= 64 else {
      throw .data(
        path: paths.joined(separator: ", "), reason: "holds \(total) bytes; at least 64 are needed")
    }
    var held = min(total / 20, 100_000)
    var validation: [CorpusText] = []
    while held > 0, let last = documents.popLast() {
      if last.byteCount <= held, !documents.isEmpty {
        validation.insert(last, at: 0)
        held -= last.byteCount
      } else {
        let (kept, rest) = last.split(at: max(last.byteCount - held, 1))
        documents.append(kept)
        if rest.byteCount > 0 { validation.insert(rest, at: 0) }
        held = 0
      }
    }
    (train, self.validation) = (documents, validation)
    source = paths.joined(separator: " ")
  }

  /// Texts in memory.
  public init(train: [[UInt8]], validation: [[UInt8]], source: String) {
    self.train = train.map { CorpusText($0) }
    self.validation = validation.map { CorpusText($0) }
    self.source = source
  }

  /// Calls `body` with the training texts in pieces that end with a line or with their document.
  public func forEachTrainingPiece(
    _ body: ([UInt8]) throws(TrainingError) -> Void
  ) throws(TrainingError) {
    var reader = CorpusReader()
    for text in train {
      var rest: [UInt8] = []
      try reader.read(text) { (piece) throws(TrainingError) in
        guard let line = piece.lastIndex(of: UInt8(ascii: "\n")) else {
          rest += piece
          return
        }
        try body(rest + piece[...line])
        rest = Array(piece[(line + 1)...])
      }
      if !rest.isEmpty { try body(rest) }
    }
  }

  private static func files(_ path: String) throws(TrainingError) -> [String] {
    let manager = FileManager.default
    var isFolder = false
    guard manager.fileExists(atPath: path, isDirectory: &isFolder) else {
      throw .data(path: path, reason: "does not exist")
    }
    guard isFolder else { return [path] }
    let names: [String]
    do { names = try manager.contentsOfDirectory(atPath: path) } catch {
      throw .data(path: path, reason: "cannot be listed: \(error)")
    }
    var found: [String] = []
    for name in names.sorted() where !name.hasPrefix(".") { found += try files(path + "/" + name) }
    return found
  }
}
