import FoundationEssentials
import GyreCheckpoints
import GyreTokenizers

/// Tokens of a text in a memory-mapped file.
///
/// Little-endian: "GYRESHRD", version, bytes a token (2 or 4), vocabulary, tokens, documents, bytes of
/// the text (each 8 bytes), the first token of each document (8 bytes each), the tokens.
public struct TokenShard: Sendable {
  private static let magic = Array("GYRESHRD".utf8)
  private static let headerCount = 8 + 6 * 8
  /// Bytes of tokens that are copied or checked at once.
  private static let pieceSize = 1 << 20

  public let path: String
  public let vocabulary: Int
  public let count: Int
  /// Bytes of the text that the tokens spell.
  public let byteCount: Int
  /// The first token of each document, ascending.
  public let documents: [Int]
  private let file: MappedFile
  private let width: Int
  private let start: Int

  /// Writes a shard of texts in memory atomically.
  public static func write(
    _ documents: [[UInt8]], tokenizer: any Tokenizer, to path: String
  ) throws(TrainingError) {
    try write(documents.map { CorpusText($0) }, tokenizer: tokenizer, to: path)
  }

  /// Writes a shard atomically. Neither a text nor its tokens are in memory as a whole: tokens go to a
  /// file beside the shard first, as the header counts them.
  ///
  /// Documents are held in memory whole only where the tokenizer knows no place to cut a text.
  public static func write(
    _ documents: [CorpusText], tokenizer: any Tokenizer, to path: String
  ) throws(TrainingError) {
    try write(documents, tokenizer: tokenizer, to: path, CorpusReader())
  }

  static func write(
    _ documents: [CorpusText], tokenizer: any Tokenizer, to path: String, _ reader: CorpusReader
  ) throws(TrainingError) {
    var reader = reader
    let spool = path + ".tokens"
    let width = tokenizer.vocabularySize <= 1 << 16 ? 2 : 4
    var failure: TrainingError?
    do throws(CheckpointError) {
      defer { try? FileManager.default.removeItem(atPath: spool) }
      var (starts, count) = ([Int](), 0)
      try AtomicFile.write(to: spool) { (sink) throws(CheckpointError) in
        var encoder = StreamingEncoder(tokenizer)
        var tokens: [TokenID] = []
        func flush() throws(CheckpointError) {
          count += tokens.count
          if width == 2 {
            try sink.write(tokens.map { UInt16(truncatingIfNeeded: $0).littleEndian })
          } else {
            try sink.write(tokens.map { UInt32(bitPattern: $0).littleEndian })
          }
          tokens.removeAll(keepingCapacity: true)
        }
        for document in documents {
          starts.append(count)
          do throws(TrainingError) {
            try reader.read(document) { (piece) throws(TrainingError) in
              piece.withUnsafeBufferPointer { encoder.append($0, into: &tokens) }
              do throws(CheckpointError) { try flush() } catch { throw .checkpoint(error) }
            }
          } catch {
            failure = error
            return
          }
          encoder.finish(into: &tokens)
          try flush()
        }
      }
      if failure == nil {
        let numbers = [
          1, width, tokenizer.vocabularySize, count, starts.count,
          documents.reduce(0) { $0 + $1.byteCount },
        ]
        let tokens = try FileReader(path: spool)
        try AtomicFile.write(to: path) { (sink) throws(CheckpointError) in
          try sink.write(magic)
          try sink.write((numbers + starts).map { UInt64($0).littleEndian })
          for start in stride(from: 0, to: tokens.byteCount, by: pieceSize) {
            try sink.write(try tokens.read(start..<min(start + pieceSize, tokens.byteCount)))
          }
        }
      }
    } catch { throw .checkpoint(error) }
    if let failure { throw failure }
  }

  /// Opens a shard; every number in it is checked.
  ///
  /// - Throws: `data` with the path and the place of the damage.
  public init(path: String) throws(TrainingError) {
    self.path = path
    do throws(CheckpointError) { file = try MappedFile(path: path) } catch {
      throw .checkpoint(error)
    }
    func fail(_ offset: Int, _ reason: String) -> TrainingError {
      .data(path: path, reason: "damaged shard at byte \(offset): \(reason)")
    }
    let size = file.byteCount
    guard size >= Self.headerCount else { throw fail(size, "shorter than a header") }
    let (head, numbers) = file.withUnsafeBytes { bytes in
      (
        Array(bytes[..<8]),
        (0..<6).map {
          UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: 8 + 8 * $0, as: UInt64.self))
        }
      )
    }
    guard head == Self.magic else { throw fail(0, "not a token shard") }
    guard numbers[0] == 1 else { throw fail(8, "version \(numbers[0]) is not 1") }
    guard numbers[1] == 2 || numbers[1] == 4 else { throw fail(16, "\(numbers[1]) bytes a token") }
    guard (1...(1 << 24)).contains(numbers[2]) else { throw fail(24, "vocabulary \(numbers[2])") }
    width = Int(numbers[1])
    let room = UInt64(size - Self.headerCount)
    guard numbers[4] <= room / 8 else { throw fail(40, "\(numbers[4]) documents do not fit") }
    let tableSize = Int(numbers[4]) * 8
    guard numbers[3] <= room / numbers[1],
      Int(numbers[3]) * width + tableSize == Int(room)
    else { throw fail(32, "\(numbers[3]) tokens do not fill the file") }
    guard numbers[5] <= 1 << 60 else { throw fail(48, "text of \(numbers[5]) bytes") }
    vocabulary = Int(numbers[2])
    count = Int(numbers[3])
    byteCount = Int(numbers[5])
    start = Self.headerCount + tableSize
    let entries = (0..<Int(numbers[4]))
    let table = file.withUnsafeBytes { bytes in
      entries.map {
        UInt64(
          littleEndian: bytes.loadUnaligned(
            fromByteOffset: Self.headerCount + 8 * $0, as: UInt64.self))
      }
    }
    var documents: [Int] = []
    for (i, first) in table.enumerated() {
      guard first <= numbers[3], Int(first) >= documents.last ?? 0 else {
        throw fail(Self.headerCount + 8 * i, "document \(i) begins at token \(first)")
      }
      documents.append(Int(first))
    }
    self.documents = documents
    let bad = try firstBadToken()
    if let bad { throw fail(start + bad * width, "token beyond the vocabulary of \(vocabulary)") }
  }

  /// Read rather than mapped: the pages would stay in memory.
  private func firstBadToken() throws(TrainingError) -> Int? {
    do throws(CheckpointError) {
      let reader = try FileReader(path: path)
      let most = Self.pieceSize / width
      for first in stride(from: 0, to: count, by: most) {
        let bytes = try reader.read(
          start + first * width..<start + min(first + most, count) * width)
        let bad = bytes.withUnsafeBytes { bytes in
          (0..<bytes.count / width).first { i in
            let token = token(i, bytes)
            return token < 0 || Int(token) >= vocabulary
          }
        }
        if let bad { return first + bad }
      }
      return nil
    } catch { throw .checkpoint(error) }
  }

  /// Token `i` of some bytes.
  private func token(_ i: Int, _ bytes: UnsafeRawBufferPointer) -> Int32 {
    width == 2
      ? Int32(UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: 2 * i, as: UInt16.self)))
      : Int32(
        truncatingIfNeeded: UInt32(
          littleEndian: bytes.loadUnaligned(fromByteOffset: 4 * i, as: UInt32.self)))
  }

  /// Some tokens.
  ///
  /// - Precondition: the range lies in the shard.
  public func tokens(_ range: Range<Int>) -> [Int32] {
    precondition(range.lowerBound >= 0 && range.upperBound <= count, "tokens \(range) of \(count)")
    return file.withUnsafeBytes { bytes in
      let all = UnsafeRawBufferPointer(rebasing: bytes[start...])
      return range.map { token($0, all) }
    }
  }

  /// Bytes of text a token on average.
  public var bytesPerToken: Double { Double(byteCount) / Double(max(count, 1)) }
}
