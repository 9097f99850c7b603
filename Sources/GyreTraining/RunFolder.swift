import FoundationEssentials
import GyreCheckpoints
import GyreLayers
import GyreModels
import GyreRecurrence
import GyreTensors
import GyreTokenizers

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#else
  import Darwin
#endif

/// The files of a run.
///
///     config.json  training.json  tokenizer  model.safetensors  metrics.jsonl  report.html
///     checkpoints/step-…/   data/*.shard
public struct RunFolder: Sendable {
  public let path: String
  public init(_ path: String) { self.path = path }

  public var configuration: String { path + "/config.json" }
  public var training: String { path + "/training.json" }
  public var weights: String { path + "/model.safetensors" }
  public var metrics: String { path + "/metrics.jsonl" }
  public var report: String { path + "/report.html" }
  public var store: DirectoryStore { DirectoryStore(path: path + "/checkpoints") }
  public func shard(_ name: String) -> String { path + "/data/\(name).shard" }

  /// Makes the folder with the texts as shards, the configurations and the tokenizer.
  public func create(
    corpus: Corpus, tokenizer: any Tokenizer, model: ModelConfiguration,
    training: TrainingConfiguration
  ) throws {
    try createData(corpus: corpus, tokenizer: tokenizer)
    try AtomicFile.write(try model.json(), to: configuration)
    try AtomicFile.write(try training.json(), to: self.training)
  }

  /// Makes the folder with the tokenizer and the texts as shards.
  public func createData(corpus: Corpus, tokenizer: any Tokenizer) throws {
    try FileManager.default.createDirectory(
      atPath: path + "/data", withIntermediateDirectories: true)
    try TokenizerFile.save(tokenizer, folder: path)
    try TokenShard.write(corpus.train, tokenizer: tokenizer, to: shard("train"))
    try TokenShard.write(corpus.validation, tokenizer: tokenizer, to: shard("validation"))
    let manifest = DataManifest(
      source: corpus.source, tokenizer: "\(tokenizer.kind)",
      train: try FileDigest(ofFile: shard("train")).sha256,
      validation: try FileDigest(ofFile: shard("validation")).sha256)
    try AtomicFile.write(
      try ConfigurationFile.text(manifest), to: path + "/data/manifest.json")
  }

  /// The shards, checked against the manifest.
  public func shards() throws -> (train: TokenShard, validation: TokenShard) {
    let manifest: DataManifest = try read(path + "/data/manifest.json")
    for (name, hash) in [("train", manifest.train), ("validation", manifest.validation)] {
      guard try FileDigest(ofFile: shard(name)).sha256 == hash else {
        throw TrainingError.data(
          path: shard(name), reason: "is not the file that data/manifest.json names; train anew")
      }
    }
    return (try TokenShard(path: shard("train")), try TokenShard(path: shard("validation")))
  }

  /// Makes the folder for data that is generated: tokenizer and configurations.
  public func create(
    tokenizer: any Tokenizer, model: ModelConfiguration, training: TrainingConfiguration
  ) throws {
    try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    try TokenizerFile.save(tokenizer, folder: path)
    try AtomicFile.write(try model.json(), to: configuration)
    try AtomicFile.write(try training.json(), to: self.training)
  }

  /// Where the text of the run came from.
  public var source: String {
    ((try? read(path + "/data/manifest.json")) as DataManifest?)?.source ?? "unknown"
  }

  /// Appends a line to a file of the folder in one write.
  public func append(_ line: String, to path: String) throws(TrainingError) {
    let bytes = Array(line.utf8)
    let file = openForAppending(path)
    defer { if file >= 0 { close(file) } }
    guard file >= 0, write(file, bytes, bytes.count) == bytes.count else {
      throw .checkpoint(.io(operation: "append", path: path, errno: errno))
    }
  }

  public func modelConfiguration() throws -> ModelConfiguration {
    try parsed(configuration, ModelConfiguration.init(json:))
  }
  public func trainingConfiguration() throws -> TrainingConfiguration {
    try parsed(training, TrainingConfiguration.init(json:))
  }

  /// What a file of settings says; an error names the file.
  private func parsed<T>(
    _ path: String, _ parse: ([UInt8]) throws(ConfigurationError) -> T
  ) throws(TrainingError) -> T {
    let bytes = try bytes(path)
    do throws(ConfigurationError) { return try parse(bytes) } catch {
      throw .data(path: path, reason: "\(error)")
    }
  }

  private func bytes(_ path: String) throws(TrainingError) -> [UInt8] {
    do throws(CheckpointError) {
      return try MappedFile(path: path).withUnsafeBytes { Array($0) }
    } catch { throw .checkpoint(error) }
  }

  private func read<T: Decodable>(_ path: String) throws(TrainingError) -> T {
    let data = Data(try bytes(path))
    do { return try JSONDecoder().decode(T.self, from: data) } catch {
      throw .data(path: path, reason: "cannot be read: \(error)")
    }
  }

  private struct DataManifest: Codable {
    var version = 1
    var source: String
    var tokenizer: String
    var train: String
    var validation: String
  }
}

/// One line of `metrics.jsonl`.
public struct Metrics: Codable, Sendable, Equatable {
  public var step: Int
  public var tokens: Int
  public var trainBitsPerByte: Double
  public var validationBitsPerByte: Double?
  /// The part of a task's held-out answers that are right; nil for texts.
  public var accuracy: Double?
  public var learningRate: Double
  public var gradientNorm: Double
  public var tokensPerSecond: Double
  /// Why the step changed nothing; nil for a step that did.
  public var skipped: String?
  /// How Newton's method went in the last batch, layer by layer; nil where no layer uses it.
  public var newton: [NewtonReport]?

  public init(
    step: Int, tokens: Int, trainBitsPerByte: Double, validationBitsPerByte: Double?,
    learningRate: Double, gradientNorm: Double, tokensPerSecond: Double, skipped: String? = nil
  ) {
    self.step = step
    self.tokens = tokens
    self.trainBitsPerByte = trainBitsPerByte
    self.validationBitsPerByte = validationBitsPerByte
    self.learningRate = learningRate
    self.gradientNorm = gradientNorm
    self.tokensPerSecond = tokensPerSecond
    self.skipped = skipped
  }

  enum CodingKeys: String, CodingKey {
    case step, tokens, skipped, newton, accuracy
    case trainBitsPerByte = "train_bits_per_byte"
    case validationBitsPerByte = "val_bits_per_byte"
    case learningRate = "learning_rate"
    case gradientNorm = "grad_norm"
    case tokensPerSecond = "tokens_per_s"
  }

  /// The lines of a file up to a step; a line that a killed process left half written ends it.
  public static func read(_ path: String, through step: Int = .max) -> [Metrics] {
    guard let file = try? MappedFile(path: path) else { return [] }
    var lines: [Metrics] = []
    for line in file.withUnsafeBytes({ Array($0) }).split(separator: UInt8(ascii: "\n")) {
      guard let m = try? JSONDecoder().decode(Metrics.self, from: Data(line)), m.step <= step else {
        break
      }
      lines.append(m)
    }
    return lines
  }

  /// The line, keys sorted; numbers that JSON does not have become null.
  public func line() throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys]
    encoder.nonConformingFloatEncodingStrategy = .convertToString(
      positiveInfinity: "inf", negativeInfinity: "-inf", nan: "nan")
    return String(decoding: try encoder.encode(self), as: UTF8.self) + "\n"
  }
}

private func openForAppending(_ path: String) -> Int32 {
  open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
}
