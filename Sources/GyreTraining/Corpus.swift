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

/// Texts to train on and to score: documents as UTF-8 bytes.
public struct Corpus: Sendable {
  public var train: [[UInt8]]
  public var validation: [[UInt8]]
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
    var documents: [[UInt8]] = []
    for path in paths {
      for file in try Corpus.files(path) { documents += try Corpus.documents(file) }
    }
    documents.removeAll { $0.isEmpty }
    let total = documents.reduce(0) { $0 + $1.count }
    guard total >= 64 else {
      throw .data(
        path: paths.joined(separator: ", "), reason: "holds \(total) bytes; at least 64 are needed")
    }
    var held = min(total / 20, 100_000)
    var validation: [[UInt8]] = []
    while held > 0, let last = documents.popLast() {
      if last.count <= held, !documents.isEmpty {
        validation.insert(last, at: 0)
        held -= last.count
      } else {
        let cut = max(last.count - held, 1)
        documents.append(Array(last[..<cut]))
        if cut < last.count { validation.insert(Array(last[cut...]), at: 0) }
        held = 0
      }
    }
    self.init(train: documents, validation: validation, source: paths.joined(separator: " "))
  }

  public init(train: [[UInt8]], validation: [[UInt8]], source: String) {
    self.train = train
    self.validation = validation
    self.source = source
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

  private static func documents(_ path: String) throws(TrainingError) -> [[UInt8]] {
    let bytes: [UInt8]
    do throws(CheckpointError) {
      bytes = try MappedFile(path: path).withUnsafeBytes { Array($0) }
    } catch { throw .data(path: path, reason: "\(error)") }
    guard path.hasSuffix(".jsonl") else { return [bytes] }
    struct Line: Decodable { var text: String }
    var documents: [[UInt8]] = []
    for (number, line) in bytes.split(separator: UInt8(ascii: "\n")).enumerated() {
      do {
        documents.append(Array(try JSONDecoder().decode(Line.self, from: Data(line)).text.utf8))
      } catch {
        throw .data(
          path: path, reason: "line \(number + 1) is not an object with a string \"text\"")
      }
    }
    return documents
  }
}
