// Reading one GGUF file, mapped or in memory.

import GyreTensors

/// An open GGUF file (llama.cpp's format): metadata and tensors, plain or quantised, zero-copy.
///
/// ``readFloat32(_:)`` unpacks quantised tensors. Opening checks the head: truncation, duplicates,
/// overlaps, unknown types and counts that cannot fit are errors with the place.
public struct GGUFFile: TensorSource {
  /// The path, or the name given to bytes in memory.
  public let name: String
  /// Metadata by key, such as "general.architecture".
  public let values: [String: GGUFValue]
  /// All tensors in the order of the table.
  public let tensors: [TensorInfo]

  private let contents: FileContents
  private let places: [String: Int]

  /// Maps the file at `path` and checks its head.
  ///
  /// - Throws: `notFound`, `io`, `corrupt`, `unsupported`.
  public init(path: String) throws(CheckpointError) {
    let file = try MappedFile(path: path)
    let header = try file.withUnsafeBytes { (bytes) throws(CheckpointError) in
      try GGUFHeader(file: bytes, name: path)
    }
    self.init(path, header, .mapped(file))
  }

  /// Checks a file that is in memory; `name` is what errors call it.
  public init(bytes: [UInt8], name: String = "memory") throws(CheckpointError) {
    let header = try bytes.withUnsafeBufferPointer { (bytes) throws(CheckpointError) in
      try GGUFHeader(file: UnsafeRawBufferPointer(bytes), name: name)
    }
    self.init(name, header, .bytes(bytes))
  }

  private init(_ name: String, _ header: GGUFHeader, _ contents: FileContents) {
    self.name = name
    values = header.metadata
    tensors = header.tensors
    self.contents = contents
    places = Dictionary(
      header.tensors.enumerated().map { ($1.name, $0) }, uniquingKeysWith: { first, _ in first })
  }

  /// Whether a file begins as GGUF files do.
  public static func isGGUF(path: String) -> Bool {
    guard let file = try? MappedFile(path: path) else { return false }
    return file.withUnsafeBytes { $0.starts(with: "GGUF".utf8) }
  }

  /// "llama", "mamba2", "rwkv7", …; nil where the file does not say.
  public var architecture: String? { values["general.architecture"]?.string }

  public var names: [String] { tensors.map(\.name).sorted() }

  /// Metadata that are texts.
  public var metadata: [String: String] { values.compactMapValues(\.string) }

  public func contains(_ name: String) -> Bool { places[name] != nil }

  public func info(_ name: String) throws(CheckpointError) -> TensorInfo {
    guard let place = places[name] else { throw .notFound(path: "\(self.name)#\(name)") }
    return tensors[place]
  }

  public func withBytes<Result>(
    _ name: String, _ body: (UnsafeRawBufferPointer) throws(CheckpointError) -> Result
  ) throws(CheckpointError) -> Result {
    try contents.withBytes(try info(name).byteRange, body)
  }

  /// Whether the values lie in a mapped file, at addresses that hold while this value lives.
  public var isMapped: Bool { contents.isMapped }
}
